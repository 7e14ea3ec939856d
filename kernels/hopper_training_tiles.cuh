// The pieces of hopper_training_steps.cu: products of tiles in shared memory, what blocks of a cluster send each other, weights that stay in registers, images that
// become tiles.
#pragma once
#include "engine_mma.cuh"
#include "hopper_tma.cuh"
#include "hopper_training_layout.cuh"
#include "sgd.cuh"

// A value that the compiler takes for new: addresses made from it are worked out where they are used. Kept from step to step, all of them would push weights out of registers.
DEVICE int fresh(int v) {
    asm volatile("" : "+r"(v));
    return v;
}

// Operands of one step of mma from tiles whose rows run along K, or (ACROSS) whose rows are indices of K.
template <bool ACROSS, int PITCH> DEVICE void load_a(u32 (&a)[4], u32 tile, int m, int k, int lane) {
    if constexpr (!ACROSS) ldmatrix4(a, place<PITCH>(tile, m + (lane & 15), k + (lane >> 4) * (K_STEP / 2)));
    else if constexpr (sizeof(T) == 2) ldmatrix4_trans(a, place<PITCH>(tile, k + (lane & 7) + (lane >> 4) * 8, m + (lane >> 3 & 1) * 8));
    else {
#pragma unroll
        for (int q = 0; q < 4; q++) a[q] = load_shared(place<PITCH>(tile, k + (lane & 3) + q / 2 * 4, m + lane / 4 + q % 2 * 8));
    }
}
template <bool ACROSS, int PITCH> DEVICE void load_b(u32 (&b)[2], u32 tile, int n, int k, int lane) {
    if constexpr (!ACROSS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(place<PITCH>(tile, n + (lane & 7), k + (lane >> 3 & 1) * (K_STEP / 2))) : "memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(place<PITCH>(tile, k + (lane & 15), n)) : "memory");
    else b[0] = load_shared(place<PITCH>(tile, k + (lane & 3), n + lane / 4)), b[1] = load_shared(place<PITCH>(tile, k + (lane & 3) + 4, n + lane / 4));
}

// Sums of a warp: 16 rows from `m` on by 8 columns each of the N tiles n0, n0 + STRIDE, ..., those below `tiles`. sums[j][h][e]: row lane / 4 + 8 h, column 2 (lane % 4) + e.
template <bool A_ACROSS, bool B_ACROSS, int A_PITCH, int B_PITCH, int K, int STRIDE, int N> DEVICE void product(float (&sums)[N][2][2], u32 a_tile, int m, u32 b_tile, int n0, int tiles) {
    constexpr int CHAINS = N == 1 ? 2 : 1; // mma that do not wait for each other
    float parts[CHAINS][N][2][2] = {};
    const int lane = fresh(threadIdx.x & 31);
#pragma unroll
    for (int k = 0; k < K; k += K_STEP) {
        u32 a[4], b[N][2];
        load_a<A_ACROSS, A_PITCH>(a, a_tile, m, k, lane);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (n0 + j * STRIDE < tiles) load_b<B_ACROSS, B_PITCH>(b[j], b_tile, (n0 + j * STRIDE) * 8, k, lane);
        auto &into = parts[k / K_STEP % CHAINS];
#if PRECISION == 3
        u32 a_lo[4], b_lo[N][2];
#pragma unroll
        for (int q = 0; q < 4; q++) a_lo[q] = split_tf32(a[q]);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (n0 + j * STRIDE < tiles) {
                b_lo[j][0] = split_tf32(b[j][0]), b_lo[j][1] = split_tf32(b[j][1]);
                float part[2][2] = {};
                mma(part[0], part[1], a_lo, b[j], T());
                mma(part[0], part[1], a, b_lo[j], T());
                mma(part[0], part[1], a, b[j], T());
#pragma unroll
                for (int e = 0; e < 2; e++) into[j][0][e] += part[0][e], into[j][1][e] += part[1][e];
            }
#else
#pragma unroll
        for (int j = 0; j < N; j++)
            if (n0 + j * STRIDE < tiles) mma(into[j][0], into[j][1], a, b[j], T());
#endif
    }
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++) sums[j][h][e] = CHAINS == 2 ? parts[0][j][h][e] + parts[CHAINS - 1][j][h][e] : parts[0][j][h][e];
}

