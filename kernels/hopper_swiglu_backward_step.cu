// dx = [dg | du] Wf, and Wf <- one step of SGD with dWf = [dg | du]^T x, in one pass over Wf        batches of up to 64 images
//
// dz (B, H), [g | u] (B, 2H), x and dx (B, D); Wf and its velocity (2H, D), always fp32
//
// Reads     dz and [g | u], once for each 64 columns of Wf (from L2); x; Wf and velocity, once
// Writes    Wf, velocity, (bf16) the copy of Wf that the forward reads, dx. Neither [dg | du] nor dWf is ever written
// Launches  1
// Wins      over dx and a step by two launches: Wf is read once, by whom it changes, and the dgates are made where they are used; no block waits for another
// Loses     beyond 64 images, where the products are no longer hidden behind the weights' stream: hopper_swiglu_backward_dx.cu and hopper_weight_step.cu then
//
// A block owns 64 columns of Wf and a range of hidden units, with their gates and their ups. Wf and velocity pass through a ring of stages, 32 units at a time: one
// warp asks for them, from before the kernel ahead has ended; the others take their step where they lie; another warp sends them back. Of a stage a warp has
// 16 columns by 32 rows, and one idea makes both products meet there: the sums of dWf^T, [columns] x [rows], lie in a warp's registers just as the left operand of
// dx^T = Wf^T [dg | du]^T does. So a thread reads a weight, multiplies its old value into dx, and steps it with the gradient that it holds.
//
// Blocks that share columns leave their parts of dx in `parts`, and the last of them adds up, in the order of the ranges: results do not depend on timing.
//
// PRECISION 2 rounds weights and dgates to bf16, 1 to TF32, 3 splits them (engine_mma.cuh).
// Maps: `weight`, `velocity`: (D, H, 2) fp32, the last for gate and up, box (32, UNITS, 2), 128-byte swizzle; `copy` the same of bf16, 64-byte swizzle (other
// precisions: any map). `parts`: splits * ceil(D / 64) * 64 * 64 fp32; `counters`: ceil(D / 64) u32, zero before and after.
// Grid: ceil(D / 64) * `splits` blocks of THREADS threads. Shared memory: SHARED_BYTES.
#include "hopper_step.cuh"

#ifndef STAGES
#define STAGES 4
#endif

constexpr int COLUMNS = 64, UNITS = 32, ROWS = 2 * UNITS; // of a block; of a stage
constexpr int WORKERS = 256, THREADS = WORKERS + 128;
constexpr bool COPIES = PRECISION == 2;

// Shared memory: stages, tiles of dgates (two, written in turns) and of x, barriers. Rows of 64 images are so much longer than their elements that fragments meet no bank twice.
constexpr int STATE_BYTES = ROWS * COLUMNS * 4, STAGE_BYTES = 2 * STATE_BYTES + (COPIES ? STATE_BYTES / 2 : 0);
constexpr int PITCH = COLUMNS * (int)sizeof(T) + (sizeof(T) == 2 ? 16 : 32), TILE_BYTES = IMAGES * PITCH;
constexpr int AT_DGATES = STAGES * STAGE_BYTES, AT_X = AT_DGATES + 2 * TILE_BYTES, AT_BARRIERS = AT_X + TILE_BYTES, SHARED = AT_BARRIERS + STAGES * 24 + 8; // and how many blocks of the columns came before
static_assert(SHARED <= 227 << 10, "a multiprocessor's shared memory");
#ifdef SHARED_BYTES
static_assert(SHARED == SHARED_BYTES, "the host's count of shared memory");
#endif
constexpr int PART_PITCH = COLUMNS + 4; // floats
static_assert(2 * IMAGES * PART_PITCH * 4 <= AT_DGATES, "parts of dx are added up where the stages were");

DEVICE u32 place(u32 tile, int row, int col) { return tile + row * PITCH + col * (int)sizeof(T); }

