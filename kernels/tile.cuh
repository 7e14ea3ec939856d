// Operand tiles: from global memory into a ring of shared-memory stages with cp.async, and how they lie there.
//
// A product here is C (M, N) = A B, summed over K. Each operand is read in one of two ways:
//   K-major   row = an index of M or N, and K runs along the row      (x and Wf in the forward)
//   MN-major  row = an index of K, and M or N runs along the row      (Wf in dx; both operands in dWf)
// Either way a tile is rows of 16-byte chunks, and chunk c of row r is kept at place c ^ swizzle(r): eight rows read at the same
// column then touch all 32 banks once, with no padding. Reading K-major tiles takes 8 rows x 16 bytes at a time (ldmatrix); so do
// bf16 MN-major tiles (ldmatrix.trans); fp32 MN-major tiles are read 4 rows x 8 words at a time, which wants another swizzle.
//
// Edges: an M or N index past the end is clamped to the last one (its products land in accumulators that nobody stores); a K index
// past the end must contribute nothing, so cp.async fills zeros there, for both operands.
#pragma once
#include "common.cuh"

// One stage holds this much of K: 128 bytes, 64 bf16 or 32 fp32.
template <class E> struct KTile { static constexpr int K = 128 / sizeof(E); };

DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE u32 load_shared(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

// 16 bytes straight to shared memory, past L1; `bytes` of them are read and the rest are zeros.
DEVICE void cp_async16(u32 dst, const void *src, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
DEVICE void cp_async4(u32 dst, const void *src, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// A chunk of a row that may start anywhere: `valid` elements are read one by one, the rest are zeros.
DEVICE void load_ragged(u32 dst, const float *src, int valid) {
#pragma unroll
    for (int i = 0; i < 4; i++) cp_async4(dst + 4 * i, i < valid ? src + i : src, i < valid ? 4 : 0);
}
DEVICE void load_ragged(u32 dst, const bf16 *src, int valid) {
    // cp.async moves 4 bytes at least and rows of odd length start on 2: through registers, then.
    u32 w[4] = {0u, 0u, 0u, 0u};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u16 v = 0;
        if (i < valid) asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(src + i) : "memory");
        w[i / 2] |= (u32)v << (16 * (i & 1));
    }
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

// row * ld elements in 64 bits, by one 32 x 32 multiplication.
DEVICE u64 offset(int row, int ld) { return (u64)(u32)row * (u32)ld; }

// Where a tile comes from. `at(row, k0, chunk, valid)` gives the address of a chunk and how many of its elements exist.
// Rows of a plain matrix, K along the row.
template <class E> struct KMajor {
    static constexpr bool k_major = true;
    const E *base;
    int ld, row0, rows; // this tile's first row; how many rows the matrix has
    DEVICE const E *at(int row, int k, int k_end, int &valid) const {
        valid = min(max(k_end - k, 0), Vec<E>::N);
        return base + (offset(min(row0 + row, rows - 1), ld) + (valid ? k : 0));
    }
};
// Rows of the packed weight [gate; up], laid out in groups of 8 gate rows and the 8 up rows that belong to them: gate j and up j end
// up in accumulators of the same thread, so the gate needs no exchange.
template <class E> struct GateUp {
    static constexpr bool k_major = true;
    const E *base;
    int ld, row0, rows; // rows = hidden; row0 = this tile's first hidden unit
    DEVICE const E *at(int row, int k, int k_end, int &valid) const {
        valid = min(max(k_end - k, 0), Vec<E>::N);
        const int unit = min(row0 + (row >> 4) * 8 + (row & 7), rows - 1);
        return base + (offset(unit + ((row >> 3) & 1) * rows, ld) + (valid ? k : 0));
    }
};
// K along the columns of the matrix, M or N along the row.
template <class E> struct MnMajor {
    static constexpr bool k_major = false;
    const E *base;
    int ld, col0, cols;
    DEVICE const E *at(int col, int k, int k_end, int &valid) const {
        valid = k < k_end ? min(max(cols - (col0 + col), 0), Vec<E>::N) : 0;
        return base + (valid ? offset(k, ld) + (col0 + col) : 0);
    }
};

// The shape of a tile in shared memory. MN = its extent along M or N.
template <class E, int MN, bool K_MAJOR> struct TileShape {
    static constexpr int ROWS = K_MAJOR ? MN : KTile<E>::K;
    static constexpr int ROW_BYTES = K_MAJOR ? 128 : MN * (int)sizeof(E);
    static constexpr int CHUNKS = ROW_BYTES / 16;
    static constexpr int BYTES = ROWS * ROW_BYTES;
    static_assert(ROW_BYTES >= 128, "the swizzle permutes 8 chunks, so a row has at least 8");
    DEVICE static int swizzle(int row) { return (K_MAJOR || sizeof(E) == 2) ? row & 7 : (row & 3) * 2; }
};

// The whole block issues the copies of one tile; columns of K from k0 on. The caller commits.
template <class E, int MN, int THREADS, class Source> DEVICE void load_tile(u32 smem, const Source &source, int k0, int k_end) {
    using S = TileShape<E, MN, Source::k_major>;
    constexpr int TOTAL = S::ROWS * S::CHUNKS, COPIES = (TOTAL + THREADS - 1) / THREADS;
    static_assert(THREADS % S::CHUNKS == 0, "a thread stays in one column of chunks");
    // Opaque, so that addresses are worked out again for each stage: a dozen hoisted 64-bit pointers would push accumulators out of registers.
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    const u32 chunk = (u32)thread % S::CHUNKS;
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        const int row = (u32)thread / S::CHUNKS + i * (THREADS / S::CHUNKS);
        if (TOTAL % THREADS != 0 && row >= S::ROWS) break;
        const u32 dst = smem + row * S::ROW_BYTES + ((chunk ^ S::swizzle(row)) << 4);
        int valid;
        const E *src = Source::k_major ? source.at(row, k0 + chunk * Vec<E>::N, k_end, valid)
                                       : source.at(chunk * Vec<E>::N, k0 + row, k_end, valid);
        if (ALIGNED) cp_async16(dst, src, valid > 0 ? 16 : 0);
        else load_ragged(dst, src, valid);
    }
}
