// W <- one step of SGD with dW = dy^T x on Hopper        dy (B, rows), x (B, columns), W and its velocity (rows, columns), always fp32
//
// For a SwiGLU layer dy is [dg | du] and x the layer's input; for the stem dy is the gradient of its output and x the images, and its bias takes its step
// here too, with db = the column sums of dy.
//
// Reads     dy and x by TMA, along the batch: both tiles lie with K in rows. bf16 wgmma reads such tiles as they are; TF32 and fp32-emulated take A
//           through registers, TF32's B is x transposed in memory (hopper_transpose.cu), fp32-emulated's B the split x (hopper_split.cu). W, velocity.
// Writes    W, velocity, and (bf16) the copy of W that products read. dW is never written.
// Launches  1, persistent
// Wins      over a product and an optimiser's kernel by dW, written and read: 8 bytes a weight of 24
// Loses     where gradients must be seen before any step is taken (clipping by their norm): hopper_swiglu_dwf.cu then
//
// At small B this is a stream over the weights, and all that counts is how many bytes are under way. So W and its velocity pass through a ring of slots of
// their own, 32 columns each: one warp asks for them, from before the kernel ahead has ended (nothing ahead of it writes them); the threads that hold the
// sums step them where they lie; another warp sends them back. L2 is told to let go first of what goes back, so that it keeps what the next forward reads.
// It is not told so of what comes: TMA asks memory for 256 bytes at a time, of which a slot takes 128, and the rest would be gone before its turn.
//
// JOBS 2: two weights, whose gradients are sums over the same batch, in one launch: blocks take the tiles of the other, then those of the last. At D = 512 each
// fills the chip badly alone, with tiles so small that operands are read over and over; at D = 2048 there is one beginning and one end less.
//
// The loader's warps: 0 feeds the product, 1 the slots, 2 empties them, 3 sums the bias.
//
// Maps: `dgrad` dy (B, rows), box (128 bytes, K_TILE); `x` (N, columns), box (64, 64), or TF32: x^T (columns, N), box (32, COLS), or fp32-emulated: its
// planes (2 N, columns) fp16, box (64, 64), and `scale` (B); `weight`, `velocity` (rows, columns) fp32, box (32, ROWS), 128-byte swizzle; `copy`
// (rows, columns) bf16, box (32, ROWS), 64-byte swizzle (other precisions: any map). N = `x_rows` images, of which the batch's begin at
// `first`, or, where `step` is given, at `first` + *step * B (columns of x^T: B to the next multiple of 4). `bias` and `bias_velocity` (rows), or null.
// Grid: at most ceil(rows / ROWS) * ceil(columns / COLS) blocks, of both weights. SPLITS, SHARE_A and SHARE_B are 1. Shared memory: STATE_SLOTS * ROWS * 256 bytes (320 with
// copies) before the ring, STATE_SLOTS * 24 after it.
#include "hopper_over_batch.cuh"
#include "hopper_stream.cuh"
#include "sgd.cuh"

#ifndef STATE_SLOTS
#define STATE_SLOTS 2
#endif
#ifndef JOBS
#define JOBS 1
#endif
static_assert(CLUSTER == 1, "a block owns its tile");

constexpr bool COPIES = PRECISION == 2;
constexpr int WIDE = 32, CHUNKS = COLS / WIDE; // columns of a slot; slots of a tile
constexpr int STATE_BYTES = ROWS * WIDE * 4, SLOT_BYTES = 2 * STATE_BYTES + (COPIES ? STATE_BYTES / 2 : 0);

// One weight and what its gradient is made of.
struct Job {
    const TensorMap *dgrad, *x, *weight, *velocity, *copy;
    const float *scale;
    const u32 *step;
    int first, x_rows, rows, cols;
    DEVICE u32 tiles_a() const { return (rows + ROWS - 1) / ROWS; }
    DEVICE u32 tiles_b() const { return (cols + COLS - 1) / COLS; }
};

