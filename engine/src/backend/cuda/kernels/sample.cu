// From a row of logits to a token: greedy, or a draw among what min-p, top-k and top-p leave.
//
// The definition is `crate::sample`'s: with v = (logit - largest) / temperature, tokens stay whose v reaches ln(min_p),
// whose logit reaches that of the top_k-th (ties included), and of those the likeliest until their e^v add up to top_p of
// the sum (lower tokens first among equals, at least one). Of them the one with the largest v + Gumbel noise is drawn. The
// noise comes from Philox4x32-10 under (seed; token / 4, position): the CPU draws the same token from the same logits.
//
//   logits    [rows, stride] of f32        draws    one for each block
//   sampled   [rows of `out`]: the token, or NONE where no logit is a finite number
//
// Sums of e^v are of integers, in units of 2^-40, so that they come out the same in any order.
//
// Grid: one block of 1024 threads for each row. The row is read once when greedy, twice for a plain draw, and three times
// more for each of top-k and top-p: 4 * vocabulary bytes each, from L2 but for the first.
#include "select.cuh"

struct RowDraw {
    u32 row;
    u32 out;  // where in `sampled`
    float temperature;
    float top_p;
    float min_p;
    u32 top_k;
    u32 seed_low, seed_high;
    u32 position;
};

struct DrawArguments {
    const float* logits;
    const RowDraw* draws;
    u32* sampled;
    u32 vocabulary;
    u32 stride;
};

constexpr float GREEDY_BELOW = 1e-5f;
constexpr float UNIT = 1099511627776.0f;  // 2^40
constexpr float NOISE_MAX = 16.64f;

struct Words { u32 word[4]; };

DEVICE Words philox(u32 group, const RowDraw& draw) {
    Words w = {{group, 0, draw.position, 0}};
    u32 key[2] = {draw.seed_low, draw.seed_high};
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u64 first = (u64)0xd2511f53u * w.word[0], second = (u64)0xcd9e8d57u * w.word[2];
        w = Words{{(u32)(second >> 32) ^ w.word[1] ^ key[0], (u32)second, (u32)(first >> 32) ^ w.word[3] ^ key[1], (u32)first}};
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return w;
}

// The noise of 23 random bits: -ln(-ln u) of a uniform number that is never 0 nor 1.
DEVICE float noise_of(u32 bits) { return -logf(-logf(__fmul_rn(__fadd_rn((float)bits, 0.5f), 1.1920929e-7f))); }

// No noise of these bits is larger; found without a logarithm.
DEVICE float noise_bound(u32 bits) {
    u32 rest = (1u << 24) - (2 * bits + 1);
    return (float)(__clz((int)rest) - 7) * 0.69314718f + 1e-3f;
}

// Which tokens of a row may be drawn.
struct Kept {
    float best, temperature, floor;
    u32 key;        // of the logit that the last ones have
    u32 last;       // of those, the highest token

    DEVICE float value(float logit) const { return (logit - best) / temperature; }
    DEVICE bool holds(u32 token, float logit) const {
        u32 k = ordered(logit);
        return k != IMPOSSIBLE && k >= key && (k > key || token <= last) && value(logit) >= floor;
    }
};

// Narrows `kept` down to the likeliest tokens whose probabilities add up to top_p.
DEVICE void keep_top_p(Kept& kept, const Row& row, float top_p, Selection& s) {
    auto mass = [&](u32 token, float logit) {
        return kept.holds(token, logit) ? (u64)__fmul_rn(exp_falling(kept.value(logit)), UNIT) : 0;
    };
    u64 own = 0;
    row.each([&](u32 token, float logit) { own += mass(token, logit); });
    u64 total = block_sum(own, s.scratch);
    double exact = (double)top_p * (double)total;
    u64 goal = exact > 1.0 ? (u64)exact : 1;
    if ((double)goal < exact) goal++;
    Threshold end = reach(goal, s, [&](auto add) {
        row.each([&](u32 token, float logit) { add(ordered(logit), mass(token, logit)); });
    });
    // All of the last key are equally likely; as many of them stay as the goal needs.
    u64 each = (u64)__fmul_rn(exp_falling(kept.value(unordered(end.key))), UNIT);
    u64 wanted = goal > end.before ? (goal - end.before + each - 1) / (each > 0 ? each : 1) : 1;
    u32 last = NONE;
    if (wanted * each < end.at) {
        last = ~reach(wanted, s, [&](auto add) {
            row.each([&](u32 token, float logit) { add(~token, ordered(logit) == end.key && kept.holds(token, logit)); });
        }).key;
    }
    kept.key = end.key;
    kept.last = last;
}

DEVICE u32 draw_among(const Kept& kept, const Row& row, const RowDraw& draw, u32 best, Selection& s) {
    float score = noise_of(philox(best / GROUP, draw).word[best % GROUP] >> 9);
    u64 winner = candidate(ordered(score), best);
    Words words = {};
    u32 group = NONE;
    row.each([&](u32 token, float logit) {
        if (!kept.holds(token, logit)) return;
        float value = kept.value(logit), least = score - value;
        if (least > NOISE_MAX) return;
        if (group != token / GROUP) {
            group = token / GROUP;
            words = philox(group, draw);
        }
        u32 bits = words.word[token % GROUP] >> 9;
        if (noise_bound(bits) < least) return;
        float own = value + noise_of(bits);
        u64 offered = candidate(ordered(own), token);
        if (offered > winner) {
            winner = offered;
            score = own;
        }
    });
    return token_of(block_max(winner, s.scratch));
}

KERNEL(sample, (DrawArguments a)) {
    SHARED(Selection, selection, 1);
    Selection& s = *selection;
    RowDraw draw = a.draws[blockIdx.x];
    Row row = {a.logits + (u64)draw.row * a.stride, a.vocabulary};
    u64 own = 0;
    row.each([&](u32 token, float logit) {
        u64 offered = candidate(ordered(logit), token);
        own = offered > own ? offered : own;
    });
    u64 best = block_max(own, s.scratch);
    u32 token = key_of(best) <= IMPOSSIBLE ? NONE : token_of(best);
    if (token != NONE && draw.temperature >= GREEDY_BELOW) {
        Kept kept = {unordered(key_of(best)), draw.temperature, -3.40282347e38f, 0, NONE};
        if (draw.min_p > 0.0f) kept.floor = logf(draw.min_p < 1.0f ? draw.min_p : 1.0f);
        if (draw.top_k > 0 && draw.top_k < a.vocabulary) {
            u32 bound = lower_bound(draw.top_k, key_of(own), s);
            kept.key = reach(draw.top_k, s, [&](auto add) {
                row.each([&](u32, float logit) { add(ordered(logit), ordered(logit) >= bound); });
            }).key;
        }
        if (draw.top_p < 1.0f) keep_top_p(kept, row, draw.top_p, s);
        token = draw_among(kept, row, draw, token, s);
    }
    if (threadIdx.x == 0) a.sampled[draw.out] = token;
}
