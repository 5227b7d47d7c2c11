// Attention of decodes: one new token of each sequence against all of its context, cut into splits that run side by side.
//
// decode    Grid: (splits, kv_heads * ceil(group / 16), decodes), 128 threads; dynamic shared memory
//           Shape<head_dim>::BYTES. `work` names the sequences. Each block takes one split of a context: its four warps
//           take 16 of every 64 keys each and merge what they found. Up to 16 query heads share a block.
// combine   Grid: (heads, decodes), head_dim threads: the splits of a context are merged.
//
// How a context is cut depends on its own length and window alone, so a token's bits do not depend on what else is in
// the batch. Blocks beyond a sequence's last split return at once: graphs have as many as the longest may need.
//
// Bytes: 2 * head_dim * sizeof(T) for each key and key-value head, once; partial sums are some 3 % of that. Operations:
// 4 * head_dim for each key and query head.
#include "attention.cuh"

constexpr u32 SPLITS_MAX = 16;
constexpr u32 DECODE_ROWS = 16;

struct Split {
    u32 low, high;  // positions
    u32 count;      // of splits that the context is cut into
};

// Split number `index` of a context; `low` = `high` when there is none.
DEVICE Split split_of(u32 context, u32 window, u32 index) {
    u32 low = first_visible(context - 1, window);
    u32 first = low / TILE_KEYS, tiles = (context + TILE_KEYS - 1) / TILE_KEYS - first;
    u32 each = (tiles + SPLITS_MAX - 1) / SPLITS_MAX;
    u32 begin = (first + index * each) * TILE_KEYS, end = begin + each * TILE_KEYS;
    Split split;
    split.count = (tiles + each - 1) / each;
    split.low = begin > low ? begin : low;
    split.high = end < context ? end : context;
    if (index >= split.count) split.low = split.high = 0;
    return split;
}

// Merges what the warps of a block found, through shared memory, and writes the block's part.
template <class T, u32 D>
DEVICE void write_split(const AttentionArguments& a, Rows<T, D>& state, float* memory, u32 token, u32 decode, u32 head,
                        u32 rows, u32 index, u32 count) {
    constexpr u32 STRIDE = D + 2;
    u32 g = lane_id() / 4, q = lane_id() % 4;
    state.finish();
    __syncthreads();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float* row = memory + (warp_id() * DECODE_ROWS + g + half * 8) * STRIDE;
        if (q == 0) {
            row[D] = state.best[half];
            row[D + 1] = state.norm[half];
        }
#pragma unroll
        for (u32 d = 0; d < D / 8; d++) {
            row[d * 8 + 2 * q] = state.sums[d][2 * half];
            row[d * 8 + 2 * q + 1] = state.sums[d][2 * half + 1];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < rows * D; i += ATTENTION_THREADS) {
        u32 row = i / D, d = i % D;
        float best = never(), norm = 0.0f, sum = 0.0f;
        for (u32 warp = 0; warp < ATTENTION_WARPS; warp++)
            best = fmaxf(best, memory[(warp * DECODE_ROWS + row) * STRIDE + D]);
        for (u32 warp = 0; warp < ATTENTION_WARPS; warp++) {
            const float* part = memory + (warp * DECODE_ROWS + row) * STRIDE;
            float by = exp2_fast(part[D] - best);
            norm += part[D + 1] * by;
            sum += part[d] * by;
        }
        if (count == 1) {
            ((T*)a.out)[((u64)token * a.heads + head + row) * D + d] = narrow<T>(sum / norm);
        } else {
            u64 place = ((u64)decode * a.heads + head + row) * SPLITS_MAX + index;
            a.partial_sums[place * D + d] = sum;
            if (d == 0) {
                a.partial_norms[place * 2] = best;
                a.partial_norms[place * 2 + 1] = norm;
            }
        }
    }
}

