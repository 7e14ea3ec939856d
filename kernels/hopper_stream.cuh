// Tiles that go back to memory by the copy engine, with a word to L2 on how long their lines are wanted; the ring of slots through which weights stream.
#pragma once
#include "hopper_tma.cuh"

// L2 treats such lines as it does any, where others are to go first.
DEVICE u64 stays() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// A box from shared memory to the matrix, with L2's ordinary priority and with one of its own; what lies outside is not written. Whoever wrote it there has called fence_shared() since.
DEVICE void tma_store(const TensorMap &map, u32 src, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(src), "r"(c0), "r"(c1) : "memory");
}
DEVICE void tma_store(const TensorMap &map, u32 src, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map), "r"(src), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEVICE void tma_store(const TensorMap &map, u32 src, int c0, int c1, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3}], [%1], %4;" ::"l"(&map), "r"(src), "r"(c0), "r"(c1), "l"(policy) : "memory");
}
DEVICE void tma_store(const TensorMap &map, u32 src, int c0, int c1, int c2, u64 policy) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4}], [%1], %5;" ::"l"(&map), "r"(src), "r"(c0), "r"(c1), "r"(c2), "l"(policy) : "memory");
}
// A thread's stores so far become a group; waits until shared memory of all its groups but the last PENDING has been read, or until all is written.
DEVICE void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING = 0> DEVICE void stores_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
DEVICE void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// A ring of COUNT slots of BYTES each, and of each three barriers: its weights have come, they are stepped, they have left.
template <int COUNT, int BYTES> struct Slots {
    u32 base, barriers;
    int slot;
    u32 parity;
    DEVICE u32 at() const { return base + slot * BYTES; }
    DEVICE u32 come() const { return barriers + slot * 24; }
    DEVICE u32 stepped() const { return come() + 8; }
    DEVICE u32 left() const { return come() + 16; }
    DEVICE void next() {
        if (++slot == COUNT) slot = 0, parity ^= 1;
    }
    // By one thread, which calls fence_async() before any other looks. `steppers`: arrivals that mean that all of a slot is stepped.
    DEVICE static void init(Slots all, int steppers) {
        for (; all.parity == 0; all.next()) barrier_init(all.come(), 1), barrier_init(all.stepped(), steppers), barrier_init(all.left(), 1);
    }
};

DEVICE float2 load_shared_pair(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}
DEVICE void store_shared_pair(u32 address, float2 v) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v.x), "f"(v.y) : "memory"); }
