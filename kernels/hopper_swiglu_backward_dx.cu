// dx = [dg | du] Wf on Hopper, with [dg | du] from dz and the gates        dz (B, H), Wf (2H, D), dx (B, D)
//
// Reads     dz, Wf; SAVED_GATES 1: [g | u]; SAVED_GATES 0: x and Wf once more, to make them again; SAVED_GATES 2: [dg | du], which the head's kernel made
//           (head_joined.cu): there is no phase 1, and no block waits for another
// Writes    [dg | du] (B, 2H), which dWf reads too, and dx
// Launches  1, persistent: phase 1 makes [dg | du], a counter tells when all of it stands, phase 2 multiplies. While a block waits for the others, the
//           weights of its first stages of phase 2 are already under way.
// Wins      over an elementwise kernel and a product by the launch between them
// Loses     4 B D H FLOP where gates are made again: worth it for small D only
//
// fp32-emulated also splits [dg | du] into two fp16 planes as hopper_split.cu does: with saved gates in phase 1, from registers; else in a phase between, when
// [dg | du] is whole. With saved gates and COLS 64 a row's parts of PART stages have scales of their own, so that each warpgroup of the chip has a part to
// split, and phase 2 scales the sums of each part before it adds them up. PART 0: a part is what a block sums.
//
// ADDENDS 2: two clusters have halves of K of a tile, and memory adds their sums to the zeros that phase 1 writes into dx: 0 + a + b is one number in either
// order. So K is split in four without clusters of four, of which an H100 does not hold enough at once. Memory takes sums below 2^-126 for zeros.
//
// EARLY 1: the next kernel may start beside this one, not at its end: where that is the head's step (head_joined.cu), which needs little room and no result.
// EARLY 2: it may start once [dg | du] stands: it is hopper_swiglu_dwf.cu with BESIDE, which writes while this one reads and waits. A block lets it start when
// its own part, of x^T too, is written and fenced, so when all have, all of it can be read. Saved gates, bf16 and TF32.
//
// TF32's dWf reads x transposed. Where `x_t` is given, the three warps beside the one that loads make it, while the others multiply.
//
// Maps: `wf` and `x` as in hopper_swiglu_forward.cu (SAVED_GATES 0 reads them); `wft`: Wf (2H, D) as it stands, box (32 fp32 or 64 bf16, K_TILE rows);
// `dgrad`: [dg | du] (B, 2H), box (128 bytes, COLS / SHARE_B); fp32-emulated: its planes (2B, 2H) fp16, and `plane_scale` (parts, B).
// `state`: three u32, zero before and after. Grid: a multiple of CLUSTER, at most what runs at once.
#include "hopper_split.cuh"
#include "hopper_staging.cuh"

#ifndef SAVED_GATES
#define SAVED_GATES 1
#endif
#if !SAVED_GATES
constexpr int UNITS = ROWS / 2; // of a tile of phase 1
#endif

#ifndef EARLY
#define EARLY 0
#endif
#ifndef ADDENDS
#define ADDENDS 1
#endif
#ifndef PART
#define PART 0
#endif
static_assert(ADDENDS == 1 || (ADDENDS == 2 && SPLIT_FP32 && SAVED_GATES == 1), "two numbers have one sum in either order, three do not");
static_assert(PART == 0 || COLS == 64, "wider tiles have no registers for a part's sums beside those of all");
static_assert(EARLY != 2 || (SAVED_GATES == 1 && PRECISION != 3), "what dWf reads stands after the one phase before the product");
static_assert(SAVED_GATES != 2 || PRECISION != 3, "fp32-emulated splits [dg | du] in phase 1");
constexpr bool PHASES = SAVED_GATES != 2; // there are two

// fp32-emulated: the parts of a row of [dg | du] that have scales of their own, in stages of the product: PART each, or the ranges that are summed apart.
DEVICE int parts_of(int k) { return PART ? ((k + K_TILE - 1) / K_TILE + PART - 1) / max(PART, 1) : ADDENDS * SPLITS; }
DEVICE void part_tiles(int k, int part, int &begin, int &end) {
    if (PART) begin = part * PART, end = min(begin + PART, (k + K_TILE - 1) / K_TILE);
    else split_tiles<ADDENDS * SPLITS>(k, part, begin, end);
}