// What products read, rounded as the precision asks.
DEVICE float rounded(float v) { return PRECISION == 1 ? __uint_as_float(round_tf32(__float_as_uint(v))) : v; }
DEVICE void put(u32 at, float v) {
    if constexpr (sizeof(T) == 2) asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(from_float<bf16>(v).bits) : "memory");
    else asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(rounded(v)) : "memory");
}
DEVICE void put(u32 at, float a, float b) {
    if constexpr (sizeof(T) == 2) asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(pack_bf16(a, b)) : "memory");
    else asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(rounded(a)), "f"(rounded(b)) : "memory");
}
DEVICE void put(u32 at, float a, float b, float c, float d) {
    if constexpr (sizeof(T) == 2) asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(pack_bf16(a, b)), "r"(pack_bf16(c, d)) : "memory");
    else asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(rounded(a)), "f"(rounded(b)), "f"(rounded(c)), "f"(rounded(d)) : "memory");
}

// Stores into the shared memory of block `to` of the cluster, of which its `barrier` hears.
DEVICE void send(u32 address, u32 barrier, u32 to, float a, float b, float c, float d) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(cluster_address(address, to)), "r"(cluster_address(barrier, to)), "f"(a), "f"(b),
                 "f"(c), "f"(d) : "memory");
}
DEVICE void send(u32 address, u32 barrier, u32 to, float a, float b) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%2, %3}, [%1];" ::"r"(cluster_address(address, to)), "r"(cluster_address(barrier, to)), "f"(a), "f"(b) : "memory");
}
DEVICE void send(u32 address, u32 barrier, u32 to, float a) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %2, [%1];" ::"r"(cluster_address(address, to)), "r"(cluster_address(barrier, to)), "f"(a) : "memory");
}
// What this block has of a tile, ROWS_OF_IT rows and COLS columns from (row0, col0) on, to the same place in the others of the cluster.
template <int ROWS_OF_IT, int COLS, int PITCH> DEVICE void share(u32 tile, int row0, int col0, u32 barrier, u32 rank) {
    constexpr int N = Vec<T>::N, CHUNKS = COLS / N, ALL = CHUNKS * ROWS_OF_IT;
    for (int i = fresh(threadIdx.x); i < ALL * (CLUSTER - 1); i += THREADS) {
        const u32 at = place<PITCH>(tile, row0 + i % ALL / CHUNKS, col0 + i % CHUNKS * N);
        float4 v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
        send(at, barrier, rank + 1 + i / ALL & (CLUSTER - 1), v.x, v.y, v.z, v.w);
    }
}
// A warp's sums of 16 images to the block that finishes them, as the parts from block `rank`: [from][element].
template <int COLS, int STRIDE, int N> DEVICE void hand_out(const float (&sums)[N][2][2], int m, int n0, u32 parts, u32 barrier, u32 rank) {
    const int lane = fresh(threadIdx.x & 31);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int tile = n0 + j * STRIDE;
        if (tile < COLS / 8) send(parts + (rank * OWN * COLS + (tile * 32 + lane) * 4) * 4, barrier, m / OWN, sums[j][0][0], sums[j][0][1], sums[j][1][0], sums[j][1][1]);
    }
}
// An element, from the parts of all blocks.
template <int COLS> DEVICE float take(u32 parts, int element) {
    float sum = 0.f;
#pragma unroll
    for (int from = 0; from < CLUSTER; from++) sum += __uint_as_float(load_shared(parts + (from * OWN * COLS + element) * 4));
    return sum;
}

