// W and its bias <- one step of SGD with dW = dy^T x, and y' = x' W'^T + bias' of the images that follow, in one pass over W        batches of up to 64 images
//
// x, x' (B, K), dy and y' (B, N), W and its velocity (N, K), bias (N), always fp32
//
// Reads     x, x' once for each 16 rows of W (from L2); dy; W, velocity, bias, once
// Writes    W, velocity, bias, (bf16) the copy of W, y'
// Launches  1; without dy it multiplies only, for the first images of all, and without y' it steps only, for the last: what it multiplies it multiplies the same way each time
// Wins      over a step and a product by two launches: W is read once, and there is no launch between what changes W and what reads it
// Loses     beyond 64 images: hopper_weight_step.cu and hopper_linear.cu then
//
// A block owns 16 rows of W, so all of K, and shares its sums with nobody. All that it has of W and velocity is asked for at once, from before the kernel ahead has ended, and
// stays in shared memory until it has left for memory again; x and x' pass through a ring of slots, 64 columns at a time, each taken by a group of four warps, 16 columns
// a warp. As in hopper_swiglu_backward_step.cu the sums of the gradient lie in registers just as the left operand of the product that follows: a weight is read, stepped, and
// multiplied with its new value.
//
// Maps: `weight`, `velocity` (N, K) fp32, box (32, 16), 128-byte swizzle; `copy` the same of bf16, 64-byte swizzle (other precisions: any map); `images` (`x_rows`, K), box (128 bytes, 64
// rows), 128-byte swizzle: x begins at row `first` + *step * B, x' at row `next` + *step * B; without `step` at `first` and `next`. fp32-emulated: `images` are planes of fp16, lo
// `x_rows` rows below hi, of which each pixel is the sum times *scale. `last_batch` images of x, `batch` of x'.
// K: 832 at most. Grid: ceil(N / 16) blocks of THREADS threads. Shared memory: SHARED_BYTES.
#include "hopper_step.cuh"

#ifndef SLOTS
#define SLOTS 5
#endif
#ifndef GROUPS
#define GROUPS 2
#endif

constexpr int OUTPUTS = 16, COLUMNS = 64, CHUNKS = 13; // of a block; of a chunk; chunks that there is room for
constexpr int GROUP_WARPS = 4, WORKERS = 128 * GROUPS, THREADS = WORKERS + 64;
constexpr bool COPIES = PRECISION == 2;

constexpr int STATE_BYTES = OUTPUTS * COLUMNS * 4, COPY_BYTES = COPIES ? STATE_BYTES / 2 : 0, CHUNK_BYTES = 2 * STATE_BYTES + COPY_BYTES;
constexpr int PLANE_BYTES = IMAGES * 128, X_BYTES = (sizeof(T) == 2 ? 1 : 2) * PLANE_BYTES, SLOT_BYTES = 2 * X_BYTES;
constexpr int DY_PITCH = OUTPUTS * (int)sizeof(T) + (sizeof(T) == 2 ? 16 : 32); // so that fragments meet no bank twice
constexpr int AT_SLOTS = CHUNKS * CHUNK_BYTES, AT_DY = AT_SLOTS + SLOTS * SLOT_BYTES, AT_BIAS = AT_DY + IMAGES * DY_PITCH, AT_BARRIERS = AT_BIAS + OUTPUTS * 4,
              SHARED = AT_BARRIERS + CHUNKS * 24;
static_assert(SHARED <= 227 << 10 && CHUNK_BYTES % 1024 == 0, "a multiprocessor's shared memory");
#ifdef SHARED_BYTES
static_assert(SHARED == SHARED_BYTES, "the host's count of shared memory");
#endif
constexpr int PART_PITCH = OUTPUTS + 4; // floats
static_assert(WORKERS / 32 * IMAGES * PART_PITCH * 4 <= SLOTS * SLOT_BYTES, "parts of y' are added up where the images were");

DEVICE float load_cg(const float *p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

// Where chunk `chunk` of 16 bytes of a row of a box lies.
DEVICE u32 chunk_of(u32 box, int row, int chunk) { return box + row * 128 + ((chunk ^ (row & 7)) << 4); }
DEVICE float half_to_float(u16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v));
    return out;
}
DEVICE u16 load_shared_half(u32 at) {
    u16 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
    return v;
}

