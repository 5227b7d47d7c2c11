// What every kernel begins with: number types, 16-byte loads, reductions over a warp and over a block.
//
// Kernels include nothing but the files of this folder, so that NVRTC compiles them without a toolkit's headers. With
// CPU_RUN defined the same text is ordinary C++ and runs on the CPU: `cpu_run.hpp` has what is CUDA's there. Machine
// instructions are written in this file and in `mma.cuh` alone, each beside a twin in `cpu_run.hpp`.
//
// Words used throughout:
//   row        one token's vector of activations; rows are `width` elements long and lie one after the other
//   slot       where a token's key and value lie: block * block_size + offset
//   16 bytes   what one thread loads at a time: 8 elements of bf16 or f16, 16 of e4m3. Widths are multiples of it.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef CPU_RUN
#include "cpu_run.hpp"
#else
#define DEVICE __device__ __forceinline__
#define KERNEL(name, parameters) extern "C" __global__ void name parameters
// Memory of a block; `name` is a pointer to the first of `count` elements.
#define SHARED(type, name, count) __shared__ __align__(16) type name##_memory[count]; type* const name = name##_memory
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]
#define CHECK_ALIGNED(pointer)
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 NONE = 0xffffffffu;

// ---------------------------------------------------------------------------------------------- number types

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
// 4 bits of exponent, 3 of mantissa. 0x7f and 0xff are not numbers; whoever loads weights refuses them, for here they
// count as 480 and -480.
struct e4m3 { u8 bits; };

#ifndef CPU_RUN
DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }
DEVICE float f16_to_float(u16 bits) { float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits)); return x; }
DEVICE u32 floats_to_f16s(float low, float high) {
    u32 pair; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low)); return pair;
}
DEVICE u32 floats_to_bf16s(float low, float high) {
    u32 pair; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low)); return pair;
}
// Products of two pairs, rounded once. Without subtraction of nothing, since sm_80 has no plain product of bf16.
DEVICE u32 multiply_bf16s(u32 a, u32 b) {
    u32 product; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u)); return product;
}
DEVICE u32 multiply_f16s(u32 a, u32 b) {
    u32 product; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b)); return product;
}
// 2^x within two units in the last place; 0 for results below the normal numbers.
DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
#endif

// Minus infinity: the logit of what cannot come, the score of what is not seen.
DEVICE float never() { return bits_to_float(0xff800000u); }

template <class T> struct Number;

template <> struct Number<bf16> {
    static DEVICE float low(u32 pair) { return bits_to_float(pair << 16); }
    static DEVICE float high(u32 pair) { return bits_to_float(pair & 0xffff0000u); }
    static DEVICE u32 pair(float low, float high) { return floats_to_bf16s(low, high); }
    // Two e4m3 in the high bytes of the halves of `bytes`: their exponents come out 120 too small.
    static DEVICE u32 from_e4m3s(u32 bytes) {
        u32 small = (bytes & 0x80008000u) | ((bytes & 0x7f007f00u) >> 4);
        return multiply_bf16s(small, 0x7b807b80u);
    }
};

template <> struct Number<f16> {
    static DEVICE float low(u32 pair) { return f16_to_float((u16)(pair & 0xffffu)); }
    static DEVICE float high(u32 pair) { return f16_to_float((u16)(pair >> 16)); }
    static DEVICE u32 pair(float low, float high) { return floats_to_f16s(low, high); }
    // Here the exponents come out 8 too small.
    static DEVICE u32 from_e4m3s(u32 bytes) {
        u32 small = (bytes & 0x80008000u) | ((bytes & 0x7f007f00u) >> 1);
        return multiply_f16s(small, 0x5c005c00u);
    }
};

template <class T> DEVICE float widen(T x) { return Number<T>::low((u32)x.bits); }
template <class T> DEVICE T narrow(float x) { return T{(u16)(Number<T>::pair(x, 0.0f) & 0xffffu)}; }

// ---------------------------------------------------------------------------------------------- 16 bytes

struct alignas(16) Pack { u32 word[4]; };
constexpr u32 PACKED = 8;

template <class T> DEVICE Pack load16(const T* from) {
    CHECK_ALIGNED(from);
    return *(const Pack*)from;
}
template <class T> DEVICE void store16(T* to, Pack pack) {
    CHECK_ALIGNED(to);
    *(Pack*)to = pack;
}

#ifdef CPU_RUN
DEVICE Pack load16_once(const void* from) { return load16((const u8*)from); }
#else
// For what is read once: weights. They leave the caches to what is read again.
DEVICE Pack load16_once(const void* from) {
    Pack p;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.word[0]), "=r"(p.word[1]), "=r"(p.word[2]), "=r"(p.word[3]) : "l"(from));
    return p;
}
#endif

DEVICE Pack zero_pack() { return Pack{{0, 0, 0, 0}}; }

template <class T> DEVICE void unpack(Pack pack, float (&x)[PACKED]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[2 * i] = Number<T>::low(pack.word[i]);
        x[2 * i + 1] = Number<T>::high(pack.word[i]);
    }
}

template <class T> DEVICE Pack pack(const float (&x)[PACKED]) {
    Pack result;
#pragma unroll
    for (u32 i = 0; i < 4; i++) result.word[i] = Number<T>::pair(x[2 * i], x[2 * i + 1]);
    return result;
}

// ---------------------------------------------------------------------------------------------- reductions

DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }

// The sum over the lanes of a warp, the same in all of them. All must call.
template <class N> DEVICE N warp_sum(N x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The sum over a block of whole warps, the same in all its threads. `scratch` has 32 elements; all must call, and may
// call again with the same scratch.
template <class N> DEVICE N block_sum(N x, N* scratch) {
    x = warp_sum(x);
    u32 warps = blockDim.x / WARP;
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    N sum = lane_id() < warps ? scratch[lane_id()] : (N)0;
    return warp_sum(sum);
}
