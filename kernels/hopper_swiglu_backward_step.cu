// dx = [dg | du] Wf, and Wf <- one step of SGD with dWf = [dg | du]^T x, in one pass over Wf        batches of up to 64 images
//
// dz (B, H), [g | u] (B, 2H), x and dx (B, D); Wf and its velocity (2H, D), always fp32
//
// Reads     dz and [g | u], once for each 128 columns of Wf (from L2); x; Wf and velocity, once
// Writes    Wf, velocity, (bf16) the copy of Wf that the forward reads, dx. Neither [dg | du] nor dWf is ever written
// Launches  1
// Wins      over dx and a step by two launches: Wf is read once, by whom it changes, and the dgates are made where they are used; blocks wait for each other
//           once, at the end
// Loses     beyond 64 images, where the products are no longer hidden behind the weights' stream: hopper_swiglu_backward_dx.cu and hopper_weight_step.cu then
//
// A block owns 128 columns of Wf and a range of hidden units, with their gates and their ups. Wf and velocity pass through a ring of stages, 16 units at a time: one
// thread asks for them, from before the kernel ahead has ended; eight warps take their step where they lie; another thread sends them back. Of a stage a warp has
// 16 columns by 32 rows, and one idea makes both products meet there: the sums of dWf^T, [columns] x [rows], lie in a warp's registers just as the left operand of
// dx^T = Wf^T [dg | du]^T does. So a thread reads a weight, multiplies its old value into dx, and steps it with the gradient that it holds. Which column of Wf is
// which row of these sums is free: rows r and r + 8 are neighbours, so that a thread reads and writes weights two at a time.
//
// Blocks that share columns leave their parts of dx in `parts`; when all have, each adds up a share, in the order of the ranges: results do not depend on timing.
//
// Registers are left to the kernels of the head, which do little: they run while this one's first stages, a tenth of all it reads, are on their way.
//
// PRECISION 2 rounds weights and dgates to bf16, 1 to TF32, 3 splits them (engine_mma.cuh).
// Maps: `weight`, `velocity`: (D, H, 2) fp32, the last for gate and up, box (32, UNITS, 2), 128-byte swizzle; `copy` the same of bf16, 64-byte swizzle (other
// precisions: any map). `parts`: splits * ceil(D / 128) * 64 * 128 fp32; `counters`: ceil(D / 128) u32, zero before and after.
// Grid: ceil(D / 128) * `splits` blocks of THREADS threads, with more than one split all at once on the chip. Shared memory: SHARED_BYTES.
#include "hopper_step.cuh"

#ifndef STAGES
#define STAGES 5
#endif
#ifndef KEPT
#define KEPT 2
#define KEPT_VELOCITY 2
#endif
constexpr int COLUMNS = 128, UNITS = 16, ROWS = 2 * UNITS; // of a block; of a stage
constexpr bool HANDS_REGISTERS = PRECISION == 3; // from the warps that copy to those that multiply, which need more than a thread's share
constexpr int WORKERS = 256, THREADS = WORKERS + (HANDS_REGISTERS ? 128 : 64);
constexpr int ROOM = HANDS_REGISTERS ? THREADS : 512; // threads that could share a multiprocessor's registers
constexpr bool COPIES = PRECISION == 2;
constexpr int TOGETHER = 4 * Vec<T>::N, STAGES_TOGETHER = TOGETHER / UNITS; // units whose dgates are made at once, 16 bytes of an image a thread; stages that they are for
static_assert(COLUMNS / 16 == WORKERS / 32, "a warp has 16 columns");

// Shared memory: stages, two tiles of dgates, written in turns, barriers. Rows of a tile are so much longer than their elements that fragments meet no bank twice.
constexpr int STATE_BYTES = ROWS * COLUMNS * 4, STAGE_BYTES = 2 * STATE_BYTES + (COPIES ? STATE_BYTES / 2 : 0);
constexpr int BOXES = COLUMNS / 32, BOX_BYTES = STATE_BYTES / BOXES; // 128 bytes wide
constexpr int PITCH = 2 * TOGETHER * (int)sizeof(T) + (sizeof(T) == 2 ? 16 : 32), TILE_BYTES = IMAGES * PITCH;
constexpr int AT_DGATES = STAGES * STAGE_BYTES, AT_BARRIERS = AT_DGATES + 2 * TILE_BYTES, SHARED = AT_BARRIERS + STAGES * 24;
static_assert(SHARED <= 227 << 10, "a multiprocessor's shared memory");
#ifdef SHARED_BYTES
static_assert(SHARED == SHARED_BYTES, "the host's count of shared memory");
#endif

DEVICE u32 place(u32 tile, int row, int col) { return tile + row * PITCH + col * (int)sizeof(T); }

