// The gate of a feed-forward network, and weights of 8 bits made wide.
//
//   silu_multiply   out[r, i] = silu(gate_up[r, i]) * gate_up[r, inner + i];  gate_up is [rows, 2 * inner] of T, gates
//                   before ups, out [rows, inner] of T; inner is a multiple of 8
//   widen_e4m3      out[n, k] = weight[n, k] * scale, [n, k] of T from e4m3, for products too large for `skinny.cu`
//
// silu(x) = x / (1 + e^-x), in f32. Grid: blocks over 8 elements a thread, any number of them.
// Bytes: 3 * rows * inner * sizeof(T), some 10 operations an element; 3 n k, one operation an element.
#include "prelude.cuh"
#include "scales.cuh"

template <class T> DEVICE void silu_multiply(T* out, const T* gate_up, u32 rows, u32 inner) {
    u64 count = (u64)rows * inner;
    u64 step = (u64)gridDim.x * blockDim.x * PACKED;
    for (u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACKED; at < count; at += step) {
        const T* gates = gate_up + at / inner * 2 * inner + at % inner;
        float gate[PACKED], up[PACKED];
        unpack<T>(load16(gates), gate);
        unpack<T>(load16(gates + inner), up);
#pragma unroll
        for (u32 j = 0; j < PACKED; j++) gate[j] = gate[j] / (1.0f + exp2_fast(-gate[j] * 1.44269504f)) * up[j];
        store16(out + at, pack<T>(gate));
    }
}

template <class T>
DEVICE void widen_e4m3(T* out, const e4m3* weight, const float* scales, u32 scaling, u32 n, u32 k) {
    u64 count = (u64)n * k;
    u64 step = (u64)gridDim.x * blockDim.x * PACKED;
    for (u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACKED; at < count; at += step) {
        float scale = scale_of(scales, scaling, (u32)(at / k), (u32)(at % k), k);
        const u32* bytes = (const u32*)(weight + at);
        float x[PACKED];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 pairs[2];
            widen_four<T>(bytes[i], pairs);
            x[4 * i] = Number<T>::low(pairs[0]) * scale;
            x[4 * i + 1] = Number<T>::high(pairs[0]) * scale;
            x[4 * i + 2] = Number<T>::low(pairs[1]) * scale;
            x[4 * i + 3] = Number<T>::high(pairs[1]) * scale;
        }
        store16(out + at, pack<T>(x));
    }
}

#define ACTIVATION_KERNELS(T)                                                                                          \
    KERNEL(silu_multiply_##T, (T * out, const T* gate_up, u32 rows, u32 inner)) {                                      \
        silu_multiply<T>(out, gate_up, rows, inner);                                                                   \
    }                                                                                                                  \
    KERNEL(widen_e4m3_##T, (T * out, const e4m3* weight, const float* scales, u32 scaling, u32 n, u32 k)) {            \
        widen_e4m3<T>(out, weight, scales, scaling, n, k);                                                             \
    }

ACTIVATION_KERNELS(bf16)
ACTIVATION_KERNELS(f16)
