// dx = [dg | du] Wf on Hopper, with [dg | du] from dz and the gates        dz (B, H), Wf (2H, D), dx (B, D)
//
// Reads     dz, Wf; SAVED_GATES 1: [g | u]; SAVED_GATES 0: x and Wf once more, to make them again
// Writes    [dg | du] (B, 2H), which dWf reads too, and dx
// Launches  1, persistent: phase 1 makes [dg | du], a counter tells when all of it stands, phase 2 multiplies. While a block waits for the others, the
//           weights of its first stages of phase 2 are already under way.
// Wins      over an elementwise kernel and a product by the launch between them
// Loses     4 B D H FLOP where gates are made again: worth it for small D only
//
// fp32-emulated has a phase between, which splits [dg | du] into two fp16 planes as hopper_split.cu does, because the largest element of a row is known
// only when the row is whole.
//
// Maps: `wf` and `x` as in hopper_swiglu_forward.cu (SAVED_GATES 0 reads them); `wft`: Wf (2H, D) as it stands, box (32 fp32 or 64 bf16, K_TILE rows);
// `dgrad`: [dg | du] (B, 2H), box (128 bytes, COLS / SHARE_B); fp32-emulated: its planes (2B, 2H) fp16.
// `state`: three u32, zero before and after. Grid: a multiple of CLUSTER, at most what runs at once.
#include "hopper_split.cuh"
#include "hopper_staging.cuh"

#ifndef SAVED_GATES
#define SAVED_GATES 1
#endif
#if !SAVED_GATES
constexpr int UNITS = ROWS / 2; // of a tile of phase 1
#endif

// Counters that all blocks of the grid share: every block arrives when its part of a phase is written, and whoever reads the phase's results waits for all.
// The threads that multiply call arrive(); what they wrote may then be read by ordinary loads and by TMA.
DEVICE void grid_arrive(u32 *counter) {
    fence_async(); // the copy engine will read what this thread wrote
    __threadfence();
    barrier_among(1, MULTIPLIERS);
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
    }
}
DEVICE void grid_wait(const u32 *counter) {
    u32 seen;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < gridDim.x);
    fence_async();
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_swiglu_backward_dx(const __grid_constant__ TensorMap wf, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap wft, const __grid_constant__ TensorMap dgrad, const float *scale,
                              const T *gates, const T *dz, T *dgates, u16 *planes, float *plane_scale, T *dx, u32 *state, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(wft), tma_prefetch(dgrad);
    Ring ring = start_ring(shared_address(shared));
    const Place p = place();
    const u32 clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
    const u32 tiles_b = ((batch + COLS - 1) / COLS + SHARE_A - 1) / SHARE_A;
#if !SAVED_GATES
    const u32 tiles_1 = ((hidden + UNITS - 1) / UNITS + SHARE_B - 1) / SHARE_B, work_1 = tiles_1 * tiles_b;
#endif
    const u32 tiles_2 = ((inputs + ROWS - 1) / ROWS + SHARE_B - 1) / SHARE_B, work_2 = tiles_2 * tiles_b;
    int begin_1, end_1, begin_2, end_2;
    split_tiles(inputs, p.split, begin_1, end_1);
    split_tiles(2 * hidden, p.split, begin_2, end_2);
    const auto place_of = [&](u32 index, u32 tiles_a, int rows) {
        const TilePlace at = tile_place(index, tiles_a, tiles_b);
        return TilePlace{(at.a * SHARE_B + (int)p.b) * rows, (at.b * SHARE_A + (int)p.a) * COLS};
    };
    wait_for_last();

    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        const bool loads = threadIdx.x == MULTIPLIERS; // the other threads only stand by where a cluster meets
        const u32 mask_a = sharers_of_a(p), mask_b = sharers_of_b(p);
        const auto load_batch = [&](const TensorMap &map, u32 b, u32 full, int k, int image) {
            constexpr int BOX_ROWS = COLS / SHARE_B;
#pragma unroll
            for (int plane = 0; plane < PLANES; plane++) {
                const u32 to = b + plane * (COLS * 128) + p.b * (BOX_ROWS * 128);
                const int row = image + (int)p.b * BOX_ROWS + plane * batch;
                if (SHARE_B > 1) tma_share(to, map, full, mask_b, k, row);
                else tma_load(to, map, full, k, row);
            }
        };
        // Every tile but the first waits until the one before has left the ring.
        u32 tiles = 0;
        const auto begin_tile = [&] {
            if (tiles++ > 0) barrier_wait(ring.open(), tiles & 1);
        };
#if !SAVED_GATES
        for (u32 item = cluster; item < work_1; item += clusters) {
            if (loads) {
                begin_tile();
                const TilePlace at = place_of(item, tiles_1, UNITS);
                for (int tile = begin_1; tile < end_1; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) {
                        constexpr int SLABS = UNITS / 8 / SHARE_A;
#pragma unroll
                        for (int plane = 0; plane < PLANES; plane++) {
                            const u32 to = a + plane * (ROWS * 128) + p.a * (SLABS * 2048);
                            const int k = tile * K_TILE + 32 * plane, slab = at.a / 8 + (int)p.a * SLABS;
                            if (SHARE_A > 1) tma_share(to, wf, full, mask_a, k, 0, 0, slab);
                            else tma_load(to, wf, full, k, 0, 0, slab);
                        }
                        load_batch(x, b, full, tile * K_TILE, at.b);
                    });
            }
            __syncwarp();
            finish_beside();
        }