// A thread's share of g, u and dz of a stage: 8 units of one image.
struct Gates {
    static constexpr int VECTORS = sizeof(T) / 2;
    uint4 g[VECTORS], u[VECTORS], dz[VECTORS];
    DEVICE void load(const T *gates, const T *dgrad, int image, int unit, int batch, int hidden) {
        const bool exists = image < batch && unit < hidden;
        const T *from = gates + offset(image, 2 * hidden) + unit, *d = dgrad + offset(image, hidden) + unit;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const uint4 none = make_uint4(0u, 0u, 0u, 0u);
            constexpr int N = Vec<T>::N;
            g[i] = exists ? load16(from + i * N) : none, u[i] = exists ? load16(from + hidden + i * N) : none, dz[i] = exists ? load16(d + i * N) : none;
        }
    }
    // dg and du to columns `col` and UNITS + `col` of the tile.
    DEVICE void derive(u32 tile, int image, int col) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            constexpr int N = Vec<T>::N;
            float gv[N], uv[N], dv[N], dg[N], du[N];
            unpack16(g[i], gv, T()), unpack16(u[i], uv, T()), unpack16(dz[i], dv, T());
#pragma unroll
            for (int e = 0; e < N; e++) {
                gate_backward(gv[e], uv[e], dv[e], dg[e], du[e]);
                if (PRECISION == 1) dg[e] = __uint_as_float(round_tf32(__float_as_uint(dg[e]))), du[e] = __uint_as_float(round_tf32(__float_as_uint(du[e])));
            }
            store_shared16(place(tile, image, col + i * N), pack16(dg, T()));
            store_shared16(place(tile, image, UNITS + col + i * N), pack16(du, T()));
        }
    }
};