// Visits the tiles of this block, those of the second weight after those of the first, and the slots of a tile: f(job, row0, col0) once a tile; f(job, row, col)
// once a slot.
template <class F> DEVICE void each_tile(const Job &one, const Job &two, const F &f) {
    const u32 of_one = one.tiles_a() * one.tiles_b(), of_two = JOBS == 2 ? two.tiles_a() * two.tiles_b() : 0;
    for (u32 item = blockIdx.x; item < of_one + of_two; item += gridDim.x) {
        const bool first = JOBS == 1 || item < of_one;
        const Job job = first ? one : two;
        const TilePlace at = tile_place(first ? item : item - of_one, job.tiles_a(), job.tiles_b());
        f(job, at.a * ROWS, at.b * COLS);
    }
}
template <class F> DEVICE void each_slot(const Job &one, const Job &two, const F &f) {
    each_tile(one, two, [&](const Job &job, int row0, int col0) {
        for (int chunk = 0; chunk < CHUNKS && col0 + chunk * WIDE < job.cols; chunk++) f(job, row0, col0 + chunk * WIDE);
    });
}

// The bias, by one warp: each block takes 16 bytes of dy's columns at a time, each lane every 32nd image.
DEVICE void step_bias(const T *dy, float *bias, float *velocity, Sgd sgd, int batch, int rows) {
    constexpr int N = Vec<T>::N;
    const int lane = threadIdx.x & 31;
    sgd.weight_decay = 0.f; // weights decay, biases do not
    for (int col = blockIdx.x * N; col < rows; col += gridDim.x * N) {
        float sum[N] = {};
#pragma unroll 4
        for (int b = lane; b < batch; b += 32) {
            float v[N];
            unpack16(load16(dy + offset(b, rows) + col), v, T());
#pragma unroll
            for (int e = 0; e < N; e++) sum[e] += v[e];
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            const float total = warp_sum(sum[e]);
            if (lane == e) {
                float w = bias[col + e], v = velocity[col + e];
                sgd_step(sgd, total, w, v);
                bias[col + e] = w, velocity[col + e] = v;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    hopper_weight_step(
#if JOBS == 2
        const __grid_constant__ TensorMap other_dgrad, const __grid_constant__ TensorMap other_x, const __grid_constant__ TensorMap other_weight, const __grid_constant__ TensorMap other_velocity,
        const __grid_constant__ TensorMap other_copy, const float *other_scale, const u32 *other_step, int other_first, int other_x_rows, int other_rows, int other_cols,
#endif
        const __grid_constant__ TensorMap dgrad, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity,
        const __grid_constant__ TensorMap copy, const float *scale, const u32 *step, int first, int x_rows, int rows, int cols, const T *dy, float *bias, float *bias_velocity, const float *lr,
        const float *gradient_scale, float momentum, float weight_decay, int nesterov, int batch) {
    const Job two{&dgrad, &x, &weight, &velocity, &copy, scale, step, first, x_rows, rows, cols};
#if JOBS == 2
    const Job one{&other_dgrad, &other_x, &other_weight, &other_velocity, &other_copy, other_scale, other_step, other_first, other_x_rows, other_rows, other_cols};
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(other_dgrad), tma_prefetch(other_x);
#else
    const Job one = two;
#endif
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared), stages = base + STATE_SLOTS * SLOT_BYTES;
    Slots<STATE_SLOTS, SLOT_BYTES> slots{base, stages + RING_BYTES + BARRIER_BYTES, 0, 0};
    if (threadIdx.x == MULTIPLIERS) tma_prefetch(dgrad), tma_prefetch(x);
    if (threadIdx.x == MULTIPLIERS + 32) tma_prefetch(weight), tma_prefetch(velocity);
    if (threadIdx.x == 0) slots.init(slots, 4 * WARPGROUPS);
    Ring ring = start_ring(stages);
    const Place p = place();
    const int tiles = (batch + K_TILE - 1) / K_TILE;
    if (threadIdx.x >= MULTIPLIERS) {
        become_loader();
        const int warp = (threadIdx.x - MULTIPLIERS) / 32;
        const bool alone = (threadIdx.x & 31) == 0;
        if (warp == 0 && alone) {
            wait_for_last();
            each_tile(one, two, [&](const Job &job, int row0, int col0) {
                const int image0 = job.first + (job.step ? (int)*job.step * (PRECISION == 1 ? (batch + 3) & ~3 : batch) : 0);
                for (int tile = 0; tile < tiles; tile++)
                    feed(ring, [&](u32 a, u32 b, u32 full) { load_over_batch(a, b, full, *job.dgrad, *job.x, tile * K_TILE, row0, col0, image0, job.x_rows); });
            });
            let_next_start();
        } else if (warp == 1 && alone) {
            each_slot(one, two, [&](const Job &job, int row, int col) {
                barrier_wait(slots.left(), slots.parity ^ 1);
                barrier_expect(slots.come(), 2 * STATE_BYTES);
                tma_load(slots.at(), *job.weight, slots.come(), col, row);
                tma_load(slots.at() + STATE_BYTES, *job.velocity, slots.come(), col, row);
                slots.next();
            });
        } else if (warp == 2 && alone) {
            const u64 first_to_go = evict_first();
            each_slot(one, two, [&](const Job &job, int row, int col) {
                barrier_wait(slots.stepped(), slots.parity);
                tma_store(*job.weight, slots.at(), col, row, first_to_go);
                tma_store(*job.velocity, slots.at() + STATE_BYTES, col, row, first_to_go);
                if (COPIES) tma_store(*job.copy, slots.at() + 2 * STATE_BYTES, col, row, stays());
                stores_commit();
                stores_read();
                barrier_arrive(slots.left());
                slots.next();
            });
            stores_done();
        } else if (warp == 3 && bias) {
            wait_for_last();
            step_bias(dy, bias, bias_velocity, sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov), batch, rows);
        }
    } else {
        become_multiplier();
        wait_for_last();
        const Sgd sgd = sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov);
        const int lane = threadIdx.x & 31, row0 = threadIdx.x / 128 * M_TILES * 64;
        each_tile(one, two, [&](const Job &job, int, int col0) {
            // (rows, B) @ (B, columns) -> (rows, columns)
            Sums sums;
            multiply<true, PRECISION != 1>(sums, ring, tiles, p, [&](int k, int) { return k < batch ? job.scale[k] : 0.f; });
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                if (col0 + chunk * WIDE >= job.cols) break;
                barrier_wait(slots.come(), slots.parity);
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
#pragma unroll
                    for (int j = 0; j < WIDE / 8; j++)
#pragma unroll
                        for (int half = 0; half < 2; half++) { // the thread's two rows
                            const int at = row0 + 64 * m + row_of_sums(half);
                            const u32 within = at * 128 + (((2 * j + (lane >> 1 & 1)) ^ (at & 7)) << 4) + (lane & 1) * 8;
                            float2 w = load_shared_pair(slots.at() + within), v = load_shared_pair(slots.at() + STATE_BYTES + within);
                            const float *sum = sums.v[m] + 4 * (chunk * (WIDE / 8) + j) + 2 * half;
                            sgd_step(sgd, sum[0], w.x, v.x);
                            sgd_step(sgd, sum[1], w.y, v.y);
                            store_shared_pair(slots.at() + within, w);
                            store_shared_pair(slots.at() + STATE_BYTES + within, v);
                            if (COPIES) {
                                const u32 to = slots.at() + 2 * STATE_BYTES + at * 64 + ((j ^ (at >> 1 & 3)) << 4) + (lane & 3) * 4;
                                asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pack_bf16(w.x, w.y)) : "memory");
                            }
                        }
                fence_shared(); // the copy engine reads what this thread wrote
                __syncwarp();
                if (lane == 0) barrier_arrive(slots.stepped());
                slots.next();
            }
        });
    }
}
