// y = x·wᵀ for few rows of x: what a decode step spends its time on. The weights are read once, at the speed of memory.
//
//   x        [m, k] of T, rows `x_stride` apart; m is at most 8 or 16
//   weight   [n, k] of T or e4m3, row-major as checkpoints have it; k is a multiple of 8 (of 16 for e4m3)
//   scales   of e4m3 weights, see `scales.cuh`; blocks are 128 x 128
//   y        [m, n] of T or f32, rows `y_stride` apart; with `add` it is added to, which is how an adapter's second
//            product would come on top of the first
//
// Grid: one block for 16 columns of y (rows of weight), 256 threads: 8 warps share k among them and add up at the end.
//
// Weights take the left side of a tensor core's product: 16 rows of weight by 16 of k, against 8 rows of x. What the
// lanes hold of k is permuted, in x as in weight: a lane with q = lane % 4 takes 16 bytes from column 16 bytes * q, so
// that each load is 16 bytes wide and goes to registers directly. A sum does not mind the order.
//
// Bytes: n * k * sizeof(weight) from memory; x comes from the caches, m / 16 as many for each block. Operations:
// 2 m n k asked for, 2 * 8 * ceil(m / 8) * n * k done.
#include "mma.cuh"
#include "scales.cuh"

struct SkinnyArguments {
    void* y;
    const void* x;
    const void* weight;
    const float* scales;
    u32 m, n, k;
    u32 x_stride, y_stride;
    u32 scaling;
    u32 add;
};

constexpr u32 SKINNY_WARPS = 8;
constexpr u32 SKINNY_COLUMNS = 16;
// Elements of k that a warp takes in one turn, over all of its loads in flight.
constexpr u32 TURN = 128;

// 16 bytes of a row at column `at`, or zeros outside of the matrix.
template <class W> DEVICE Pack weight_at(const W* row, u32 at, u32 k, bool there) {
    return there && at < k ? load16_once(row + at) : zero_pack();
}

template <class T> DEVICE Pack x_at(const T* row, u32 at, u32 k, bool there) {
    return there && at < k ? load16(row + at) : zero_pack();
}

// One turn over weights of T: four times 32 of k.
template <class T, u32 TOKENS>
DEVICE void take_turn(float (&sum)[TOKENS][4], const T* const (&row)[2], const T* const (&x)[TOKENS], u32 first, u32 k,
                      const bool (&row_there)[2], const bool (&x_there)[TOKENS]) {
    u32 q = lane_id() % 4;
    Pack w[4][2];
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 2; j++) w[i][j] = weight_at(row[j], first + i * 32 + q * 8, k, row_there[j]);
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
            Pack b = x_at(x[t], first + i * 32 + q * 8, k, x_there[t]);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 left[4] = {w[i][0].word[2 * half], w[i][1].word[2 * half], w[i][0].word[2 * half + 1],
                               w[i][1].word[2 * half + 1]};
                u32 right[2] = {b.word[2 * half], b.word[2 * half + 1]};
                multiply16x8x16<T>(sum[t], left, right);
            }
        }
}

// One turn over weights of e4m3: twice 64 of k, widened on the way.
template <class T, u32 TOKENS>
DEVICE void take_turn(float (&sum)[TOKENS][4], const e4m3* const (&row)[2], const T* const (&x)[TOKENS], u32 first,
                      u32 k, const bool (&row_there)[2], const bool (&x_there)[TOKENS]) {
    u32 q = lane_id() % 4;
    Pack w[2][2];
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 j = 0; j < 2; j++) w[i][j] = weight_at(row[j], first + i * 64 + q * 16, k, row_there[j]);
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            u32 upper[2], lower[2];
            widen_four<T>(w[i][0].word[part], upper);
            widen_four<T>(w[i][1].word[part], lower);
            u32 left[4] = {upper[0], lower[0], upper[1], lower[1]};
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                u32 at = first + i * 64 + q * 16 + part * 4;
                u32 right[2] = {0, 0};
                if (x_there[t] && at < k) {
                    right[0] = *(const u32*)(x[t] + at);
                    right[1] = *(const u32*)(x[t] + at + 2);
                }
                multiply16x8x16<T>(sum[t], left, right);
            }
        }
}

