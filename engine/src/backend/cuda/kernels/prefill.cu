// Attention of prompts: chunks of new tokens against all of their context, of which any part may lie in the prefix cache.
//
// Grid: (tiles, kv_heads), 128 threads; dynamic shared memory Shape<head_dim>::BYTES. A tile is 64 rows of one sequence,
// 16 for each warp, and `work` says which: (sequence, first row). Rows are tokens times the query heads of the
// key-value head. The keys and values of the new tokens are in their pages already.
//
// Operations: 4 * head_dim for each row and visible key. Bytes: each tile reads 2 * head_dim * sizeof(T) for each key
// that any of its rows sees, and queries and answers once.
#include "attention.cuh"

constexpr u32 PREFILL_ROWS = 16 * ATTENTION_WARPS;

template <class T, u32 D> DEVICE void prefill(const AttentionArguments& a) {
    DYNAMIC_SHARED(memory);
    T* tiles = (T*)memory;
    SequenceOfStep sequence = a.sequences[a.work[2 * blockIdx.x]];
    u32 kv_head = blockIdx.y, group = a.heads / a.kv_heads;
    u32 rows = sequence.new_tokens * group, first_row = a.work[2 * blockIdx.x + 1];
    u32 last_row = (first_row + PREFILL_ROWS < rows ? first_row + PREFILL_ROWS : rows) - 1;
    u32 cached = sequence.context - sequence.new_tokens;
    // Positions that some row of the tile sees.
    u32 low = first_visible(cached + first_row / group, a.window), high = cached + last_row / group + 1;
    // All rows see from here to there.
    u32 all_low = first_visible(cached + last_row / group, a.window), all_high = cached + first_row / group + 1;

    u32 warp_row = first_row + warp_id() * 16, g = lane_id() / 4;
    Rows<T, D> state;
    state.begin([&](u32 r) {
        u32 row = warp_row + r;
        u64 token = sequence.first_token + row / group;
        const T* query = (const T*)a.queries + token * a.query_stride + (kv_head * group + row % group) * D;
        return row < rows ? query : (const T*)0;
    });
    u32 row_low[2], row_high[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = warp_row + g + half * 8;
        u32 position = cached + (row < rows ? row : last_row) / group;
        row_low[half] = first_visible(position, a.window);
        row_high[half] = position + 1;
    }

    const u32* table = a.block_tables + sequence.first_block;
    u32 start = low / TILE_KEYS * TILE_KEYS;
    auto fetch = [&](u32 first, u32 stage) {
        T* keys = tiles + stage * 2 * Shape<D>::TILE;
        copy_tile<T, D>(keys, (const T*)a.keys, a, table, kv_head, first, low, high);
        copy_tile<T, D>(keys + Shape<D>::TILE, (const T*)a.values, a, table, kv_head, first, low, high);
    };
    fetch(start, 0);
    copies_commit();
    u32 stage = 0;
    for (u32 first = start; first < high; first += TILE_KEYS) {
        if (first + TILE_KEYS < high) fetch(first + TILE_KEYS, stage ^ 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        const T* keys = tiles + stage * 2 * Shape<D>::TILE;
        bool masked = first < all_low || first + TILE_KEYS > all_high;
        state.template take<TILE_KEYS / 16>(keys, keys + Shape<D>::TILE, first, row_low, row_high, masked, a.scale);
        __syncthreads();
        stage ^= 1;
    }

    state.finish();
    u32 q = lane_id() % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = warp_row + g + half * 8;
        if (row >= rows) continue;
        float inverse = 1.0f / state.norm[half];
        u64 token = sequence.first_token + row / group;
        T* out = (T*)a.out + (token * a.heads + kv_head * group + row % group) * D;
#pragma unroll
        for (u32 d = 0; d < D / 8; d++)
            *(u32*)(out + d * 8 + 2 * q) =
                Number<T>::pair(state.sums[d][2 * half] * inverse, state.sums[d][2 * half + 1] * inverse);
    }
}

#define PREFILL_KERNELS(T, D)                                                                                          \
    KERNEL(prefill_##T##_##D, (AttentionArguments a)) { prefill<T, D>(a); }

PREFILL_KERNELS(bf16, 32)
PREFILL_KERNELS(bf16, 64)
PREFILL_KERNELS(bf16, 96)
PREFILL_KERNELS(bf16, 128)
PREFILL_KERNELS(f16, 32)
PREFILL_KERNELS(f16, 64)
PREFILL_KERNELS(f16, 96)
PREFILL_KERNELS(f16, 128)
