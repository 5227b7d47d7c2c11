// Scales of 8-bit weights: one for the whole matrix, one for each row (output channel), or one for each 128 x 128 block.
// All are f32; blocks lie as [ceil(n / 128), ceil(k / 128)].
#pragma once
#include "prelude.cuh"

constexpr u32 UNSCALED = 0;
constexpr u32 PER_TENSOR = 1;
constexpr u32 PER_CHANNEL = 2;
constexpr u32 PER_BLOCK = 3;
constexpr u32 SCALE_BLOCK = 128;

// The scale of element (row, column) of a matrix whose rows have k elements.
DEVICE float scale_of(const float* scales, u32 scaling, u32 row, u32 column, u32 k) {
    if (scaling == PER_TENSOR) return scales[0];
    if (scaling == PER_CHANNEL) return scales[row];
    if (scaling == PER_BLOCK) return scales[row / SCALE_BLOCK * ((k + SCALE_BLOCK - 1) / SCALE_BLOCK) + column / SCALE_BLOCK];
    return 1.0f;
}

// Four e4m3 as two pairs of T, in their order.
template <class T> DEVICE void widen_four(u32 bytes, u32 (&pairs)[2]) {
    // Bytes b0, b1 to the high bytes of two halves: 0x b1 00 b0 00.
    pairs[0] = Number<T>::from_e4m3s(((bytes & 0x000000ffu) << 8) | ((bytes & 0x0000ff00u) << 16));
    pairs[1] = Number<T>::from_e4m3s(((bytes & 0x00ff0000u) >> 8) | (bytes & 0xff000000u));
}
