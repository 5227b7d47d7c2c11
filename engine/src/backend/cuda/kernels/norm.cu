// Rows and their RMS norms: embedding, and the sum of residual stream and a layer's answer.
//
//   embed_norm   hidden[r] = table[token of r];            normed[r] = rms(hidden[r]) * weight
//   add_norm     hidden[r] = hidden[r] + delta[r];         normed[r] = rms(hidden[r]) * weight
//   gather_norm  normed[r] = rms(hidden[rows[r]] + delta[rows[r]]) * weight, of the rows that somebody asks for
//
// rms(x) = x / sqrt(mean(x²) + eps), in f32 over the values as stored (rounded to T). Everything else is [rows, width] of
// T, contiguous; weight is [width] of T. width is a multiple of 8.
//
// Grid: one block for each row. Dynamic shared memory: width elements of T, where a row waits for its sum.
// Bytes a row, with B = width * sizeof(T): embed_norm 4 B (table, hidden, normed, and weight from L2), add_norm 4 B
// and weight, gather_norm 3 B and weight. Some 5 operations an element: the memory decides.
#include "prelude.cuh"

// Scales the block's row, which its threads hold in `row` each where it wrote it, to its norm.
template <class T>
DEVICE void write_norm(const T* row, float squares, const T* weight, T* normed, u32 width, float eps) {
    SHARED(float, scratch, 32);
    float scale = 1.0f / sqrtf(block_sum(squares, scratch) / (float)width + eps);
    for (u32 i = threadIdx.x * PACKED; i < width; i += blockDim.x * PACKED) {
        float x[PACKED], by[PACKED];
        unpack<T>(load16(row + i), x);
        unpack<T>(load16(weight + i), by);
#pragma unroll
        for (u32 j = 0; j < PACKED; j++) x[j] = x[j] * scale * by[j];
        store16(normed + i, pack<T>(x));
    }
}

template <class T> DEVICE float square_sum(Pack values) {
    float x[PACKED], sum = 0.0f;
    unpack<T>(values, x);
#pragma unroll
    for (u32 j = 0; j < PACKED; j++) sum += x[j] * x[j];
    return sum;
}

// tokens[r] is the row's token, unless sources[r] says where among `sampled` of the step before it is found: a token
// that the host has not seen yet. What is no token of the vocabulary (a row that had none to sample) is a row of zeros.
template <class T>
DEVICE void embed_norm(T* hidden, T* normed, const u32* tokens, const u32* sources, const u32* sampled, const T* table,
                       const T* weight, u32 width, u32 vocabulary, float eps) {
    DYNAMIC_SHARED(memory);
    T* row = (T*)memory;
    u32 r = blockIdx.x;
    u32 source = sources ? sources[r] : NONE;
    u32 token = source == NONE ? tokens[r] : sampled[source];
    float squares = 0.0f;
    for (u32 i = threadIdx.x * PACKED; i < width; i += blockDim.x * PACKED) {
        Pack values = token < vocabulary ? load16(table + (u64)token * width + i) : zero_pack();
        store16(row + i, values);
        store16(hidden + (u64)r * width + i, values);
        squares += square_sum<T>(values);
    }
    write_norm(row, squares, weight, normed + (u64)r * width, width, eps);
}

// `from` is the row of hidden and delta, `to` that of normed. Without `kept` the sum itself is not stored.
template <class T>
DEVICE void add_norm(const T* hidden, T* kept, T* normed, const T* delta, const T* weight, u32 from, u32 to, u32 width,
                     float eps) {
    DYNAMIC_SHARED(memory);
    T* row = (T*)memory;
    u64 first = (u64)from * width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x * PACKED; i < width; i += blockDim.x * PACKED) {
        float x[PACKED], y[PACKED];
        unpack<T>(load16(hidden + first + i), x);
        unpack<T>(load16(delta + first + i), y);
#pragma unroll
        for (u32 j = 0; j < PACKED; j++) x[j] += y[j];
        Pack sum = pack<T>(x);
        store16(row + i, sum);
        if (kept) store16(kept + first + i, sum);
        squares += square_sum<T>(sum);
    }
    write_norm(row, squares, weight, normed + (u64)to * width, width, eps);
}

#define NORM_KERNELS(T)                                                                                                \
    KERNEL(embed_norm_##T, (T * hidden, T * normed, const u32* tokens, const u32* sources, const u32* sampled,         \
                            const T* table, const T* weight, u32 width, u32 vocabulary, float eps)) {                  \
        embed_norm<T>(hidden, normed, tokens, sources, sampled, table, weight, width, vocabulary, eps);                \
    }                                                                                                                  \
    KERNEL(add_norm_##T, (T * hidden, T * normed, const T* delta, const T* weight, u32 width, float eps)) {            \
        add_norm<T>(hidden, hidden, normed, delta, weight, blockIdx.x, blockIdx.x, width, eps);                        \
    }                                                                                                                  \
    KERNEL(gather_norm_##T, (T * normed, const T* hidden, const T* delta, const u32* rows, const T* weight, u32 width, \
                             float eps)) {                                                                             \
        add_norm<T>(hidden, (T*)0, normed, delta, weight, rows[blockIdx.x], blockIdx.x, width, eps);                   \
    }

NORM_KERNELS(bf16)
NORM_KERNELS(f16)