// The right operands of a warp's 16 columns (from 16 `q` on) of a slot's images.
// Summed over images: step `step` of K, two tiles of 8 columns.
DEVICE void load_gradient(u32 (&b)[2][2], u32 x, int q, int step, float scale, int lane) {
    if constexpr (sizeof(T) == 2) {
        u32 r[4];
        ldmatrix4_trans(r, chunk_of(x, step * K_STEP + (lane & 15), 2 * q + (lane >> 4)));
        b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
    } else {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int image = step * K_STEP + (lane & 3) + 4 * k, col = lane / 4;
#if PRECISION == 3
                const u32 at = chunk_of(x, image, 2 * q + j) + col * 2;
                b[j][k] = __float_as_uint((half_to_float(load_shared_half(at)) + half_to_float(load_shared_half(at + PLANE_BYTES))) * scale);
#else
                b[j][k] = load_shared(chunk_of(x + q / 2 * PLANE_BYTES, image, (q & 1) * 4 + 2 * j + col / 4) + (col & 3) * 4);
#endif
            }
    }
}
// Summed over columns, tile `j` of them (bf16: both), in the order of as_left(): images 16 `pair` and 8 more.
DEVICE void load_forward(u32 (&b)[2][2], u32 x, int q, int j, int pair, float scale, int lane) {
    if constexpr (sizeof(T) == 2) {
        u32 r[4];
        ldmatrix4(r, chunk_of(x, pair * 16 + (lane & 7) + (lane >> 4) * 8, 2 * q + (lane >> 3 & 1)));
        b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int image = pair * 16 + i * 8 + lane / 4;
#if PRECISION == 3
            const u32 at = chunk_of(x, image, 2 * q + j) + (lane & 3) * 4, hi = load_shared(at), lo = load_shared(at + PLANE_BYTES);
#pragma unroll
            for (int k = 0; k < 2; k++) b[i][k] = __float_as_uint((half_to_float(hi >> 16 * k) + half_to_float(lo >> 16 * k)) * scale);
#else
            const float2 v = load_shared_pair(chunk_of(x + q / 2 * PLANE_BYTES, image, (q & 1) * 4 + 2 * j + (lane & 3) / 2) + (lane & 1) * 8);
            b[i][0] = __float_as_uint(v.x), b[i][1] = __float_as_uint(v.y);
#endif
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopper_stem_step(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity, const __grid_constant__ TensorMap copy, const __grid_constant__ TensorMap images,
                     const float *scale, const T *dy, T *y, float *bias, float *bias_velocity, const float *lr, const float *gradient_scale, float momentum, float weight_decay, int nesterov,
                     const u32 *step, int first, int next, int x_rows, int last_batch, int batch, int inputs, int outputs) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const auto weights_at = [&](int chunk) { return base + chunk * CHUNK_BYTES; };
    const auto images_at = [&](int chunk) { return base + AT_SLOTS + chunk % SLOTS * SLOT_BYTES; };
    // Each chunk has barriers of its own: its weights have come, its images have come, its weights are stepped and its images no longer needed. So none is used twice, and
    // groups may overtake each other.
    const auto come = [&](int chunk) { return base + AT_BARRIERS + chunk * 24; };
    const auto images_come = [&](int chunk) { return come(chunk) + 8; };
    const auto stepped = [&](int chunk) { return come(chunk) + 16; };
    const int chunks = (inputs + COLUMNS - 1) / COLUMNS, row0 = blockIdx.x * OUTPUTS, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (threadIdx.x == WORKERS) tma_prefetch(weight), tma_prefetch(velocity), tma_prefetch(images);
    if (threadIdx.x == 0) {
        for (int i = 0; i < CHUNKS; i++) barrier_init(come(i), 1), barrier_init(images_come(i), 1), barrier_init(stepped(i), GROUP_WARPS);
        fence_shared();
    }
    __syncthreads();

    if (threadIdx.x >= WORKERS) {
        if (threadIdx.x == WORKERS) {
            // Before a step, all that is read was written, and all that is written was read, before the kernel ahead began.
            if (!dy) wait_for_last();
            const int moved = step ? (int)*step * batch : 0;
            const auto ask_images = [&](u32 to, int row, int chunk) {
#pragma unroll
                for (int part = 0; part < X_BYTES / PLANE_BYTES; part++) {
                    if (PRECISION == 3) tma_load(to + part * PLANE_BYTES, images, images_come(chunk), chunk * COLUMNS, row + part * x_rows);
                    else tma_load(to + part * PLANE_BYTES, images, images_come(chunk), chunk * COLUMNS + part * (128 / (int)sizeof(T)), row);
                }
            };
            const auto ask_all_images = [&](int chunk) {
                if (chunk >= SLOTS) barrier_wait(stepped(chunk - SLOTS), 0);
                barrier_expect(images_come(chunk), (dy ? X_BYTES : 0) + (y ? X_BYTES : 0));
                if (dy) ask_images(images_at(chunk), first + moved, chunk);
                if (y) ask_images(images_at(chunk) + X_BYTES, next + moved, chunk);
            };
            for (int chunk = 0; chunk < chunks; chunk++) {
                barrier_expect(come(chunk), STATE_BYTES + (dy ? STATE_BYTES : 0));
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    tma_load(weights_at(chunk) + part * (STATE_BYTES / 2), weight, come(chunk), chunk * COLUMNS + 32 * part, row0);
                    if (dy) tma_load(weights_at(chunk) + STATE_BYTES + part * (STATE_BYTES / 2), velocity, come(chunk), chunk * COLUMNS + 32 * part, row0);
                }
                if (chunk < SLOTS) ask_all_images(chunk);
            }
            for (int chunk = SLOTS; chunk < chunks; chunk++) ask_all_images(chunk);
        } else if (threadIdx.x == WORKERS + 32 && dy) {
            const u64 first_to_go = evict_first();
            for (int chunk = 0; chunk < chunks; chunk++) {
                barrier_wait(stepped(chunk), 0);
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    const int col = chunk * COLUMNS + 32 * part;
                    if (col >= inputs) break;
                    tma_store(weight, weights_at(chunk) + part * (STATE_BYTES / 2), col, row0, first_to_go);
                    tma_store(velocity, weights_at(chunk) + STATE_BYTES + part * (STATE_BYTES / 2), col, row0, first_to_go);
                    if (COPIES) tma_store(copy, weights_at(chunk) + 2 * STATE_BYTES + part * (COPY_BYTES / 2), col, row0, stays());
                }
                stores_commit();
            }
            stores_read();
        }
        return;
    }

    // The bias: 16 threads an output, each with every 16th image. It was written before the kernel ahead began.
    const int output_of_bias = threadIdx.x / 16;
    const bool does_bias = threadIdx.x % 16 == 0 && threadIdx.x < 16 * OUTPUTS && row0 + output_of_bias < outputs;
    if (!dy) wait_for_last();
    float bias_w = 0.f, bias_v = 0.f;
    if (does_bias) bias_w = load_cg(bias + row0 + output_of_bias), bias_v = dy ? load_cg(bias_velocity + row0 + output_of_bias) : 0.f;
    wait_for_last();
    const Sgd sgd = dy ? sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov) : Sgd{};
    const u32 dy_tile = base + AT_DY;
    float *const new_bias = (float *)(shared + AT_BIAS);
    const float factor = PRECISION == 3 ? *scale : 1.f;
    u32 from_dy[IMAGE_STEPS][4];
    if (dy) {
        for (int i = threadIdx.x; i < IMAGES * OUTPUTS / Vec<T>::N; i += WORKERS) {
            constexpr int N = Vec<T>::N, ACROSS = OUTPUTS / N;
            const int image = i / ACROSS, col = i % ACROSS * N;
            const bool exists = image < last_batch && row0 + col < outputs;
            store_shared16(dy_tile + image * DY_PITCH + col * (int)sizeof(T), exists ? load16(dy + offset(image, outputs) + row0 + col) : make_uint4(0u, 0u, 0u, 0u));
        }
        barrier_among(2, WORKERS);
        load_over_images<DY_PITCH>(from_dy, dy_tile, 0, lane);
    }
    if (threadIdx.x < 16 * OUTPUTS) {
        float sum = 0.f;
        if (dy) {
#pragma unroll
            for (int image = threadIdx.x % 16; image < IMAGES; image += 16) sum += to_float(((const T *)(shared + AT_DY + image * DY_PITCH))[output_of_bias]);
        }
#pragma unroll
        for (int d = 8; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (does_bias) {
            if (dy) {
                Sgd undecayed = sgd; // weights decay, biases do not
                undecayed.weight_decay = 0.f;
                sgd_step(undecayed, sum, bias_w, bias_v);
                bias[row0 + output_of_bias] = bias_w, bias_velocity[row0 + output_of_bias] = bias_v;
            }
            new_bias[output_of_bias] = bias_w;
        }
    }

    float sums[8][2][2] = {}; // of y'^T: 16 outputs by 64 images
    const int q = warp & 3, group = warp / GROUP_WARPS;
    for (int chunk = group; chunk < chunks; chunk += GROUPS) {
        const u32 slot = weights_at(chunk), x_slot = images_at(chunk);
        barrier_wait(come(chunk), 0);
        // Neighbours at columns 16 q + 8 j + 2 (lane % 4), rows lane / 4 + 8 h.
        float w[2][2][2];
        const auto place_of = [&](int j, int h) { return chunk_of(slot + q / 2 * (STATE_BYTES / 2), lane / 4 + 8 * h, (q & 1) * 4 + 2 * j + (lane & 3) / 2) + (lane & 1) * 8; };
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float2 pair = load_shared_pair(place_of(j, h));
                w[j][h][0] = pair.x, w[j][h][1] = pair.y;
            }
        barrier_wait(images_come(chunk), 0);
        if (dy) {
            // dW = dy^T x: (N, B) @ (B, K) -> (N, K)
            float gradient[2][2][2] = {};
#pragma unroll
            for (int s = 0; s < IMAGE_STEPS; s++) {
                u32 b[2][2];
                load_gradient(b, x_slot, q, s, factor, lane);
                multiply(gradient[0], from_dy[s], b[0]), multiply(gradient[1], from_dy[s], b[1]);
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 at = place_of(j, h);
                    float2 v = load_shared_pair(at + STATE_BYTES);
                    sgd_step(sgd, gradient[j][h][0], w[j][h][0], v.x), sgd_step(sgd, gradient[j][h][1], w[j][h][1], v.y);
                    store_shared_pair(at, make_float2(w[j][h][0], w[j][h][1]));
                    store_shared_pair(at + STATE_BYTES, v);
                    if (COPIES) {
                        const int row = lane / 4 + 8 * h;
                        store_shared(slot + 2 * STATE_BYTES + q / 2 * (COPY_BYTES / 2) + row * 64 + ((((q & 1) * 2 + j) ^ (row >> 1 & 3)) << 4) + (lane & 3) * 4, pack_bf16(w[j][h][0], w[j][h][1]));
                    }
                }
        }
        if (y) {
            // y'^T = W' x'^T: (N, K) @ (K, B) -> (N, B)
            constexpr int AT_ONCE = K_STEP / 8;
#pragma unroll
            for (int j = 0; j < 2; j += AT_ONCE) {
                u32 a[4];
                as_left(a, w[j], w[j + AT_ONCE - 1]);
#pragma unroll
                for (int pair = 0; pair < IMAGES / 16; pair++) {
                    u32 b[2][2];
                    load_forward(b, x_slot + X_BYTES, q, j, pair, factor, lane);
                    multiply(sums[2 * pair], a, b[0]), multiply(sums[2 * pair + 1], a, b[1]);
                }
            }
        }
        fence_shared(); // the copy engine reads what this thread wrote
        __syncwarp();
        if (lane == 0) barrier_arrive(stepped(chunk));
    }
    let_next_start();

    if (!y) return;
    barrier_among(1, WORKERS); // the images have been read
    float *const parts = (float *)(shared + AT_SLOTS);
#pragma unroll
    for (int i = 0; i < IMAGES / 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++) parts[(thread() / 32 * IMAGES + i * 8 + (thread() & 3) * 2 + e) * PART_PITCH + 8 * h + (thread() & 31) / 4] = sums[i][h][e];
    barrier_among(2, WORKERS);
    if (threadIdx.x >= IMAGES * OUTPUTS / 4) return;
    const int image = thread() / 4, output = thread() % 4 * 4;
    float4 sum = *(const float4 *)(new_bias + output);
#pragma unroll
    for (int part = 0; part < WORKERS / 32; part++) {
        const float4 v = *(const float4 *)(parts + (part * IMAGES + image) * PART_PITCH + output);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    if (image >= batch || row0 + output >= outputs) return;
    T *to = y + offset(image, outputs) + row0 + output;
    if constexpr (sizeof(T) == 2) *(uint2 *)to = make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
    else *(float4 *)to = sum;
}