// f(image, column) once for each four neighbours of the block's part of dx.
template <class F> DEVICE void each_four(const F &f) {
    for (int i = threadIdx.x; i < IMAGES * COLUMNS / 4; i += WORKERS) f(i / (COLUMNS / 4), i % (COLUMNS / 4) * 4);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopper_swiglu_backward_step(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity, const __grid_constant__ TensorMap copy, const T *x, const T *gates, const T *dz,
                                T *dx, float *parts, u32 *counters, const float *lr, const float *gradient_scale, float momentum, float weight_decay, int nesterov, int splits, int batch, int inputs,
                                int hidden) {
    extern __shared__ __align__(1024) u8 shared[];
    u32 &arrived = *(u32 *)(shared + SHARED - 8);
    const u32 base = shared_address(shared);
    Slots<STAGES, STAGE_BYTES> stages{base, base + AT_BARRIERS, 0, 0};
    const int columns = (inputs + COLUMNS - 1) / COLUMNS, column = blockIdx.x % columns, split = blockIdx.x / columns, col0 = column * COLUMNS;
    const int chunks = (hidden + UNITS - 1) / UNITS, begin = chunks * split / splits, end = chunks * (split + 1) / splits;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (threadIdx.x == WORKERS) tma_prefetch(weight), tma_prefetch(velocity);
    if (threadIdx.x == 0) stages.init(stages, WORKERS / 32), fence_async();
    __syncthreads();

    const int k_tile = warp & 3, half = warp >> 2;
    if (threadIdx.x >= WORKERS) {
        fewer_registers<40>();
        if (threadIdx.x == WORKERS) {
            // What wrote the weights ended long before the kernel ahead began.
            for (int chunk = begin; chunk < end; chunk++, stages.next()) {
                barrier_wait(stages.left(), stages.parity ^ 1);
                barrier_expect(stages.come(), 2 * STATE_BYTES);
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    tma_load(stages.at() + part * (STATE_BYTES / 2), weight, stages.come(), col0 + 32 * part, chunk * UNITS, 0);
                    tma_load(stages.at() + STATE_BYTES + part * (STATE_BYTES / 2), velocity, stages.come(), col0 + 32 * part, chunk * UNITS, 0);
                }
            }
        } else if (threadIdx.x == WORKERS + 32) {
            const u64 first_to_go = evict_first();
            for (int chunk = begin; chunk < end; chunk++, stages.next()) {
                barrier_wait(stages.stepped(), stages.parity);
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    if (col0 + 32 * part >= inputs) break;
                    tma_store(weight, stages.at() + part * (STATE_BYTES / 2), col0 + 32 * part, chunk * UNITS, 0, first_to_go);
                    tma_store(velocity, stages.at() + STATE_BYTES + part * (STATE_BYTES / 2), col0 + 32 * part, chunk * UNITS, 0, first_to_go);
                    if (COPIES) tma_store(copy, stages.at() + 2 * STATE_BYTES + part * (STATE_BYTES / 4), col0 + 32 * part, chunk * UNITS, 0, stays());
                }
                stores_commit();
                stores_read();
                barrier_arrive(stages.left());
            }
            stores_done();
        }
        __syncwarp();
        if (warp == WORKERS / 32 + 1) barrier_among(1, WORKERS + 32); // the stages have left
        return;
    }
    more_registers<232>();
    float sums[8][2][2] = {}; // of dx^T: 16 columns by 64 images
    // x^T as the left operand of dWf^T = x^T [dg | du], for all chunks: 16 columns by 64 images a warp.
    const u32 x_tile = base + AT_X;
    for (int i = threadIdx.x; i < IMAGES * COLUMNS / Vec<T>::N; i += WORKERS) {
        constexpr int N = Vec<T>::N, ACROSS = COLUMNS / N;
        const int image = i / ACROSS, col = i % ACROSS * N;
        const bool exists = image < batch && col0 + col < inputs;
        store_shared16(place(x_tile, image, col), exists ? load16(x + offset(image, inputs) + col0 + col) : make_uint4(0u, 0u, 0u, 0u));
    }
    barrier_among(2, WORKERS);
    u32 from_x[IMAGE_STEPS][4];
    load_over_images<PITCH>(from_x, x_tile, k_tile * 16, lane);

    wait_for_last();
    const Sgd sgd = sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov);
    const int image = threadIdx.x / 4, unit = threadIdx.x % 4 * 8; // of the dgates that this thread makes
    Gates ahead;
    ahead.load(gates, dz, image, begin * UNITS + unit, batch, hidden);
    // A thread's weights: columns lane / 4 + 8 h of the warp's 16, rows 2 (lane % 4) + e of 8: where those of the first 8 rows lie in a stage.
    u32 within[2][2];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = half * UNITS + (lane & 3) * 2 + e, col = (k_tile & 1) * 16 + 8 * h + lane / 4;
            within[h][e] = k_tile / 2 * (STATE_BYTES / 2) + row * 128 + ((col / 4 ^ (row & 7)) << 4) + (col & 3) * 4;
        }
    for (int chunk = begin; chunk < end; chunk++, stages.next()) {
        const u32 tile = base + AT_DGATES + (chunk - begin & 1) * TILE_BYTES;
        ahead.derive(tile, image, unit);
        if (chunk + 1 < end) ahead.load(gates, dz, image, (chunk + 1) * UNITS + unit, batch, hidden);
        else let_next_start();
        barrier_among(2, WORKERS);

        // dWf^T = x^T [dg | du]: (D, B) @ (B, 2H) -> (D, 2H)
        float gradient[UNITS / 8][2][2] = {};
#pragma unroll
        for (int step = 0; step < IMAGES / K_STEP; step++) {
            u32 b[UNITS / 8][2];
#pragma unroll
            for (int j = 0; j < UNITS / 8; j++) {
                const int row = half * UNITS + j * 8;
                if constexpr (sizeof(T) == 2) {
                    if (j % 2) continue;
                    u32 r[4];
                    ldmatrix4_trans(r, place(tile, step * K_STEP + (lane & 15), row + (lane >> 4) * 8));
                    b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
                } else {
                    b[j][0] = load_shared(place(tile, step * K_STEP + (lane & 3), row + lane / 4)), b[j][1] = load_shared(place(tile, step * K_STEP + (lane & 3) + 4, row + lane / 4));
                }
            }
#pragma unroll
            for (int j = 0; j < UNITS / 8; j++) multiply(gradient[j], from_x[step], b[j]);
        }

        barrier_wait(stages.come(), stages.parity);
        constexpr int AT_ONCE = K_STEP / 8; // 8 rows at a time, or 16: a step of dx's K
#pragma unroll
        for (int j0 = 0; j0 < UNITS / 8; j0 += AT_ONCE) {
            float w[AT_ONCE][2][2];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int e = 0; e < 2; e++) w[j][h][e] = __uint_as_float(load_shared(stages.at() + within[h][e] + (j0 + j) * 1024));
            // dx^T = Wf^T [dg | du]^T: (D, 2H) @ (2H, B) -> (D, B)
            u32 a[4];
            as_left(a, w[0], w[AT_ONCE - 1]);
#pragma unroll
            for (int i = 0; i < IMAGES / 8; i++) {
                const int row = half * UNITS + j0 * 8;
                u32 b[2][2];
                if constexpr (sizeof(T) == 2) {
                    if (i % 2) continue;
                    u32 r[4];
                    ldmatrix4(r, place(tile, i * 8 + (lane & 7) + (lane >> 4) * 8, row + (lane >> 3 & 1) * 8));
                    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
                    multiply(sums[i], a, b[0]), multiply(sums[i + 1], a, b[1]);
                } else {
                    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(b[0][0]), "=r"(b[0][1]) : "r"(place(tile, i * 8 + lane / 4, row + (lane & 3) * 2)) : "memory");
                    multiply(sums[i], a, b[0]);
                }
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const u32 at = within[h][e] + (j0 + j) * 1024;
                        float v = __uint_as_float(load_shared(stages.at() + STATE_BYTES + at));
                        sgd_step(sgd, gradient[j0 + j][h][e], w[j][h][e], v);
                        store_shared(stages.at() + at, w[j][h][e]);
                        store_shared(stages.at() + STATE_BYTES + at, v);
                    }
                    if (COPIES) {
                        const int row = half * UNITS + (j0 + j) * 8 + lane / 4, vector = (k_tile & 1) * 2 + h;
                        const u32 to = stages.at() + 2 * STATE_BYTES + k_tile / 2 * (STATE_BYTES / 4) + row * 64 + ((vector ^ (row >> 1 & 3)) << 4) + (lane & 3) * 4;
                        store_shared(to, transposed(pack_bf16(w[j][h][0], w[j][h][1])));
                    }
                }
        }
        fence_shared(); // the copy engine reads what this thread wrote
        __syncwarp();
        if (lane == 0) barrier_arrive(stages.stepped());
    }

    // What the block has of dx: gates and ups, added up; then what all ranges have.
    barrier_among(1, WORKERS + 32); // the stages have left
    float *const halves = (float *)shared;