constexpr int SPARE = 96; // threads of the loader's warpgroup that do not load

// x (rows, columns) -> out (columns, pitch), 4 x 4 elements a thread: 16 bytes each way, and eight threads write 128 neighbouring ones. The pitch is `rows`
// rounded up to 4; what lies between is written too.
DEVICE void transpose(const float *x, float *out, int rows, int columns, u32 thread, u32 threads) {
    const u32 down = (rows + 3) / 4, groups = (down + 7) / 8, across = columns / 4, pitch = 4 * down;
    for (u32 i = thread; i < 8 * groups * across; i += threads) {
        const u32 block = i / 8 / across * 8 + i % 8, col = i / 8 % across * 4;
        if (block >= down) continue;
        float4 v[4];
#pragma unroll
        for (int r = 0; r < 4; r++) v[r] = *(const float4 *)(x + offset(min((int)(4 * block) + r, rows - 1), columns) + col);
        float *to = out + (u64)col * pitch + 4 * block;
        *(float4 *)to = make_float4(v[0].x, v[1].x, v[2].x, v[3].x);
        *(float4 *)(to + pitch) = make_float4(v[0].y, v[1].y, v[2].y, v[3].y);
        *(float4 *)(to + 2 * pitch) = make_float4(v[0].z, v[1].z, v[2].z, v[3].z);
        *(float4 *)(to + 3 * pitch) = make_float4(v[0].w, v[1].w, v[2].w, v[3].w);
    }
}

