// CUDA's words as ordinary C++: what the kernels' text means when CPU_RUN is defined.
//
// Each thread of a block is a fiber with a stack of its own; blocks run one after the other on the calling thread. A fiber
// runs until it waits at a barrier or takes part in something that its whole warp does together, so threads interleave
// nowhere else; but the order in which they go is drawn from the launch's seed, so a barrier that is missing shows in
// some order. Shared memory begins as NaN in each block and has guards around each array, and asynchronous copies arrive when
// they are waited for and not a moment sooner. What this cannot show is a race that only an interleaving between two
// barriers has; compute-sanitizer is for those.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)

namespace cpu_run {

struct Dim {
    uint32_t x, y, z;
};

// What a launch says; `order` is the seed of the order in which threads go.
struct Launch {
    Dim grid, block;
    uint64_t shared_bytes;
    uint64_t order;
};

constexpr uint32_t LANES = 32;
constexpr size_t STACK = 256 << 10;
constexpr size_t GUARD = 64;
constexpr unsigned char POISON = 0xff;

// Threads that wait for each other.
struct Group {
    uint32_t members = 0, arrived = 0;
    uint64_t generation = 0;
};

// What a lane hands to its warp.
struct Slot {
    uint64_t word[8];
};

struct Warp {
    Group group;
    Slot slots[LANES];
    Slot results[LANES];
};

struct Copy {
    void* to;
    const void* from;
    bool there;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    jmp_buf at;
    bool started = false, done = false;
    Dim thread;
    uint32_t lane = 0;
    Warp* warp = nullptr;
    Group* waits_for = nullptr;
    uint64_t generation = 0;
    // Copies under way, the oldest group first; the last group is open.
    std::deque<std::vector<Copy>> copies;
};

struct Shared {
    const void* site;
    std::unique_ptr<unsigned char[]> memory;
    unsigned char* start;
    size_t bytes;
};

struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    Group block;
    jmp_buf scheduler;
    void (*body)(void*) = nullptr;
    void* body_argument = nullptr;
    Dim block_index, block_dim, grid_dim;
    std::vector<Shared> shared;
    size_t dynamic_bytes = 0;
    char error[200] = "";
};

inline thread_local Machine machine;
inline thread_local Fiber* current = nullptr;

inline void fail(const char* what) {
    if (machine.error[0]) return;
    Dim b = machine.block_index, t = current ? current->thread : Dim{0, 0, 0};
    snprintf(machine.error, sizeof machine.error, "%s; block %u,%u,%u thread %u", what, b.x, b.y, b.z, t.x);
}

// ---------------------------------------------------------------------------------------------- fibers

inline void yield() {
    Fiber* self = current;
    if (!_setjmp(self->at)) _longjmp(machine.scheduler, 1);
}

inline void leave(Group& group) {
    group.members--;
    if (group.members > 0 && group.arrived == group.members) {
        group.arrived = 0;
        group.generation++;
    }
}

// A fiber is used for one thread after the other.
inline void fiber_main() {
    for (;;) {
        machine.body(machine.body_argument);
        Fiber* self = current;
        self->copies.clear();
        self->done = true;
        if (self->warp->group.arrived > 0) fail("a thread left while its warp waits for it");
        leave(self->warp->group);
        leave(machine.block);
        yield();
    }
}

// The last one to come does `work`, before anybody goes on.
template <class Work> void meet(Group& group, Work work) {
    if (++group.arrived == group.members) {
        work();
        group.arrived = 0;
        group.generation++;
        return;
    }
    current->waits_for = &group;
    current->generation = group.generation;
    yield();
}

inline bool ready(const Fiber& fiber) {
    return !fiber.done && (!fiber.waits_for || fiber.waits_for->generation != fiber.generation);
}

// Its own function, because whatever lives across _setjmp is lost.
inline void run(Fiber* fiber) {
    fiber->waits_for = nullptr;
    current = fiber;
    if (!_setjmp(machine.scheduler)) {
        if (fiber->started) _longjmp(fiber->at, 1);
        fiber->started = true;
        setcontext(&fiber->context);
    }
    current = nullptr;
}

inline Fiber* fiber_number(size_t index) {
    while (machine.fibers.size() <= index) {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack.reset(new char[STACK]);
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get();
        fiber->context.uc_stack.ss_size = STACK;
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, fiber_main, 0);
        machine.fibers.push_back(std::move(fiber));
    }
    return machine.fibers[index].get();
}