// x^T as the left operand of dWf^T = x^T [dg | du]: 16 columns by 64 images a warp, of which row r of a fragment's first 8 is column 2 r and row 8 + r column 2 r + 1.
DEVICE void load_x(u32 (&a)[IMAGE_STEPS][4], const T *x, int col, int batch, int inputs, int lane) {
#pragma unroll
    for (int step = 0; step < IMAGE_STEPS; step++) {
        if constexpr (sizeof(T) == 2) {
            u32 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int image = step * K_STEP + (lane & 3) * 2 + (i & 1) + i / 2 * 8;
                v[i] = 0;
                if (image < batch && col < inputs) asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v[i]) : "l"(x + offset(image, inputs) + col) : "memory");
            }
            a[step][0] = __byte_perm(v[0], v[1], 0x5410), a[step][1] = __byte_perm(v[0], v[1], 0x7632);
            a[step][2] = __byte_perm(v[2], v[3], 0x5410), a[step][3] = __byte_perm(v[2], v[3], 0x7632);
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int image = step * K_STEP + (lane & 3) + i * 4;
                float2 v = make_float2(0.f, 0.f);
                if (image < batch && col < inputs) asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(x + offset(image, inputs) + col) : "memory");
                a[step][2 * i] = as_operand(v.x), a[step][2 * i + 1] = as_operand(v.y);
            }
        }
    }
}
// How long L2 is to hold what passes: what is written goes first, but for `kept` sixteenths, which are there still when the forward or the next step asks.
struct Keeping {
    u64 normal, first, last;
    DEVICE Keeping() : normal(stays()), first(evict_first()), last(evict_last()) {}
    DEVICE static bool keeps(int unit, int col, int kept) { return (unit / 64 + col / 64) % 16 < kept; }
    DEVICE u64 read(int unit, int col, int kept) const { return keeps(unit, col, kept) ? last : normal; }
    DEVICE u64 written(int unit, int col, int kept) const { return keeps(unit, col, kept) ? last : first; }
};

// A thread's share of the g, u and dz that are read at once: 16 bytes each, of one image.
struct Gates {
    static constexpr int N = Vec<T>::N;
    uint4 g, u, dz;
    DEVICE void load(const T *gates, const T *dgrad, int image, int unit, int batch, int hidden) {
        const bool exists = image < batch && unit < hidden;
        const T *from = gates + offset(image, 2 * hidden) + unit;
        const uint4 none = make_uint4(0u, 0u, 0u, 0u);
        g = exists ? load16(from) : none, u = exists ? load16(from + hidden) : none, dz = exists ? load16(dgrad + offset(image, hidden) + unit) : none;
    }
    // dg and du to columns `col` and TOGETHER + `col` of the tile.
    DEVICE void derive(u32 tile, int image, int col) const {
        float gv[N], uv[N], dv[N], dg[N], du[N];
        unpack16(g, gv, T()), unpack16(u, uv, T()), unpack16(dz, dv, T());
#pragma unroll
        for (int e = 0; e < N; e++) {
            gate_backward(gv[e], uv[e], dv[e], dg[e], du[e]);
            if (PRECISION == 1) dg[e] = __uint_as_float(round_tf32(__float_as_uint(dg[e]))), du[e] = __uint_as_float(round_tf32(__float_as_uint(du[e])));
        }
        store_shared16(place(tile, image, col), pack16(dg, T()));
        store_shared16(place(tile, image, TOGETHER + col), pack16(du, T()));
    }
};