// Counters that all blocks of the grid share: every block arrives when its part of a phase is written, and whoever reads the phase's results waits for all.
// The threads that multiply call arrive(); what they wrote may then be read by ordinary loads and by TMA. One thread's release covers what the barrier told it of,
// and the reader's fence, between its look at the counter and its copies, is all that the copy engine needs.
DEVICE void grid_arrive(u32 *counter) {
    barrier_among(1, MULTIPLIERS);
    if (threadIdx.x == 0) {
        fence_chip();
        asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
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
                              const T *gates, const T *dz, T *dgates, u16 *planes, float *plane_scale, T *dx, u32 *state, const float *plain_x, float *x_t, int batch, int inputs, int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(wft), tma_prefetch(dgrad);
    Ring ring = start_ring(shared_address(shared) + RESULTS);
    const Place p = place();
    const u32 clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
    const u32 tiles_b = ((batch + COLS - 1) / COLS + SHARE_A - 1) / SHARE_A;
#if !SAVED_GATES
    const u32 tiles_1 = ((hidden + UNITS - 1) / UNITS + SHARE_B - 1) / SHARE_B, work_1 = tiles_1 * tiles_b;
#endif
    const u32 tiles_2 = ((inputs + ROWS - 1) / ROWS + SHARE_B - 1) / SHARE_B, work_2 = tiles_2 * tiles_b * ADDENDS;
    int begin_1, end_1, begin_2, end_2;
    split_tiles(inputs, p.split, begin_1, end_1);
    // Which range of K of an item of phase 2 is this block's. The addends of a tile are neighbours.
    const auto range_of = [&](u32 item) {
        const u32 range = item % ADDENDS * SPLITS + p.split;
        split_tiles<ADDENDS * SPLITS>(2 * hidden, range, begin_2, end_2);
        return range;
    };
    const auto place_of = [&](u32 index, u32 tiles_a, int rows) {
        const TilePlace at = tile_place(index, tiles_a, tiles_b);
        return TilePlace{(at.a * SHARE_B + (int)p.b) * rows, (at.b * SHARE_A + (int)p.a) * COLS};
    };

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
#if !SAVED_GATES
        wait_for_last();
        for (u32 item = cluster; item < work_1; item += clusters) {
            if (loads) {
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
#if PRECISION == 1
        if (threadIdx.x >= MULTIPLIERS + 32 && x_t) {
            wait_for_last(); // the kernel before may read x^T of another layer there
            transpose(plain_x, x_t, batch, inputs, blockIdx.x * SPARE + threadIdx.x - MULTIPLIERS - 32, gridDim.x * SPARE);
            if (EARLY == 2) {
                fence_async();
                fence_chip();
                barrier_among(2, MULTIPLIERS + SPARE); // those that multiply have fenced their part of [dg | du]
                let_next_start();
            }
        }
#endif
        // A of phase 2: blocks of 128 bytes of rows of Wf, K_TILE rows each.
        const Weights kept;
        const auto load_weights = [&](u32 a, u32 full, int k, int row0) {
            constexpr int WIDE = PRECISION == 2 ? 64 : 32, BLOCKS = ROWS / WIDE / SHARE_A;
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                const int at = (int)p.a * BLOCKS + block;
                if (SHARE_A > 1) tma_share(a + at * (K_TILE * 128), wft, full, mask_a, row0 + at * WIDE, k);
                else kept.load(k < hidden ? k : k - hidden, row0 + at * WIDE, a + at * (K_TILE * 128), wft, full, row0 + at * WIDE, k);
            }
        };
        // With saved gates weights are under way before the kernel before has ended: between what last wrote them and this launch stands the forward, which
        // ended, or waited for it.
        bool stands = false; // [dg | du]
        for (u32 item = cluster; item < work_2; item += clusters) {
            if (loads) {
                const TilePlace at = place_of(item / ADDENDS, tiles_2, ROWS);
                range_of(item);
                int tile = begin_2;
                const auto weights = [&](u32 a, u32 full, int tile) { load_weights(a, full, tile * K_TILE, at.a); };
                const auto activations = [&](u32 b, u32 full, int tile) { load_batch(dgrad, b, full, tile * K_TILE, at.b); };
                if (!stands) {
                    const auto until = [&] {
                        wait_for_last();
                        if (PHASES) grid_wait(state + (SPLIT_FP32 ? 1 : 0));
                    };
                    tile = feed_ahead(ring, begin_2, end_2, weights, until, activations);
                    stands = true;
                }
                for (; tile < end_2; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) { weights(a, full, tile), activations(b, full, tile); });
            }
            __syncwarp();
            finish_beside();
        }
    } else {
        become_multiplier();
        const int warp = threadIdx.x / 32;
        Sums sums;
        wait_for_last();
        if (EARLY == 1) let_next_start();
#if SAVED_GATES == 1 && PRECISION != 3
        // A few vectors of each of g, u and dz are asked for while as many others are worked on.
        constexpr int N = Vec<T>::N, BATCH = MIN_BLOCKS > 1 ? 2 : 4;
        const u32 across = hidden / N, step = gridDim.x * MULTIPLIERS, down = step / across, right = step % across;
        u32 row = (blockIdx.x * MULTIPLIERS + threadIdx.x) / across, column = (blockIdx.x * MULTIPLIERS + threadIdx.x) % across;
        struct Asked {
            uint4 g[BATCH], u[BATCH], d[BATCH];
            u64 at[BATCH];
            bool there[BATCH];
        };
        const auto ask = [&](Asked &to) {
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                to.there[b] = row < batch;
                if (to.there[b]) {
                    to.at[b] = offset(row, 2 * hidden) + column * N;
                    to.g[b] = load16(gates + to.at[b]), to.u[b] = load16(gates + to.at[b] + hidden), to.d[b] = load16(dz + offset(row, hidden) + column * N);
                }
                row += down, column += right;
                if (column >= across) column -= across, row++;
            }
        };
        const auto make = [&](const Asked &from) {
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (!from.there[b]) continue;
                float g[N], u[N], d[N], dg[N], du[N];
                unpack16(from.g[b], g, T()), unpack16(from.u[b], u, T()), unpack16(from.d[b], d, T());
#pragma unroll
                for (int e = 0; e < N; e++) gate_backward(g[e], u[e], d[e], dg[e], du[e]);
                T *out = dgates + from.at[b];
                *(uint4 *)out = pack16(dg, T());
                *(uint4 *)(out + hidden) = pack16(du, T());
            }
        };
        Asked even, odd;
        ask(even);
        while (even.there[0]) {
            ask(odd);
            make(even);
            if (!odd.there[0]) break;
            ask(even);
            make(odd);
        }