// A block's part of a matrix of weights, spread over the threads as the sums of its gradient are: tile i = warp + WARPS * j of 16 x 8 is row tile i % M_TILES, column tile i / M_TILES.
template <int M_TILES, int N_TILES> struct Weights {
    static constexpr int N = (M_TILES * N_TILES + WARPS - 1) / WARPS, STRIDE = WARPS / M_TILES;
    static_assert(WARPS % M_TILES == 0, "a warp stays in its rows");
    float w[N][2][2], v[N][2][2];
    DEVICE static int first_row() { return threadIdx.x / 32 % M_TILES * 16; } // of the warp, and its first tile
    DEVICE static int first_tile() { return threadIdx.x / 32 / M_TILES; }
    // use(j, h, row, column) for each pair of neighbours that this thread has.
    template <class Use> DEVICE static void each(const Use &use) {
        const int thread = fresh(threadIdx.x), row = thread / 32 % M_TILES * 16 + thread % 32 / 4, tile = thread / 32 / M_TILES;
#pragma unroll
        for (int j = 0; j < N; j++)
            if (tile + j * STRIDE < N_TILES)
#pragma unroll
                for (int h = 0; h < 2; h++) use(j, h, row + 8 * h, (tile + j * STRIDE) * 8 + thread % 4 * 2);
    }
    // `place(row, column)` in memory, or -1 for what does not exist; rows of an even length start on 8 bytes, so pairs are whole when they begin.
    template <class Place> DEVICE void load(const float *weights, const float *velocity, const Place &place) {
        each([&](int j, int h, int r, int c) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const long long at = place(r, c + e);
                w[j][h][e] = at >= 0 ? weights[at] : 0.f, v[j][h][e] = at >= 0 ? velocity[at] : 0.f;
            }
        });
    }
    template <class Place> DEVICE void save(float *weights, float *velocity, bf16 *copy, const Place &place) const {
        each([&](int j, int h, int r, int c) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const long long at = place(r, c + e);
                if (at < 0) continue;
                weights[at] = w[j][h][e], velocity[at] = v[j][h][e];
                if (copy) copy[at] = from_float<bf16>(w[j][h][e]);
            }
        });
    }
    // The copy that products read.
    template <int PITCH> DEVICE void show(u32 to) const {
        each([&](int j, int h, int r, int c) { put(place<PITCH>(to, r, c), w[j][h][0], w[j][h][1]); });
    }
    template <int PITCH> DEVICE void step(const Sgd &sgd, const float (&gradient)[N][2][2], u32 to) {
        each([&](int j, int h, int, int) {
#pragma unroll
            for (int e = 0; e < 2; e++) sgd_step(sgd, gradient[j][h][e], w[j][h][e], v[j][h][e]);
        });
        show<PITCH>(to);
    }
};

// The block's slice of an image's pixels, as bytes, on its way to shared memory.
DEVICE void ask_pixels(u32 to, const u8 *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// Normalised, into the tile, 16 pixels at a time; images that do not exist become zeros. A byte b becomes a float as 2^23 + b, by its bits, less 2^23: conversions go at a
// quarter of the rate.
DEVICE void show_pixels(u32 tile, const u8 *bytes, const u32 *index, int pixels, float scale, float shift) {
    constexpr int CHUNKS = SLICE_PIXELS / 16;
    for (int i = fresh(threadIdx.x); i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, col = i % CHUNKS * 16;
        uint4 chunk = ((const uint4 *)bytes)[i];
        const u32 packed[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
        const bool exists = col < pixels && index[row] != ~0u;
        const float by = exists ? scale : 0.f, and_add = exists ? shift : 0.f;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            float v[4];
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = fmaf(__uint_as_float(__byte_perm(packed[w], 0x4b000000u, 0x7540 | e)) - 8388608.f, by, and_add);
            put(place<X_PITCH>(tile, row, col + 4 * w), v[0], v[1], v[2], v[3]);
        }
    }
}
