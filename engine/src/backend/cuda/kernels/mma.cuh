// Products of small matrices on the tensor cores, and copies to shared memory that run on their own (sm_80 and later).
//
// multiply16x8x16 adds A·B to C, for A [16, 16] and B [16, 8] of T and C [16, 8] of f32, spread over a warp. With
// g = lane / 4 and q = lane % 4, a lane holds
//
//   a[0], a[1]   A[g, 2q..2q+1], A[g + 8, 2q..2q+1]        b[0]         B[2q..2q+1, g]
//   a[2], a[3]   the same, 8 columns further               b[1]         the same, 8 rows further
//   c[0], c[1]   C[g, 2q..2q+1]                            c[2], c[3]   C[g + 8, 2q..2q+1]
//
// load_matrices reads four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8
// (16 bytes) of matrix l / 8, and gets of each matrix the pair [g, 2q..2q+1]; transposed, the pair [2q..2q+1, g].
#pragma once
#include "prelude.cuh"

#ifdef CPU_RUN
#include "cpu_mma.hpp"
#else
template <class T> DEVICE void multiply16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]);

template <> DEVICE void multiply16x8x16<bf16>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <> DEVICE void multiply16x8x16<f16>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void load_matrices(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void load_matrices_transposed(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(row)) : "memory");
}

// Begins a copy of 16 bytes to shared memory, or of zeros when not `there`; then nothing is read, but `from` must still
// be an address of device memory.
DEVICE void copy16_begin(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Ends a group of copies that are waited for together.
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until no more than `PENDING` of this thread's groups, the latest, are under way.
template <u32 PENDING> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }
#endif