#elif !SAVED_GATES
        for (u32 item = cluster; item < work_1; item += clusters) {
            // [g | u]^T = Wf x^T: (2H, D) @ (D, B) -> (2H, B)
            const TilePlace at = place_of(item, tiles_1, UNITS);
            multiply<false, false>(sums, ring, end_1 - begin_1, p, One());
            constexpr int IMAGES = images_at_once(2 * Staging<T, UNITS, 1>::BYTES);
            const Staging<T, UNITS, IMAGES> first{ring.results()}, second{first.base + first.BYTES}; // dz, then dg in its place; du
            const int image0 = at.b + p.split * SHARE_COLS;
            const auto read = [&](int round) {
                first.read(dz, image0 + round * IMAGES, batch, at.a, hidden, hidden);
                barrier_among(1, MULTIPLIERS);
            };
            const auto write = [&](int round) {
                first.write(dgates, image0 + round * IMAGES, batch, at.a, hidden, 2 * hidden);
                second.write(dgates + hidden, image0 + round * IMAGES, batch, at.a, hidden, 2 * hidden);
            };
            finish<SHARE_COLS / IMAGES>(sums, ring, p, read, [&](int m, int j, float4 v) {
                const int unit = (warp / 4 * M_TILES + m) * 32 + (warp & 3) * 8, staged = j % (IMAGES / 8);
                if (SPLIT_FP32) {
                    const int image = image0 + 8 * j + (threadIdx.x & 3) * 2;
                    const float s0 = scale[min(image, batch - 1)], s1 = scale[min(image + 1, batch - 1)];
                    v.x *= s0, v.y *= s1, v.z *= s0, v.w *= s1;
                }
                float d[2], dg[2], du[2];
                first.get(unit, staged, d[0], d[1]);
                gate_backward(v.x, v.z, d[0], dg[0], du[0]);
                gate_backward(v.y, v.w, d[1], dg[1], du[1]);
                first.put(unit, staged, dg[0], dg[1]);
                second.put(unit, staged, du[0], du[1]);
            }, write);
        }
#endif
#if PRECISION == 3
#if !SAVED_GATES
        grid_arrive(state);
        if (threadIdx.x == 0) grid_wait(state);
        barrier_among(1, MULTIPLIERS);
#endif
        if (ADDENDS > 1)
            for (int i = blockIdx.x * MULTIPLIERS + threadIdx.x; i < batch * inputs / 4; i += gridDim.x * MULTIPLIERS) ((float4 *)dx)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
        // A part of an image's row has a scale of its own, so that none need be known before the image is whole; a warpgroup takes such a part.
        constexpr int VECTORS = PART == 0 ? 4 : PART / 8 < 8 ? PART / 8 : 8; // of 512 elements of a part, those that stay in registers
        const int parts = parts_of(2 * hidden);
        for (u32 item = blockIdx.x * WARPGROUPS + warp / 4; item < batch * parts; item += gridDim.x * WARPGROUPS) {
            const u32 row = item / parts, part = item % parts;
            const u64 at = offset(row, 2 * hidden);
            int begin, end;
            part_tiles(2 * hidden, part, begin, end);
            const auto load = [&](int k) {
#if SAVED_GATES
                float4 dg, du;
                const int unit = k < hidden ? k : k - hidden;
                const float4 g = *(const float4 *)(gates + at + unit), u = *(const float4 *)(gates + at + hidden + unit), d = *(const float4 *)(dz + offset(row, hidden) + unit);
                gate_backward(g.x, u.x, d.x, dg.x, du.x), gate_backward(g.y, u.y, d.y, dg.y, du.y), gate_backward(g.z, u.z, d.z, dg.z, du.z), gate_backward(g.w, u.w, d.w, dg.w, du.w);
                return k < hidden ? dg : du;
#else
                float v[4];
                unpack16(load16_cg(dgates + at + k), v, 0.f);
                return make_float4(v[0], v[1], v[2], v[3]);
#endif
            };
            const auto write = [&](int k, float4 v) {
                if (SAVED_GATES) *(float4 *)(dgates + at + k) = v;
            };
            float *most = (float *)shared + warp / 4 * 4; // results come later
            split_row<128, VECTORS>(load, write, planes + at, planes + offset(row + batch, 2 * hidden), plane_scale + part * batch + row, begin * K_TILE, min(end * K_TILE, 2 * hidden), 2 + warp / 4, most);
        }
        grid_arrive(state + 1);