inline void check_guards() {
    for (const Shared& shared : machine.shared)
        for (size_t i = 0; i < GUARD; i++)
            if (shared.start[-1 - (ptrdiff_t)i] != POISON || shared.start[shared.bytes + i] != POISON)
                fail("shared memory was written outside of an array");
}

inline void run_block(uint32_t threads, std::mt19937_64& order) {
    uint32_t warps = threads / LANES;
    machine.warps.assign(warps, Warp());
    machine.block = Group();
    machine.block.members = threads;
    machine.shared.clear();
    for (uint32_t t = 0; t < threads; t++) {
        Fiber* fiber = fiber_number(t);
        fiber->done = false;
        fiber->waits_for = nullptr;
        fiber->thread = Dim{t, 0, 0};
        fiber->lane = t % LANES;
        fiber->warp = &machine.warps[t / LANES];
        fiber->warp->group.members++;
        fiber->copies.assign(1, {});
    }
    std::vector<uint32_t> warp_order(warps), lane_order(LANES);
    std::iota(warp_order.begin(), warp_order.end(), 0);
    std::iota(lane_order.begin(), lane_order.end(), 0);
    std::shuffle(warp_order.begin(), warp_order.end(), order);
    std::shuffle(lane_order.begin(), lane_order.end(), order);
    for (bool more = true; more && !machine.error[0];) {
        bool progress = false;
        more = false;
        for (uint32_t warp : warp_order) {
            for (bool again = true; again;) {
                again = false;
                for (uint32_t lane : lane_order) {
                    Fiber* fiber = machine.fibers[warp * LANES + lane].get();
                    if (!ready(*fiber)) continue;
                    run(fiber);
                    again = progress = true;
                }
            }
            for (uint32_t lane : lane_order) more |= !machine.fibers[warp * LANES + lane]->done;
        }
        if (more && !progress) fail("threads wait for each other at different places");
    }
    check_guards();
    // After a failure fibers hang in the middle of a kernel: they are of no further use.
    if (machine.error[0]) machine.fibers.clear();
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<A>*)arguments[I]...);
}

// Runs a kernel; null, or what went wrong. Arguments are pointers to their values, as cuLaunchKernel has them.
template <class... A> const char* launch(void (*kernel)(A...), const Launch& launch, void** arguments) {
    machine.error[0] = 0;
    if (launch.block.x % LANES || launch.block.x > 1024 || launch.block.y != 1 || launch.block.z != 1)
        return "blocks are rows of whole warps, of at most 1024 threads";
    struct Body {
        void (*kernel)(A...);
        void** arguments;
    } body{kernel, arguments};
    machine.body_argument = &body;
    machine.body = [](void* argument) {
        Body* body = (Body*)argument;
        call(body->kernel, body->arguments, std::index_sequence_for<A...>());
    };
    machine.block_dim = launch.block;
    machine.grid_dim = launch.grid;
    machine.dynamic_bytes = launch.shared_bytes;
    std::mt19937_64 order(launch.order);
    for (uint32_t z = 0; z < launch.grid.z; z++)
        for (uint32_t y = 0; y < launch.grid.y; y++)
            for (uint32_t x = 0; x < launch.grid.x; x++) {
                machine.block_index = Dim{x, y, z};
                run_block(launch.block.x, order);
                if (machine.error[0]) return machine.error;
            }
    return nullptr;
}

// The block's memory for one declaration.
inline void* shared_at(const void* site, size_t bytes) {
    for (Shared& shared : machine.shared)
        if (shared.site == site) return shared.start;
    Shared shared{site, std::unique_ptr<unsigned char[]>(new unsigned char[bytes + 2 * GUARD + 16]), nullptr, bytes};
    memset(shared.memory.get(), POISON, bytes + 2 * GUARD + 16);
    uintptr_t first = (uintptr_t)shared.memory.get() + GUARD;
    shared.start = (unsigned char*)((first + 15) / 16 * 16);
    void* start = shared.start;
    machine.shared.push_back(std::move(shared));
    return start;
}

inline const char DYNAMIC = 0;

inline void complete(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
        if (copy.there) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    copies.clear();
}

// Hands a value to the warp and takes another lane's; `from` says whose.
template <class N, class From> N exchange(N x, From from) {
    static_assert(sizeof(N) <= 8);
    Warp& warp = *current->warp;
    memcpy(&warp.slots[current->lane], &x, sizeof x);
    meet(warp.group, [&] {
        for (uint32_t lane = 0; lane < LANES; lane++) warp.results[lane] = warp.slots[from(lane) % LANES];
    });
    N result;
    memcpy(&result, &warp.results[current->lane], sizeof result);
    return result;
}

}  // namespace cpu_run

