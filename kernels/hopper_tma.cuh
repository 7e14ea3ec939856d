// Hopper's asynchronous machinery as inline PTX (sm_90a): barriers in shared memory that count bytes, the bulk tensor copy engine (TMA), clusters of
// blocks that reach into each other's shared memory, and the proxy fences between ordinary accesses and the engine's.
//
// A barrier here has a phase that flips each time when all arrivals, and all bytes that were announced, have come; a waiter names the parity of
// the phase whose end it waits for.
#pragma once
#include "early.cuh"
#include "tile.cuh"

// What the driver's cuTensorMapEncodeTiled makes: a matrix in memory, the box that one copy moves, the swizzle. Passed by value.
struct alignas(64) TensorMap {
    u8 opaque[128];
};

DEVICE void barrier_init(u32 barrier, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory"); }
// Arrives, and announces bytes that copies will bring.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// Arrives at the same barrier of block `rank` of the cluster. With no scope named: `.release.cluster` here, and `.acquire.cluster` in the wait, would each
// flush or empty L1 (MEMBAR, CCTL in the machine code) every stage, and only copies and wgmma touch what these barriers guard.
DEVICE void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier), "r"(rank)
                 : "memory");
}
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra.uni over;\nbra.uni again;\nover:\n}" ::"r"(barrier), "r"(parity)
                 : "memory");
}

// Copies a box to shared memory; `barrier` hears of its bytes. Coordinates innermost first; elements outside the matrix arrive as zeros.
DEVICE void tma_load(u32 dst, const TensorMap &map, u32 barrier, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1) : "memory");
}
DEVICE void tma_load(u32 dst, const TensorMap &map, u32 barrier, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEVICE void tma_load(u32 dst, const TensorMap &map, u32 barrier, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2),
                 "r"(c3) : "memory");
}
// The same, with what L2 is to do with the lines: a policy made by one of the two below.
DEVICE void tma_load_as(u64 policy, u32 dst, const TensorMap &map, u32 barrier, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1),
                 "l"(policy) : "memory");
}
DEVICE void tma_load_as(u64 policy, u32 dst, const TensorMap &map, u32 barrier, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1),
                 "r"(c2), "l"(policy) : "memory");
}
DEVICE void tma_load_as(u64 policy, u32 dst, const TensorMap &map, u32 barrier, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst), "l"(&map), "r"(barrier), "r"(c0), "r"(c1),
                 "r"(c2), "r"(c3), "l"(policy) : "memory");
}
DEVICE u64 evict_last() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// The same to every block of the cluster that `mask` names: to the same place, heard by the same barrier of each.
DEVICE void tma_share(u32 dst, const TensorMap &map, u32 barrier, u32 mask, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(dst), "l"(&map), "r"(barrier), "h"((u16)mask),
                 "r"(c0), "r"(c1) : "memory");
}
DEVICE void tma_share(u32 dst, const TensorMap &map, u32 barrier, u32 mask, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(dst), "l"(&map), "r"(barrier),
                 "h"((u16)mask), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
DEVICE void tma_prefetch(const TensorMap &map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of all blocks of the cluster; what was written before is seen after.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Where `address` lies in block `rank` of the cluster, and a store there.
DEVICE u32 cluster_address(u32 address, u32 rank) {
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}
DEVICE void cluster_store(u32 address, float a, float b, float c, float d) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// Between ordinary accesses to memory and those of the copy engine or the tensor cores, by each thread that made the first kind.
DEVICE void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
// The same where the ordinary accesses were to shared memory: this one does not wait for those to memory.
DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// What this thread wrote, or a barrier told it of, comes before what it does next, to all threads of the chip; and the other way round for what it reads.
DEVICE void fence_chip() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// A barrier among `threads` threads of the block that name the same `id` (1 to 15).
DEVICE void barrier_among(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

template <int REGISTERS> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