#elif SAVED_GATES != 2
        grid_arrive(state);
        if (EARLY == 2) {
            if (PRECISION == 1) asm volatile("bar.arrive 2, %0;" ::"n"(MULTIPLIERS + SPARE) : "memory"); // x^T may not stand yet
            else if (threadIdx.x == 0) let_next_start(); // this thread's fence spoke for the block
        }
#endif
        // The last block whose threads wait for nothing more puts the state back to zero.
        u32 gone = 0;
        const auto leave = [&] {
            if (threadIdx.x == 0) gone = atomicAdd(state + 2, 1u) + 1;
        };
        if (PHASES && cluster >= work_2) leave();
        // dx^T = Wf^T [dg | du]^T: (D, 2H) @ (2H, B) -> (D, B)
        for (u32 item = cluster; item < work_2; item += clusters) {
            const TilePlace at = place_of(item / ADDENDS, tiles_2, ROWS);
            const u32 range = range_of(item);
            if (SPLIT_FP32 && item == cluster) {
                if (threadIdx.x == 0) grid_wait(state + 1); // for the scales
                barrier_among(1, MULTIPLIERS);
            }
            if constexpr (SPLIT_FP32) {
                // Each part's sums are scaled before they are added up; the scales come while it is multiplied.
                Sums all;
                const auto scaled = [&](int from, int to, int part, bool more) {
                    float scale[COLS / 4];
                    load_factors(scale, plane_scale + part * batch, at.b, batch);
                    multiply<true, false>(sums, ring, to - from, p, One());
#pragma unroll
                    for (int m = 0; m < M_TILES; m++)
#pragma unroll
                        for (int j = 0; j < SUMS; j++) {
                            const float by = scale[j / 4 * 2 + j % 2];
                            if (PART) all.v[m][j] = fmaf(sums.v[m][j], by, more ? all.v[m][j] : 0.f);
                            else sums.v[m][j] *= by;
                        }
                };
                if (PART) {
                    for (int from = begin_2; from < end_2;) {
                        const int part = from / max(PART, 1), to = min((part + 1) * PART, end_2);
                        scaled(from, to, part, from > begin_2);
                        from = to;
                    }
                    sums = all;
                } else {
                    scaled(begin_2, end_2, range, false);
                }
            } else {
                multiply<true, false>(sums, ring, end_2 - begin_2, p, One());
            }
            if (PHASES && item == cluster) leave(); // there was something to multiply: the loader has waited too
            if (!EARLY && item + clusters >= work_2) let_next_start();
            constexpr int IMAGES = images_at_once(Staging<T, ROWS, 1>::BYTES);
            const Staging<T, ROWS, IMAGES> out{ring.results()};
            const int image0 = at.b + p.split * SHARE_COLS;
            const auto put = [&](int m, int j, float4 v) {
                const int tile = (warp / 4 * M_TILES + m) * 64, staged = j % (IMAGES / 8);
#if PRECISION == 1
                out.put_pair(tile + row_of_sums(0), staged, v.x, v.y);
                out.put_pair(tile + row_of_sums(1), staged, v.z, v.w);
#else
                out.put(tile + (warp & 3) * 16, staged, v.x, v.y);
                out.put(tile + (warp & 3) * 16 + 8, staged, v.z, v.w);
#endif
            };
            finish<SHARE_COLS / IMAGES>(sums, ring, p, Nothing(), put, [&](int round) { out.template write<(ADDENDS > 1)>(dx, image0 + round * IMAGES, batch, at.a, inputs, inputs); });
        }
        if (PHASES && threadIdx.x == 0 && gone == gridDim.x) state[0] = state[1] = state[2] = 0;
    }
    end_ring();
}