extern "C" __global__ void __launch_bounds__(ROOM, 1)
    hopper_swiglu_backward_step(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity, const __grid_constant__ TensorMap copy, const T *x, const T *gates, const T *dz,
                                T *dx, float *parts, u32 *counters, const float *lr, const float *gradient_scale, float momentum, float weight_decay, int nesterov, int splits, int batch, int inputs,
                                int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    Slots<STAGES, STAGE_BYTES> stages{base, base + AT_BARRIERS, 0, 0};
    const int columns = (inputs + COLUMNS - 1) / COLUMNS, column = blockIdx.x % columns, split = blockIdx.x / columns, col0 = column * COLUMNS;
    const int chunks = (hidden + TOGETHER - 1) / TOGETHER, begin = chunks * split / splits, end = chunks * (split + 1) / splits;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (threadIdx.x == WORKERS) tma_prefetch(weight), tma_prefetch(velocity);
    if (threadIdx.x == 0) stages.init(stages, WORKERS / 32), fence_shared();
    __syncthreads();

    if (threadIdx.x >= WORKERS) {
        if constexpr (HANDS_REGISTERS) fewer_registers<40>();
        if (threadIdx.x == WORKERS) {
            // What wrote the weights ended long before the kernel ahead began.
            const Keeping keeping;
            for (int unit = begin * TOGETHER; unit < end * TOGETHER; unit += UNITS, stages.next()) {
                barrier_wait(stages.left(), stages.parity ^ 1);
                barrier_expect(stages.come(), 2 * STATE_BYTES);
#pragma unroll
                for (int box = 0; box < BOXES; box++) {
                    const u32 to = stages.at() + box * BOX_BYTES;
                    const int col = col0 + 32 * box;
                    tma_load_as(keeping.read(unit, col, KEPT), to, weight, stages.come(), col, unit, 0);
                    tma_load_as(keeping.read(unit, col, KEPT_VELOCITY), to + STATE_BYTES, velocity, stages.come(), col, unit, 0);
                }
            }
        } else if (threadIdx.x == WORKERS + 32) {
            const Keeping keeping;
            for (int unit = begin * TOGETHER; unit < end * TOGETHER; unit += UNITS, stages.next()) {
                barrier_wait(stages.stepped(), stages.parity);
#pragma unroll
                for (int box = 0; box < BOXES; box++) {
                    const u32 from = stages.at() + box * BOX_BYTES;
                    const int col = col0 + 32 * box;
                    if (col >= inputs) break;
                    tma_store(weight, from, col, unit, 0, keeping.written(unit, col, KEPT));
                    tma_store(velocity, from + STATE_BYTES, col, unit, 0, keeping.written(unit, col, KEPT_VELOCITY));
                    if (COPIES) tma_store(copy, stages.at() + 2 * STATE_BYTES + box * (BOX_BYTES / 2), col, unit, 0, keeping.normal);
                }
                stores_commit();
                stores_read();
                barrier_arrive(stages.left());
            }
        }
        return;
    }
    if constexpr (HANDS_REGISTERS) more_registers<232>();
    const int pair = (lane / 4) * 2, col = col0 + warp * 16 + pair; // of the warp's columns; of Wf
    float sums[IMAGES / 8][2][2] = {};                              // of dx^T: 16 columns by 64 images
    u32 from_x[IMAGE_STEPS][4];
    load_x(from_x, x, col, batch, inputs, lane);

    wait_for_last();
    const Sgd sgd = sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov);
    const int image = threadIdx.x / 4, unit = threadIdx.x % 4 * Gates::N; // of the dgates that this thread makes
    Gates ahead;
    ahead.load(gates, dz, image, begin * TOGETHER + unit, batch, hidden);
    // A thread's weights: columns `pair` and the next of the warp's 16, rows 2 (lane % 4) + e of 8: where those of the first 8 rows lie in a stage.
    u32 within[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = (lane & 3) * 2 + e, at = (warp & 1) * 16 + pair;
        within[e] = warp / 2 * BOX_BYTES + row * 128 + ((at / 4 ^ row) << 4) + (at & 3) * 4;
    }
    for (int chunk = begin; chunk < end; chunk++) {
        const u32 tile = base + AT_DGATES + (chunk - begin & 1) * TILE_BYTES;
        ahead.derive(tile, image, unit);
        if (chunk + 1 < end) ahead.load(gates, dz, image, (chunk + 1) * TOGETHER + unit, batch, hidden);
        else let_next_start();
        barrier_among(1, WORKERS);
#pragma unroll 1
        for (int stage = 0; stage < STAGES_TOGETHER; stage++, stages.next()) {
            // Where the dgates of rows 8 j to 8 j + 8 of the stage are in the tile.
            const auto tile_col = [&](int j) { return (j * 8 < UNITS ? 0 : TOGETHER - UNITS) + stage * UNITS + j * 8; };
            // dWf^T = x^T [dg | du]: (D, B) @ (B, 2H) -> (D, 2H)
            float gradient[ROWS / 8][2][2] = {};
#pragma unroll
            for (int step = 0; step < IMAGE_STEPS; step++) {
                u32 b[ROWS / 8][2];
#pragma unroll
                for (int j = 0; j < ROWS / 8; j++) {
                    if constexpr (sizeof(T) == 2) {
                        if (j % 2) continue;
                        u32 r[4];
                        ldmatrix4_trans(r, place(tile, step * K_STEP + (lane & 15), tile_col(j) + (lane >> 4) * 8));
                        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
                    } else {
                        b[j][0] = load_shared(place(tile, step * K_STEP + (lane & 3), tile_col(j) + lane / 4)), b[j][1] = load_shared(place(tile, step * K_STEP + (lane & 3) + 4, tile_col(j) + lane / 4));
                    }
                }
#pragma unroll
                for (int j = 0; j < ROWS / 8; j++) multiply(gradient[j], from_x[step], b[j]);
            }

            barrier_wait(stages.come(), stages.parity);
            constexpr int AT_ONCE = K_STEP / 8; // 8 rows at a time, or 16: a step of dx's K
#pragma unroll
            for (int j0 = 0; j0 < ROWS / 8; j0 += AT_ONCE) {
                float w[AT_ONCE][2][2];
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const float2 v = load_shared_pair(stages.at() + within[e] + (j0 + j) * 1024);
                        w[j][0][e] = v.x, w[j][1][e] = v.y;
                    }
                // dx^T = Wf^T [dg | du]^T: (D, 2H) @ (2H, B) -> (D, B)
                u32 a[4];
                as_left(a, w[0], w[AT_ONCE - 1]);
#pragma unroll
                for (int i = 0; i < IMAGES / 8; i++) {
                    u32 b[2][2];
                    if constexpr (sizeof(T) == 2) {
                        if (i % 2) continue;
                        u32 r[4];
                        ldmatrix4(r, place(tile, i * 8 + (lane & 7) + (lane >> 4) * 8, tile_col(j0) + (lane >> 3 & 1) * 8));
                        b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
                        multiply(sums[i], a, b[0]), multiply(sums[i + 1], a, b[1]);
                    } else {
                        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(b[0][0]), "=r"(b[0][1]) : "r"(place(tile, i * 8 + lane / 4, tile_col(j0) + (lane & 3) * 2)) : "memory");
                        multiply(sums[i], a, b[0]);
                    }
                }
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const u32 at = stages.at() + within[e] + (j0 + j) * 1024;
                        float2 v = load_shared_pair(at + STATE_BYTES);
                        sgd_step(sgd, gradient[j0 + j][0][e], w[j][0][e], v.x), sgd_step(sgd, gradient[j0 + j][1][e], w[j][1][e], v.y);
                        store_shared_pair(at, make_float2(w[j][0][e], w[j][1][e]));
                        store_shared_pair(at + STATE_BYTES, v);
                        if (COPIES) {
                            const int row = (j0 + j) * 8 + (lane & 3) * 2 + e, vector = (warp & 1) * 2 + pair / 8;
                            const u32 to = stages.at() + 2 * STATE_BYTES + warp / 2 * (BOX_BYTES / 2) + row * 64 + ((vector ^ (row >> 1 & 3)) << 4) + (pair & 7) * 2;
                            store_shared(to, pack_bf16(w[j][0][e], w[j][1][e]));
                        }
                    }
            }
            fence_shared(); // the copy engine reads what this thread wrote
            __syncwarp();
            if (lane == 0) barrier_arrive(stages.stepped());
        }
    }

    // What the block has of dx, then what all ranges have: images 8 i + 2 (lane % 4) and the next, each with two columns.
    const auto write = [&](int i, const float (&v)[4]) {
        const int lane = thread() & 31, col = col0 + thread() / 32 * 16 + (lane / 4) * 2;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int image = i * 8 + (lane & 3) * 2 + e;
            if (image >= batch || col >= inputs) continue;
            T *to = dx + offset(image, inputs) + col;
            if constexpr (sizeof(T) == 2) *(u32 *)to = pack_bf16(v[2 * e], v[2 * e + 1]);
            else *(float2 *)to = make_float2(v[2 * e], v[2 * e + 1]);
        }
    };
    const auto part_of = [&](int from, int i) { return (float4 *)parts + (offset(from * columns + column, IMAGES / 8) + i) * WORKERS + threadIdx.x; };