#define KERNEL(name, parameters)                                                                                        \
    static void name parameters;                                                                                        \
    extern "C" const char* run_##name(const cpu_run::Launch* launch, void** arguments) {                                \
        return cpu_run::launch(name, *launch, arguments);                                                               \
    }                                                                                                                   \
    static void name parameters

#define SHARED(type, name, count)                                                                                       \
    static char name##_site;                                                                                            \
    type* const name = (type*)cpu_run::shared_at(&name##_site, sizeof(type) * (count))
#define DYNAMIC_SHARED(name) u8* const name = (u8*)cpu_run::shared_at(&cpu_run::DYNAMIC, cpu_run::machine.dynamic_bytes)
#define CHECK_ALIGNED(pointer) \
    if ((uintptr_t)(pointer) % 16) cpu_run::fail("16 bytes at an address that is no multiple of 16")

#define threadIdx (cpu_run::current->thread)
#define blockIdx (cpu_run::machine.block_index)
#define blockDim (cpu_run::machine.block_dim)
#define gridDim (cpu_run::machine.grid_dim)

// ---------------------------------------------------------------------------------------------- what CUDA has built in

inline void __syncthreads() { cpu_run::meet(cpu_run::machine.block, [] {}); }

template <class N> N __shfl_xor_sync(u32, N x, u32 mask) {
    return cpu_run::exchange(x, [=](u32 lane) { return lane ^ mask; });
}
template <class N> N __shfl_up_sync(u32, N x, u32 by) {
    return cpu_run::exchange(x, [=](u32 lane) { return lane >= by ? lane - by : lane; });
}
inline u32 __ballot_sync(u32, bool x) {
    cpu_run::Warp& warp = *cpu_run::current->warp;
    warp.slots[cpu_run::current->lane].word[0] = x;
    cpu_run::meet(warp.group, [&] {
        u64 bits = 0;
        for (u32 lane = 0; lane < cpu_run::LANES; lane++) bits |= warp.slots[lane].word[0] << lane;
        for (u32 lane = 0; lane < cpu_run::LANES; lane++) warp.results[lane].word[0] = bits;
    });
    return (u32)warp.results[cpu_run::current->lane].word[0];
}

template <class N> N atomicAdd(N* at, N x) { N old = *at; *at = old + x; return old; }
inline u32 atomicOr(u32* at, u32 x) { u32 old = *at; *at = old | x; return old; }
inline u32 atomicExch(u32* at, u32 x) { u32 old = *at; *at = x; return old; }

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((u32)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

// ---------------------------------------------------------------------------------------------- twins of prelude.cuh's

inline float bits_to_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
inline u32 float_to_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }
inline float exp2_fast(float x) { float y = exp2f(x); return y < 1.17549435e-38f ? 0.0f : y; }

inline u32 bf16_bits(float x) {
    u32 bits = float_to_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline u32 f16_bits(float x) {
    if (x != x) return 0x7fff;
    u32 sign = float_to_bits(x) >> 16 & 0x8000;
    float size = fabsf(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    // Below 2^-14 the unit is 2^-24; rintf rounds halves to even.
    if (size < 6.103515625e-5f) return sign | (u32)rintf(size * 16777216.0f);
    u32 bits = float_to_bits(size) + 0xfff + (float_to_bits(size) >> 13 & 1);
    return sign | ((bits >> 13) - (112 << 10));
}

inline float f16_to_float(u16 bits) {
    u32 exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent ? ldexpf((float)(fraction + 1024), (int)exponent - 25)
                            : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -size : size;
}

inline u32 floats_to_f16s(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }
inline u32 floats_to_bf16s(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
inline u32 multiply_bf16s(u32 a, u32 b) {
    return floats_to_bf16s(bits_to_float(a << 16) * bits_to_float(b << 16),
                           bits_to_float(a & 0xffff0000u) * bits_to_float(b & 0xffff0000u));
}
inline u32 multiply_f16s(u32 a, u32 b) {
    return floats_to_f16s(f16_to_float((u16)a) * f16_to_float((u16)b),
                          f16_to_float((u16)(a >> 16)) * f16_to_float((u16)(b >> 16)));
}