template <class Y> DEVICE Y as_output(float x);
template <> DEVICE float as_output<float>(float x) { return x; }
template <> DEVICE bf16 as_output<bf16>(float x) { return narrow<bf16>(x); }
template <> DEVICE f16 as_output<f16>(float x) { return narrow<f16>(x); }
DEVICE float as_float(float x) { return x; }
DEVICE float as_float(bf16 x) { return widen(x); }
DEVICE float as_float(f16 x) { return widen(x); }

// Adds up what the warps have and writes it.
template <class Y, u32 TOKENS> DEVICE void write_columns(const SkinnyArguments& a, const float (&sum)[TOKENS][4]) {
    constexpr u32 EACH = SKINNY_COLUMNS * 8 * TOKENS;
    SHARED(float, parts, SKINNY_WARPS * EACH);
    u32 g = lane_id() / 4, q = lane_id() % 4;
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++)
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            parts[warp_id() * EACH + (t * 8 + 2 * q + i % 2) * SKINNY_COLUMNS + g + i / 2 * 8] = sum[t][i];
    __syncthreads();
    for (u32 i = threadIdx.x; i < EACH; i += SKINNY_WARPS * WARP) {
        u32 token = i / SKINNY_COLUMNS, column = blockIdx.x * SKINNY_COLUMNS + i % SKINNY_COLUMNS;
        if (token >= a.m || column >= a.n) continue;
        float total = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < SKINNY_WARPS; warp++) total += parts[warp * EACH + i];
        if (a.scaling == PER_TENSOR || a.scaling == PER_CHANNEL)
            total *= scale_of(a.scales, a.scaling, column, 0, a.k);
        Y* y = (Y*)a.y + (u64)token * a.y_stride + column;
        *y = as_output<Y>(a.add ? as_float(*y) + total : total);
    }
}

template <class T, class W, class Y, u32 TOKENS> DEVICE void skinny(const SkinnyArguments& a) {
    u32 g = lane_id() / 4;
    const W* row[2];
    const T* x[TOKENS];
    bool row_there[2], x_there[TOKENS];
    float sum[TOKENS][4];
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        u32 column = blockIdx.x * SKINNY_COLUMNS + g + 8 * j;
        row_there[j] = column < a.n;
        row[j] = (const W*)a.weight + (row_there[j] ? (u64)column * a.k : 0);
    }
#pragma unroll
    for (u32 t = 0; t < TOKENS; t++) {
        x_there[t] = t * 8 + g < a.m;
        x[t] = (const T*)a.x + (x_there[t] ? (u64)(t * 8 + g) * a.x_stride : 0);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[t][i] = 0.0f;
    }
    for (u32 first = warp_id() * TURN; first < a.k; first += SKINNY_WARPS * TURN) {
        if (a.scaling == PER_BLOCK) {
            // A turn is as long as a block of scales, and begins where one begins.
            float part[TOKENS][4] = {};
            take_turn(part, row, x, first, a.k, row_there, x_there);
            float scale = scale_of(a.scales, PER_BLOCK, blockIdx.x * SKINNY_COLUMNS, first, a.k);
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) sum[t][i] += part[t][i] * scale;
        } else {
            take_turn(sum, row, x, first, a.k, row_there, x_there);
        }
    }
    write_columns<Y, TOKENS>(a, sum);
}

// skinny_{T}_{weight}_{y}_{rows}
#define SKINNY_KERNELS(T, W, Y)                                                                                        \
    KERNEL(skinny_##T##_##W##_##Y##_8, (SkinnyArguments a)) { skinny<T, W, Y, 1>(a); }                                 \
    KERNEL(skinny_##T##_##W##_##Y##_16, (SkinnyArguments a)) { skinny<T, W, Y, 2>(a); }

SKINNY_KERNELS(bf16, bf16, bf16)
SKINNY_KERNELS(bf16, bf16, float)
SKINNY_KERNELS(bf16, e4m3, bf16)
SKINNY_KERNELS(bf16, e4m3, float)
SKINNY_KERNELS(f16, f16, f16)
SKINNY_KERNELS(f16, f16, float)
SKINNY_KERNELS(f16, e4m3, f16)
SKINNY_KERNELS(f16, e4m3, float)
