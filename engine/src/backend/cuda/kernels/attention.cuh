// What prefill and decode share: 16 rows of queries of one warp against keys and values in shared memory.
//
// A row is one query head of one token. Heads that share a key-value head share a tile, so keys and values are read once
// for all of them: row r of a sequence's rows belongs to token r / group and to head r % group of the group.
//
// Scores are multiplied by scale * log2(e), so that powers of 2 serve. A warp keeps, for each row, the largest score so
// far, the sum of powers, and the weighted sum of values; two such states of other keys are merged as
//
//   m = max(m1, m2);  l = l1 2^(m1 - m) + l2 2^(m2 - m);  o = o1 2^(m1 - m) + o2 2^(m2 - m)
//
// Products are of T with f32 sums: 4 * head_dim operations for each row and key. Powers are rounded to T before they
// weigh values, and summed up as they were before that.
#pragma once
#include "mma.cuh"

struct SequenceOfStep {
    u32 first_token;  // its first new token's row
    u32 new_tokens;
    u32 context;      // tokens in its context, the new ones included
    u32 first_block;  // where its block table begins
};

struct AttentionArguments {
    const void* queries;            // [tokens, query_stride] of T; heads lie one after the other
    const void* keys;               // [blocks, kv_heads, block_size, head_dim] of T, one layer
    const void* values;             // the same
    void* out;                      // [tokens, heads, head_dim] of T
    float* partial_sums;            // [decodes, heads, SPLITS_MAX, head_dim], decode only
    float* partial_norms;           // [decodes, heads, SPLITS_MAX, 2]: largest score and sum of powers
    const SequenceOfStep* sequences;
    const u32* block_tables;
    const u32* work;                // prefill: pairs (sequence, first row) of tiles; decode: sequences
    u32 query_stride;
    u32 heads;
    u32 kv_heads;
    u32 block_log2;
    u32 window;                     // a token sees so many, itself included; 0 for all before it
    float scale;                    // 1 / sqrt(head_dim) * log2(e)
};

constexpr u32 TILE_KEYS = 64;
constexpr u32 ATTENTION_WARPS = 4;
constexpr u32 ATTENTION_THREADS = ATTENTION_WARPS * WARP;

// Padding a row of shared memory by 16 bytes puts 8 consecutive rows into different banks.
template <u32 D> struct Shape {
    static constexpr u32 STRIDE = D + PACKED;
    static constexpr u32 TILE = TILE_KEYS * STRIDE;
    static constexpr u32 PACKS = D / PACKED;
    // Keys and values, twice: one pair is computed with while the other one comes.
    static constexpr u32 BYTES = 2 * 2 * TILE * 2;
};

