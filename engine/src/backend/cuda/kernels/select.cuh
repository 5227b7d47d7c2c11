// Questions about one row of logits, answered by one block of threads: its maximum, and the value at which a count or a
// sum of weights, from the largest logit down, reaches a goal.
//
// Logits are f32, rows `stride` apart, a multiple of 4; of a row the first `vocabulary` count. What is no finite number
// counts as impossible. Rows are read in groups of four tokens, 16 bytes a thread, as often as a question needs: a row of
// 150,000 tokens stays in the L2 cache meanwhile.
//
// Nothing here depends on the order in which threads come: maxima are of (value, token), sums are of integers.
#pragma once
#include "prelude.cuh"

constexpr u32 SELECT_THREADS = 1024;
constexpr u32 GROUP = 4;
constexpr u32 DIGITS = 2048;

// A number that ascends with x; of what is impossible, that of minus infinity. The two zeros are one.
DEVICE u32 ordered(float x) {
    u32 bits = float_to_bits(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) bits = 0xff800000u;
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

constexpr u32 IMPOSSIBLE = 0x007fffffu;

// What `ordered` was made from.
DEVICE float unordered(u32 key) { return bits_to_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

struct Row {
    const float* logits;
    u32 vocabulary;

    // Calls visit(token, logit) for each token that this thread looks at, in ascending order.
    template <class Visit> DEVICE void each(Visit visit) const {
        for (u32 first = threadIdx.x * GROUP; first < vocabulary; first += SELECT_THREADS * GROUP) {
            Pack four = load16(logits + first);
#pragma unroll
            for (u32 i = 0; i < GROUP; i++)
                if (first + i < vocabulary) visit(first + i, bits_to_float(four.word[i]));
        }
    }
};

// What a block needs to answer; in shared memory.
struct Selection {
    u64 weights[DIGITS];
    u64 scratch[WARP];
    u64 before;
    u32 digit;
};

// The largest over the block, the same in all threads.
DEVICE u64 block_max(u64 x, u64* scratch) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x ? other : x;
    }
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    x = scratch[lane_id()];
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// (value, token) as one number: larger values first, then lower tokens.
DEVICE u64 candidate(u32 key, u32 token) { return (u64)key << 32 | (u32)~token; }
DEVICE u32 key_of(u64 candidate) { return (u32)(candidate >> 32); }
DEVICE u32 token_of(u64 candidate) { return ~(u32)candidate; }

struct Threshold {
    u32 key;     // the key at which the sum reaches the goal
    u64 before;  // the sum over larger keys
    u64 at;      // the sum over this very key
};

// Goes through the keys from the largest down and stops where the sum of weights reaches the goal, of at least 1.
// `each(add)` calls add(key, weight) for whatever the thread knows of; it is called three times, for 11, 11 and 10 bits
// of the key. When the sum of all is less than the goal, the smallest key there is has `key` 0.
template <class Each> DEVICE Threshold reach(u64 goal, Selection& s, Each each) {
    Threshold found = {0, 0, 0};
    u32 known = 0;
#pragma unroll 1
    for (u32 round = 0; round < 3; round++) {
        u32 shift = round == 0 ? 21 : round == 1 ? 10 : 0, digits = round == 2 ? DIGITS / 2 : DIGITS;
        __syncthreads();
        for (u32 i = threadIdx.x; i < DIGITS; i += SELECT_THREADS) s.weights[i] = 0;
        __syncthreads();
        each([&](u32 key, u64 weight) {
            if (weight != 0 && (key & known) == (found.key & known)) atomicAdd(&s.weights[key >> shift & (digits - 1)], weight);
        });
        __syncthreads();
        if (warp_id() == 0) {
            // Each lane has a run of digits, lane 0 the largest.
            u32 run = digits / WARP, top = digits - lane_id() * run;
            u64 sum = 0;
            for (u32 i = 1; i <= run; i++) sum += s.weights[top - i];
            u64 reached = sum;
#pragma unroll
            for (u32 step = 1; step < WARP; step *= 2) {
                u64 other = __shfl_up_sync(ALL_LANES, reached, step);
                if (lane_id() >= step) reached += other;
            }
            u64 before = found.before + reached - sum;
            u32 crossed = __ballot_sync(ALL_LANES, found.before + reached >= goal);
            u32 who = crossed ? (u32)__ffs((int)crossed) - 1 : WARP - 1;
            if (lane_id() == who) {
                u32 digit = top - run;
                for (u32 i = 1; i <= run; i++) {
                    if (before + s.weights[top - i] >= goal) { digit = top - i; break; }
                    if (i < run) before += s.weights[top - i];
                }
                s.before = before;
                s.digit = digit;
            }
        }
        __syncthreads();
        found.before = s.before;
        found.at = s.weights[s.digit];
        found.key |= s.digit << shift;
        known |= (digits - 1) << shift;
    }
    __syncthreads();
    return found;
}

// The key of the count-th largest logit, or a key that at least that many reach: `bound` of the largest that each thread
// has seen, of which 1024 there are. It keeps `reach` from counting all the tokens that are out of the question.
DEVICE u32 lower_bound(u32 count, u32 largest, Selection& s) {
    if (count > SELECT_THREADS) return 0;
    return reach(count, s, [&](auto add) { add(largest, 1); }).key;
}

// e^x for x of 0 or less, rounded like the CPU's: no step of it may be contracted. See `sample/math.rs`.
DEVICE float exp_falling(float x) {
    const float ROUND = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504f), ROUND);
    float n = __fsub_rn(shifted, ROUND);
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
    const float coefficients[5] = {1.3981999e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f};
    float p = 1.9875691e-4f;
#pragma unroll
    for (u32 i = 0; i < 5; i++) p = __fadd_rn(__fmul_rn(p, r), coefficients[i]);
    u32 power = (float_to_bits(shifted) - float_to_bits(ROUND) + 127) << 23;
    float mantissa = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    return __fmul_rn(mantissa, bits_to_float(power));
}