#pragma unroll
    for (int i = 0; i < IMAGES / 8; i++) {
        const float v[4] = {sums[i][0][0], sums[i][1][0], sums[i][0][1], sums[i][1][1]};
        if (splits == 1) write(i, v);
        else *part_of(split, i) = make_float4(v[0], v[1], v[2], v[3]);
    }
    if (splits == 1) return;
    barrier_among(1, WORKERS);
    if (threadIdx.x == 0) {
        // The lower half counts blocks that have left their parts, the upper half those that know that all have.
        fence_chip(); // after the barrier it speaks for the whole block
        u32 there = atomicAdd(counters + column, 1u) + 1;
        while ((there & 0xffff) != splits) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(counters + column) : "memory");
        fence_chip();
        if (atomicAdd(counters + column, 0x10000u) >> 16 == splits - 1) counters[column] = 0;
    }
    barrier_among(1, WORKERS);
    for (int i = split; i < IMAGES / 8; i += splits) {
        float sum[4] = {};
#pragma unroll 8
        for (int from = 0; from < splits; from++) {
            float v[4];
            unpack16(load16_cg(part_of(from, i)), v, 0.f);
#pragma unroll
            for (int q = 0; q < 4; q++) sum[q] += v[q];
        }
        write(i, sum);
    }
}