#pragma unroll
    for (int i = 0; i < IMAGES / 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++) halves[(half * IMAGES + i * 8 + (lane & 3) * 2 + e) * PART_PITCH + k_tile * 16 + 8 * h + lane / 4] = sums[i][h][e];
    barrier_among(2, WORKERS);
    const auto of_block = [&](int image, int col) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const float4 v = *(const float4 *)(halves + (part * IMAGES + image) * PART_PITCH + col);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        return sum;
    };
    const auto write = [&](int image, int col, float4 v) {
        if (image >= batch || col0 + col >= inputs) return;
        T *to = dx + offset(image, inputs) + col0 + col;
        if constexpr (sizeof(T) == 2) *(uint2 *)to = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
        else *(float4 *)to = v;
    };
    if (splits == 1) {
        each_four([&](int image, int col) { write(image, col, of_block(image, col)); });
        return;
    }
    const auto part_of = [&](int from, int image, int col) { return parts + (offset(from * columns + column, IMAGES) + image) * COLUMNS + col; };
    each_four([&](int image, int col) { *(float4 *)part_of(split, image, col) = of_block(image, col); });
    barrier_among(2, WORKERS);
    if (threadIdx.x == 0) {
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        arrived = atomicAdd(counters + column, 1u);
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    barrier_among(2, WORKERS);
    if (arrived != splits - 1) return;
    if (threadIdx.x == 0) counters[column] = 0;
    each_four([&](int image, int col) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
        for (int from = 0; from < splits; from++) {
            float v[4];
            unpack16(load16_cg(part_of(from, image, col)), v, 0.f);
            sum.x += v[0], sum.y += v[1], sum.z += v[2], sum.w += v[3];
        }
        write(image, col, sum);
    });
}
