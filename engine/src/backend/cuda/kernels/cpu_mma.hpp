// Twins of what `mma.cuh` has in machine instructions: the same values in the same lanes, by plain loops.
#pragma once

namespace cpu_run {

// Element [row][column] of a matrix whose pairs the lanes hold: register `base` of lane row % 8 * 4 + column % 8 / 2.
template <class T> float element(const Warp& warp, u32 lane, u32 word, u32 odd) {
    u32 pair = (u32)warp.slots[lane].word[word];
    return odd ? Number<T>::high(pair) : Number<T>::low(pair);
}

template <class T> void multiply_warp(Warp& warp) {
    float a[16][16], b[16][8];
    for (u32 row = 0; row < 16; row++)
        for (u32 k = 0; k < 16; k++) a[row][k] = element<T>(warp, row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
    for (u32 k = 0; k < 16; k++)
        for (u32 n = 0; n < 8; n++) b[k][n] = element<T>(warp, n * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    for (u32 row = 0; row < 16; row++) {
        float c[8] = {};
        for (u32 k = 0; k < 16; k++)
            for (u32 n = 0; n < 8; n++) c[n] += a[row][k] * b[k][n];
        for (u32 n = 0; n < 8; n++)
            warp.results[row % 8 * 4 + n / 2].word[row / 8 * 2 + n % 2] = float_to_bits(c[n]);
    }
}

inline void load_warp(Warp& warp, bool transposed) {
    for (u32 lane = 0; lane < LANES; lane++)
        for (u32 matrix = 0; matrix < 4; matrix++) {
            auto at = [&](u32 row, u32 column) { return (u32)((const u16*)warp.slots[matrix * 8 + row].word[0])[column]; };
            u32 g = lane / 4, q = lane % 4;
            u32 low = transposed ? at(2 * q, g) : at(g, 2 * q);
            u32 high = transposed ? at(2 * q + 1, g) : at(g, 2 * q + 1);
            warp.results[lane].word[matrix] = low | high << 16;
        }
}

inline void load_four(u32 (&m)[4], const void* row, bool transposed) {
    CHECK_ALIGNED(row);
    Warp& warp = *current->warp;
    warp.slots[current->lane].word[0] = (u64)row;
    meet(warp.group, [&] { load_warp(warp, transposed); });
    for (u32 i = 0; i < 4; i++) m[i] = (u32)warp.results[current->lane].word[i];
}

}  // namespace cpu_run

template <class T> void multiply16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    cpu_run::Warp& warp = *cpu_run::current->warp;
    cpu_run::Slot& slot = warp.slots[cpu_run::current->lane];
    for (u32 i = 0; i < 4; i++) slot.word[i] = a[i];
    for (u32 i = 0; i < 2; i++) slot.word[4 + i] = b[i];
    cpu_run::meet(warp.group, [&] { cpu_run::multiply_warp<T>(warp); });
    for (u32 i = 0; i < 4; i++) c[i] += bits_to_float((u32)warp.results[cpu_run::current->lane].word[i]);
}

inline void load_matrices(u32 (&m)[4], const void* row) { cpu_run::load_four(m, row, false); }
inline void load_matrices_transposed(u32 (&m)[4], const void* row) { cpu_run::load_four(m, row, true); }

inline void copy16_begin(void* to, const void* from, bool there) {
    CHECK_ALIGNED(to);
    CHECK_ALIGNED(from);
    // Until it arrives there is nothing to be read.
    memset(to, cpu_run::POISON, 16);
    cpu_run::current->copies.back().push_back(cpu_run::Copy{to, from, there});
}

inline void copies_commit() { cpu_run::current->copies.emplace_back(); }

template <u32 PENDING> void copies_wait() {
    auto& copies = cpu_run::current->copies;
    while (copies.size() > PENDING + 1) {
        cpu_run::complete(copies.front());
        copies.pop_front();
    }
}
