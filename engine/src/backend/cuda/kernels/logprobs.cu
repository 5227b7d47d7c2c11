// Log probabilities of rows of logits: of one token and its rank, and of the likeliest tokens or of tokens by id.
//
//   logits   [rows, stride] of f32, as the model gave them: before masks, biases, penalties and temperature
//   wanted   one for each block
//   chosen   [wanted, 2]: log probability of the row's token as f32 bits, and its rank: how many logits are at least its
//            own. The token is wanted.token, or sampled[wanted.sampled] where that is not NONE.
//   listed   pairs of token and log probability (f32 bits), from wanted.listed on: the `top` likeliest, best first and
//            lower tokens first among equals, as many as are possible and NONE after that; or the `asked` tokens in their
//            order. top is at most 1024.
//
// logprob = logit - largest - ln(sum of e^(logit - largest)), with the sum in f64 over parts of at most some hundred f32.
//
// Grid: one block of 1024 threads for each row. Bytes: 4 * vocabulary from memory, and again from L2 for the rank and, with
// top, four times more.
#include "select.cuh"

struct RowLogprobs {
    u32 row;
    u32 token;
    u32 sampled;  // where in `sampled` the token is; NONE for `token`
    u32 top;
    u32 asked_first, asked_count;
    u32 listed;   // where in `listed` this row's pairs begin
};

struct LogprobArguments {
    const float* logits;
    const RowLogprobs* wanted;
    const u32* sampled;
    const u32* asked;
    u32* chosen;
    u32* listed;
    u32 vocabulary;
    u32 stride;
};

constexpr u32 TOP_MAX = 1024;

struct Normaliser {
    float best;
    double log_sum;

    DEVICE float logprob(float logit) const {
        if (ordered(logit) == IMPOSSIBLE) return never();
        return (float)((double)logit - (double)best - log_sum);
    }
};

// Lists the `top` likeliest. Each thread has seen `largest`, of whatever it looked at.
DEVICE void list_likeliest(const Row& row, u32 top, u32 largest, const Normaliser& normaliser, u32* listed, u64* found,
                           u32* count, Selection& s) {
    u32 bound = lower_bound(top, largest, s);
    Threshold end = reach(top, s, [&](auto add) {
        row.each([&](u32, float logit) { add(ordered(logit), ordered(logit) >= bound && ordered(logit) != IMPOSSIBLE); });
    });
    u32 last = NONE;
    if (end.before + end.at > top)
        last = ~reach(top - end.before, s, [&](auto add) {
            row.each([&](u32 token, float logit) { add(~token, ordered(logit) == end.key); });
        }).key;
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    row.each([&](u32 token, float logit) {
        u32 key = ordered(logit);
        if (key == IMPOSSIBLE || key < end.key || (key == end.key && token > last)) return;
        found[atomicAdd(count, 1u)] = candidate(key, token);
    });
    __syncthreads();
    // Each goes to the place that is the number of those before it.
    for (u32 i = threadIdx.x; i < top; i += SELECT_THREADS) {
        if (i >= *count) {
            listed[2 * i] = NONE;
            listed[2 * i + 1] = float_to_bits(never());
            continue;
        }
        u32 place = 0;
        for (u32 j = 0; j < *count; j++) place += found[j] > found[i];
        listed[2 * place] = token_of(found[i]);
        listed[2 * place + 1] = float_to_bits(normaliser.logprob(unordered(key_of(found[i]))));
    }
}

KERNEL(logprobs, (LogprobArguments a)) {
    SHARED(Selection, selection, 1);
    SHARED(u64, found, TOP_MAX);
    SHARED(double, sums, WARP);
    SHARED(u32, count, 1);
    Selection& s = *selection;
    RowLogprobs wanted = a.wanted[blockIdx.x];
    Row row = {a.logits + (u64)wanted.row * a.stride, a.vocabulary};
    u32 largest = 0;
    row.each([&](u32, float logit) { largest = ordered(logit) > largest ? ordered(logit) : largest; });
    Normaliser normaliser = {unordered((u32)block_max(largest, s.scratch)), 0.0};
    float sum = 0.0f;
    row.each([&](u32, float logit) {
        if (ordered(logit) != IMPOSSIBLE) sum += exp_falling(logit - normaliser.best);
    });
    normaliser.log_sum = log(block_sum((double)sum, sums));

    u32 token = wanted.sampled == NONE ? wanted.token : a.sampled[wanted.sampled];
    float logit = token < a.vocabulary ? row.logits[token] : never();
    u32 key = ordered(logit), better = 0;
    row.each([&](u32, float other) { better += ordered(other) >= key; });
    better = block_sum(better, (u32*)s.scratch);
    if (threadIdx.x == 0) {
        a.chosen[2 * blockIdx.x] = float_to_bits(normaliser.logprob(logit));
        a.chosen[2 * blockIdx.x + 1] = better;
    }
    u32* listed = a.listed + 2 * wanted.listed;
    for (u32 i = threadIdx.x; i < wanted.asked_count; i += SELECT_THREADS) {
        u32 asked = a.asked[wanted.asked_first + i];
        listed[2 * i] = asked;
        listed[2 * i + 1] = float_to_bits(asked < a.vocabulary ? normaliser.logprob(row.logits[asked]) : never());
    }
    if (wanted.asked_count == 0 && wanted.top > 0)
        list_likeliest(row, wanted.top, largest, normaliser, listed, found, count, s);
}