// The first key that position sees.
DEVICE u32 first_visible(u32 position, u32 window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

// Begins to copy the keys or values of positions [first, first + TILE_KEYS) of one head; those outside [low, high) are
// zeros.
template <class T, u32 D>
DEVICE void copy_tile(T* to, const T* pages, const AttentionArguments& a, const u32* table, u32 kv_head, u32 first,
                      u32 low, u32 high) {
    u32 block_size = 1u << a.block_log2;
    for (u32 i = threadIdx.x; i < TILE_KEYS * Shape<D>::PACKS; i += ATTENTION_THREADS) {
        u32 row = i / Shape<D>::PACKS, column = i % Shape<D>::PACKS * PACKED;
        u32 position = first + row;
        bool there = position >= low && position < high;
        const T* from = pages;
        if (there) {
            u64 block = table[position >> a.block_log2];
            from += ((block * a.kv_heads + kv_head) * block_size + (position & (block_size - 1))) * D + column;
        }
        copy16_begin(to + row * Shape<D>::STRIDE + column, from, there);
    }
}

// 16 rows of one warp. A lane has parts of two of them: g = lane / 4 and g + 8.
template <class T, u32 D> struct Rows {
    u32 queries[D / 16][4];
    float sums[D / 8][4];
    float best[2], norm[2];

    // `at(row)` is where the query of a row lies, or null for a row that does not exist.
    template <class At> DEVICE void begin(At at) {
        u32 g = lane_id() / 4, q = lane_id() % 4;
        const T* rows[2] = {at(g), at(g + 8)};
#pragma unroll
        for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                queries[k][i] = rows[i % 2] ? *(const u32*)(rows[i % 2] + k * 16 + i / 2 * 8 + 2 * q) : 0;
        }
#pragma unroll
        for (u32 d = 0; d < D / 8; d++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[d][i] = 0.0f;
        best[0] = best[1] = never();
        norm[0] = norm[1] = 0.0f;
    }

    // Takes in 16 * GROUPS keys and values, which lie one after the other from position `first`. Row g sees positions
    // [low[0], high[0]), row g + 8 the second range; what `masked` says of neither is not looked at.
    template <u32 GROUPS>
    DEVICE void take(const T* keys, const T* values, u32 first, const u32 (&low)[2], const u32 (&high)[2], bool masked,
                     float scale) {
        float score[2 * GROUPS][4];
        multiply_keys<GROUPS>(score, keys);
        u32 q = lane_id() % 4;
#pragma unroll
        for (u32 n = 0; n < 2 * GROUPS; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 position = first + n * 8 + 2 * q + i % 2;
                bool seen = !masked || (position >= low[i / 2] && position < high[i / 2]);
                score[n][i] = seen ? score[n][i] * scale : never();
            }
        raise<2 * GROUPS>(score);
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++)
            multiply_values(score[2 * group], score[2 * group + 1], values + group * 16 * Shape<D>::STRIDE);
    }

    template <u32 GROUPS> DEVICE void multiply_keys(float (&score)[2 * GROUPS][4], const T* keys) {
        u32 lane = lane_id();
        const T* row = keys + (lane % 8 + lane / 16 * 8) * Shape<D>::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++) {
            float(&left)[4] = score[2 * group];
            float(&right)[4] = score[2 * group + 1];
#pragma unroll
            for (u32 i = 0; i < 4; i++) left[i] = right[i] = 0.0f;
#pragma unroll
            for (u32 k = 0; k < D / 16; k++) {
                u32 b[4];
                load_matrices(b, row + group * 16 * Shape<D>::STRIDE + k * 16);
                u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                multiply16x8x16<T>(left, queries[k], first);
                multiply16x8x16<T>(right, queries[k], second);
            }
        }
    }

    // Scores become powers of 2, relative to the largest score so far, which may rise.
    template <u32 N> DEVICE void raise(float (&score)[N][4]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float most = best[half];
#pragma unroll
            for (u32 n = 0; n < N; n++) most = fmaxf(most, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            // A row that has seen nothing yet has no power to be relative to.
            float base = most == never() ? 0.0f : most;
            float fall = exp2_fast(best[half] - base);
            best[half] = most;
            float sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < N; n++)
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    score[n][2 * half + i] = exp2_fast(score[n][2 * half + i] - base);
                    sum += score[n][2 * half + i];
                }
            norm[half] = norm[half] * fall + sum;
#pragma unroll
            for (u32 d = 0; d < D / 8; d++) {
                sums[d][2 * half] *= fall;
                sums[d][2 * half + 1] *= fall;
            }
        }
    }

    // The powers of 16 keys lie in the lanes just as the left side of a product wants them.
    DEVICE void multiply_values(const float (&left)[4], const float (&right)[4], const T* values) {
        u32 a[4] = {Number<T>::pair(left[0], left[1]), Number<T>::pair(left[2], left[3]),
                    Number<T>::pair(right[0], right[1]), Number<T>::pair(right[2], right[3])};
        u32 lane = lane_id();
        const T* row = values + lane % 16 * Shape<D>::STRIDE + lane / 16 * 8;
#pragma unroll
        for (u32 d = 0; d < D / 16; d++) {
            u32 b[4];
            load_matrices_transposed(b, row + d * 16);
            u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            multiply16x8x16<T>(sums[2 * d], a, first);
            multiply16x8x16<T>(sums[2 * d + 1], a, second);
        }
    }

    // The sums of powers of whole rows; until then each lane has summed up its own keys.
    DEVICE void finish() {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            norm[half] += __shfl_xor_sync(ALL_LANES, norm[half], 1);
            norm[half] += __shfl_xor_sync(ALL_LANES, norm[half], 2);
        }
    }
};
