// Queries, keys and values of new tokens made ready: bias added, heads normalised, rotated by position, keys and values
// stored in their pages.
//
//   qkv      [tokens, (heads + 2 * kv_heads) * head_dim] of T: queries, keys, values. Queries are changed in place; keys
//            and values are left as they were, and go to the pages.
//   bias     [(heads + 2 * kv_heads) * head_dim] of T, or null
//   q_norm, k_norm   [head_dim] of T, or null: RMS norm of each head before it is rotated
//   angles   [positions, rotated / 2] pairs of f32: cosine and sine, of which the host made a table (whatever the scaling,
//            it is in there). Element i < rotated / 2 of a head is rotated with element i + rotated / 2; elements from
//            `rotated` on are left alone. rotated is a multiple of 4.
//   keys, values     pages of one layer, [blocks, kv_heads, block_size, head_dim] of T
//   positions, slots [tokens]. Padding rows have slots of block 0, which nobody reads.
//
// Grid: one block for each token; each warp takes every so-many-th head. Bytes a token, with B = head_dim * sizeof(T):
// 2 B for each query head, 4 B for each key-value head, and the angles. Some 10 operations an element.
#include "prelude.cuh"

struct RopeArguments {
    void* qkv;
    const void* bias;
    const void* q_norm;
    const void* k_norm;
    const float* angles;
    const u32* positions;
    const u32* slots;
    void* keys;
    void* values;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 rotated;
    u32 block_log2;
    float eps;
};

constexpr u32 HEAD_DIM_MAX = 256;
// Pairs of elements that a lane holds of a head.
constexpr u32 PAIRS = HEAD_DIM_MAX / 2 / WARP;

// The pair of elements that a lane holds as its `i`th, as the index of the first; head_dim or more for none. Pairs come
// as (first, second) of a rotation: i even and i odd. What is not rotated follows.
DEVICE u32 element_of(u32 i, u32 head_dim, u32 rotated) {
    u32 half = rotated / 2;
    // In lanes of pairs: those of the first half, with their partners beside them, and then the rest.
    u32 index = (i / 2 * WARP + lane_id()) * 2;
    if (index < half) return i % 2 ? index + half : index;
    // What is left of the head is dealt out over the lanes that have no rotation at this i.
    u32 rest = (index - half) * 2 + (i % 2) * 2;
    return rotated + rest;
}

template <class T> DEVICE void finish_head(const RopeArguments& a, u32 token, u32 head) {
    T* row = (T*)a.qkv + ((u64)token * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
    const T* bias = a.bias ? (const T*)a.bias + head * a.head_dim : (const T*)0;
    bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
    u32 rotated = is_value ? 0 : a.rotated;
    u32 at[PAIRS];
    float x[PAIRS][2];
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        at[i] = element_of(i, a.head_dim, rotated);
        x[i][0] = x[i][1] = 0.0f;
        if (at[i] < a.head_dim) {
            u32 pair = *(const u32*)(row + at[i]);
            u32 add = bias ? *(const u32*)(bias + at[i]) : 0;
            x[i][0] = Number<T>::low(pair) + Number<T>::low(add);
            x[i][1] = Number<T>::high(pair) + Number<T>::high(add);
        }
        squares += x[i][0] * x[i][0] + x[i][1] * x[i][1];
    }
    const T* norm = (const T*)(is_query ? a.q_norm : a.k_norm);
    if (norm && !is_value) {
        float scale = 1.0f / sqrtf(warp_sum(squares) / (float)a.head_dim + a.eps);
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            u32 by = at[i] < a.head_dim ? *(const u32*)(norm + at[i]) : 0;
            x[i][0] = x[i][0] * scale * Number<T>::low(by);
            x[i][1] = x[i][1] * scale * Number<T>::high(by);
        }
    }
    const float* angles = a.angles + (u64)a.positions[token] * rotated;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i += 2) {
        if (at[i] * 2 >= rotated) continue;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            float cosine = angles[2 * (at[i] + j)], sine = angles[2 * (at[i] + j) + 1];
            float first = x[i][j], second = x[i + 1][j];
            x[i][j] = first * cosine - second * sine;
            x[i + 1][j] = second * cosine + first * sine;
        }
    }
    T* to = row;
    if (!is_query) {
        u32 slot = a.slots[token], block_size = 1u << a.block_log2;
        u32 kv_head = (head - a.heads) % a.kv_heads;
        u64 place = ((u64)(slot >> a.block_log2) * a.kv_heads + kv_head) * block_size + (slot & (block_size - 1));
        to = (T*)(is_value ? a.values : a.keys) + place * a.head_dim;
    }
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++)
        if (at[i] < a.head_dim) *(u32*)(to + at[i]) = Number<T>::pair(x[i][0], x[i][1]);
}

template <class T> DEVICE void finish_qkv(const RopeArguments& a) {
    for (u32 head = warp_id(); head < a.heads + 2 * a.kv_heads; head += blockDim.x / WARP)
        finish_head<T>(a, blockIdx.x, head);
}

KERNEL(finish_qkv_bf16, (RopeArguments a)) { finish_qkv<bf16>(a); }
KERNEL(finish_qkv_f16, (RopeArguments a)) { finish_qkv<f16>(a); }