#endif
        // A of phase 2: blocks of 128 bytes of rows of Wf, K_TILE rows each.
        const auto load_weights = [&](u32 a, u32 full, int k, int row0) {
            constexpr int WIDE = PRECISION == 2 ? 64 : 32, BLOCKS = ROWS / WIDE / SHARE_A;
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                const int at = (int)p.a * BLOCKS + block;
                if (SHARE_A > 1) tma_share(a + at * (K_TILE * 128), wft, full, mask_a, row0 + at * WIDE, k);
                else tma_load(a + at * (K_TILE * 128), wft, full, row0 + at * WIDE, k);
            }
        };
        bool stands = false; // [dg | du]
        for (u32 item = cluster; item < work_2; item += clusters) {
            if (loads) {
                begin_tile();
                const TilePlace at = place_of(item, tiles_2, ROWS);
                int tile = begin_2;
                if (!stands) {
                    const int ahead = min(RING_STAGES, end_2 - begin_2);
                    Ring weights = ring;
                    for (int i = 0; i < ahead; i++)
                        feed(weights, [&](u32 a, u32, u32 full) { load_weights(a, full, (tile + i) * K_TILE, at.a); });
                    grid_wait(state + (SPLIT_FP32 ? 1 : 0));
                    stands = true;
                    for (int i = 0; i < ahead; i++, tile++) {
                        load_batch(dgrad, ring.b(), ring.full(ring.slot), tile * K_TILE, at.b);
                        ring.next();
                    }
                }
                for (; tile < end_2; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) {
                        load_weights(a, full, tile * K_TILE, at.a);
                        load_batch(dgrad, b, full, tile * K_TILE, at.b);
                    });
            }
            __syncwarp();
            finish_beside();
        }
    } else {
        become_multiplier();
        const int warp = threadIdx.x / 32;
        Sums sums;
#if SAVED_GATES
        constexpr int N = Vec<T>::N;
        const u32 across = hidden / N;
#pragma unroll 2
        for (u32 i = blockIdx.x * MULTIPLIERS + threadIdx.x; i < batch * across; i += gridDim.x * MULTIPLIERS) {
            const int row = i / across, unit = i % across * N;
            const T *saved = gates + offset(row, 2 * hidden) + unit;
            float g[N], u[N], d[N], dg[N], du[N];
            const uint4 gv = load16(saved), uv = load16(saved + hidden), dv = load16(dz + offset(row, hidden) + unit);
            unpack16(gv, g, T()), unpack16(uv, u, T()), unpack16(dv, d, T());
#pragma unroll
            for (int e = 0; e < N; e++) {
                gate_backward(g[e], u[e], d[e], dg[e], du[e]);
            }
            T *out = dgates + offset(row, 2 * hidden) + unit;
            *(uint4 *)out = pack16(dg, T());
            *(uint4 *)(out + hidden) = pack16(du, T());
        }
#else
        for (u32 item = cluster; item < work_1; item += clusters) {
            // [g | u]^T = Wf x^T: (2H, D) @ (D, B) -> (2H, B)
            const TilePlace at = place_of(item, tiles_1, UNITS);
            multiply<false, false>(sums, ring, end_1 - begin_1, p, One());
            const Staging<T, UNITS> first{ring.stages}, second{first.base + first.BYTES}; // dz, then dg in its place; du
            static_assert(2 * Staging<T, UNITS>::BYTES <= RING_BYTES, "the tiles fit");
            const int image0 = at.b + p.split * SHARE_COLS;
            const auto ready = [&] {
                first.read(dz, image0, batch, at.a, hidden, hidden);
                barrier_among(1, MULTIPLIERS);
            };
            finish(sums, ring, p, ready, [&](int m, int j, float4 v) {
                const int unit = (warp / 4 * M_TILES + m) * 32 + (warp & 3) * 8;
                if (SPLIT_FP32) {
                    const int image = image0 + 8 * j + (threadIdx.x & 3) * 2;
                    const float s0 = scale[min(image, batch - 1)], s1 = scale[min(image + 1, batch - 1)];
                    v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
                }
                float d[2], dg[2], du[2];
                first.get(unit, j, d[0], d[1]);
                gate_backward(v.x, v.z, d[0], dg[0], du[0]);
                gate_backward(v.y, v.w, d[1], dg[1], du[1]);
                first.put(unit, j, dg[0], dg[1]);
                second.put(unit, j, du[0], du[1]);
            });
            barrier_among(1, MULTIPLIERS);
            first.write(dgates, image0, batch, at.a, hidden, 2 * hidden);
            second.write(dgates + hidden, image0, batch, at.a, hidden, 2 * hidden);
            reopen(ring, p);
        }
#endif
        grid_arrive(state);
#if PRECISION == 3
        if (threadIdx.x == 0) grid_wait(state);
        barrier_among(1, MULTIPLIERS);
        float *most = (float *)(shared + RING_BYTES + BARRIER_BYTES);
        for (u32 row = blockIdx.x; row < (u32)batch; row += gridDim.x)
            split_row<MULTIPLIERS>(dgates + offset(row, 2 * hidden), planes + offset(row, 2 * hidden), planes + offset(row + batch, 2 * hidden), plane_scale + row, 2 * hidden, most);
        grid_arrive(state + 1);
#endif
        // dx^T = Wf^T [dg | du]^T: (D, 2H) @ (2H, B) -> (D, B)
        bool stands = !SPLIT_FP32;
        for (u32 item = cluster; item < work_2; item += clusters) {
            const TilePlace at = place_of(item, tiles_2, ROWS);
            multiply<true, false>(sums, ring, end_2 - begin_2, p, One());
            const Staging<T, ROWS> out{ring.stages};
            static_assert(Staging<T, ROWS>::BYTES <= RING_BYTES, "the tile fits");
            const int image0 = at.b + p.split * SHARE_COLS;
            if (!stands) grid_wait(state + 1), stands = true; // for the scales, which this thread reads
            finish(sums, ring, p, Nothing(), [&](int m, int j, float4 v) {
                const int row = (warp / 4 * M_TILES + m) * 64 + (warp & 3) * 16;
                if (SPLIT_FP32) {
                    const int image = image0 + 8 * j + (threadIdx.x & 3) * 2;
                    const float s0 = plane_scale[min(image, batch - 1)], s1 = plane_scale[min(image + 1, batch - 1)];
                    v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
                }
                out.put(row, j, v.x, v.y);
                out.put(row + 8, j, v.z, v.w);
            });
            barrier_among(1, MULTIPLIERS);
            out.write(dx, image0, batch, at.a, inputs, inputs);
            reopen(ring, p);
        }
        let_next_start();
        // The last block to leave puts the state back to zero; nobody reads it any more.
        if (threadIdx.x == 0) {
            if (atomicAdd(state + 2, 1u) == gridDim.x - 1) state[0] = state[1] = state[2] = 0;
        }
    }
    if (CLUSTER > 1) { // nobody leaves while others may still signal its barriers
        cluster_arrive();
        cluster_wait();
    }
}