template <class T, u32 D> DEVICE void decode(const AttentionArguments& a) {
    DYNAMIC_SHARED(memory);
    T* tiles = (T*)memory;
    u32 group = a.heads / a.kv_heads, parts = (group + DECODE_ROWS - 1) / DECODE_ROWS;
    u32 kv_head = blockIdx.y / parts, first_row = blockIdx.y % parts * DECODE_ROWS;
    u32 rows = group - first_row < DECODE_ROWS ? group - first_row : DECODE_ROWS;
    SequenceOfStep sequence = a.sequences[a.work[blockIdx.z]];
    Split split = split_of(sequence.context, a.window, blockIdx.x);
    if (split.low >= split.high) return;

    u32 token = sequence.first_token, head = kv_head * group + first_row;
    Rows<T, D> state;
    state.begin([&](u32 r) {
        const T* query = (const T*)a.queries + (u64)token * a.query_stride + (head + r) * D;
        return r < rows ? query : (const T*)0;
    });
    const u32* table = a.block_tables + sequence.first_block;
    auto fetch = [&](u32 first, u32 stage) {
        T* keys = tiles + stage * 2 * Shape<D>::TILE;
        copy_tile<T, D>(keys, (const T*)a.keys, a, table, kv_head, first, split.low, split.high);
        copy_tile<T, D>(keys + Shape<D>::TILE, (const T*)a.values, a, table, kv_head, first, split.low, split.high);
    };
    u32 start = split.low / TILE_KEYS * TILE_KEYS;
    fetch(start, 0);
    copies_commit();
    u32 stage = 0;
    for (u32 first = start; first < split.high; first += TILE_KEYS) {
        if (first + TILE_KEYS < split.high) fetch(first + TILE_KEYS, stage ^ 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        const T* keys = tiles + stage * 2 * Shape<D>::TILE + warp_id() * 16 * Shape<D>::STRIDE;
        u32 mine = first + warp_id() * 16;
        bool masked = mine < split.low || mine + 16 > split.high;
        u32 low[2] = {split.low, split.low}, high[2] = {split.high, split.high};
        if (mine < split.high && mine + 16 > split.low)
            state.template take<1>(keys, keys + Shape<D>::TILE, mine, low, high, masked, a.scale);
        __syncthreads();
        stage ^= 1;
    }
    write_split<T, D>(a, state, (float*)memory, token, blockIdx.z, head, rows, blockIdx.x, split.count);
}

template <class T, u32 D> DEVICE void combine(const AttentionArguments& a) {
    u32 head = blockIdx.x, d = threadIdx.x;
    SequenceOfStep sequence = a.sequences[a.work[blockIdx.y]];
    u32 count = split_of(sequence.context, a.window, 0).count;
    if (count == 1) return;
    u64 first = ((u64)blockIdx.y * a.heads + head) * SPLITS_MAX;
    const float* norms = a.partial_norms + first * 2;
    float best = never(), norm = 0.0f, sum = 0.0f;
    for (u32 i = 0; i < count; i++) best = fmaxf(best, norms[2 * i]);
    for (u32 i = 0; i < count; i++) {
        float by = exp2_fast(norms[2 * i] - best);
        norm += norms[2 * i + 1] * by;
        sum += a.partial_sums[(first + i) * D + d] * by;
    }
    ((T*)a.out)[((u64)sequence.first_token * a.heads + head) * D + d] = narrow<T>(sum / norm);
}

#define DECODE_KERNELS(T, D)                                                                                           \
    KERNEL(decode_##T##_##D, (AttentionArguments a)) { decode<T, D>(a); }                                              \
    KERNEL(combine_##T##_##D, (AttentionArguments a)) { combine<T, D>(a); }

DECODE_KERNELS(bf16, 32)
DECODE_KERNELS(bf16, 64)
DECODE_KERNELS(bf16, 96)
DECODE_KERNELS(bf16, 128)
DECODE_KERNELS(f16, 32)
DECODE_KERNELS(f16, 64)
DECODE_KERNELS(f16, 96)
DECODE_KERNELS(f16, 128)
