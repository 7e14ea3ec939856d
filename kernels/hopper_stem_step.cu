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
// stays in shared memory until it has left for memory again; x and x' pass through slots, as many as there is room for, 64 columns at a time, each taken by a group of four warps, 16
// columns a warp. As in hopper_swiglu_backward_step.cu the sums of the gradient lie in registers just as the left operand of the product that follows: a weight is read, stepped, and
// multiplied with its new value.
//
// Every block reads all images, so in fp32, or as two planes of fp16, they would be most of what L2 hands out: 51 MB for 64 images at N = 2048, where W and velocity are 13. In TF32 and
// fp32-emulated they are bytes p, a quarter of that. A pixel is x = s p + t, so dW = s dy^T p + t db and y' = s W' p' + t (sum of a row of W') + bias', where the second terms are a
// product and a sum a row. A byte is exact as fp16, and the other operand is fp16 too, times a power of two of its row that brings the largest to 2^14 or 2^15: 11 bits, as TF32 has;
// for fp32-emulated a second fp16 with what is left, so two products for its three. bf16 images are a half of that, and are what its product reads: making them from bytes costs more.
//
// Maps: `weight`, `velocity` (N, K) fp32, box (32, 16), 128-byte swizzle; `copy` the same of bf16, 64-byte swizzle (other precisions: any map); `images` (`x_rows`, K): bytes, box (64, 64),
// 64-byte swizzle, or bf16, box (64, 64), 128-byte swizzle. x begins at row `first` + *step * B, x' at row `next` + *step * B; without `step` at `first` and `next`. `last_batch` images
// of x, `batch` of x'.
// K: 832 at most; of bytes a multiple of 16. Grid: ceil(N / 16) blocks of THREADS threads. Shared memory: SHARED_BYTES.
#include "hopper_fp16.cuh"
#include "hopper_step.cuh"

#ifndef SLOTS
#define SLOTS 5
#endif
#ifndef GROUPS
#define GROUPS 2
#endif

constexpr int OUTPUTS = 16, COLUMNS = 64, CHUNKS = 13; // of a block; of a chunk; chunks that there is room for
constexpr int GROUP_WARPS = 4, WORKERS = 128 * GROUPS, THREADS = WORKERS + 64;
constexpr bool COPIES = PRECISION == 2, BYTES = PRECISION != 2;

constexpr int STATE_BYTES = OUTPUTS * COLUMNS * 4, COPY_BYTES = COPIES ? STATE_BYTES / 2 : 0, CHUNK_BYTES = 2 * STATE_BYTES + COPY_BYTES;
constexpr int X_BYTES = IMAGES * COLUMNS * (BYTES ? 1 : 2), SLOT_BYTES = 2 * X_BYTES;
constexpr int DY_PITCH = OUTPUTS * (int)sizeof(T) + 16; // so that fragments meet no bank twice
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

// Where chunk `chunk` of 16 bytes of a row of a box of weights lies, and of a box of images.
DEVICE u32 chunk_of(u32 box, int row, int chunk) { return box + row * 128 + ((chunk ^ (row & 7)) << 4); }
DEVICE u32 pixels_of(u32 box, int image, int chunk) { return box + image * COLUMNS + ((chunk ^ (image >> 1 & 3)) << 4); }
// A thread's four weights of a row of a chunk, of its warp's 16 columns (from 16 q on): of bytes, neighbours 4 (lane % 4) + c; else 2 (lane % 4) + e, c = e, and 8 more, c = 2 + e.
// `output_of`: its first row, the second is 8 more; of bytes in an order in which 8 threads read 16 bytes each without meeting a bank twice.
DEVICE int output_of(int lane) { return BYTES ? lane / 8 + (lane / 4 & 1) * 4 : lane / 4; }
DEVICE u32 weights_of(u32 box, int row, int q, int pair, int lane) {
    const u32 at = box + q / 2 * (OUTPUTS * 128);
    return BYTES ? chunk_of(at, row, (q & 1) * 4 + (lane & 3)) : chunk_of(at, row, (q & 1) * 4 + 2 * pair + (lane & 3) / 2) + (lane & 1) * 8;
}
DEVICE float4 load_shared_quad(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}
DEVICE void store_shared_quad(u32 address, float4 v) { asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory"); }
DEVICE void load_weights(float (&w)[4], u32 box, int row, int q, int lane) {
    if (BYTES) {
        const float4 v = load_shared_quad(weights_of(box, row, q, 0, lane));
        w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else {
        const float2 a = load_shared_pair(weights_of(box, row, q, 0, lane)), b = load_shared_pair(weights_of(box, row, q, 1, lane));
        w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
    }
}
DEVICE void store_weights(const float (&w)[4], u32 box, int row, int q, int lane) {
    if (BYTES) store_shared_quad(weights_of(box, row, q, 0, lane), make_float4(w[0], w[1], w[2], w[3]));
    else
#pragma unroll
        for (int j = 0; j < 2; j++) store_shared_pair(weights_of(box, row, q, j, lane), make_float2(w[2 * j], w[2 * j + 1]));
}
// The sum of the four threads that share a fragment's rows.
DEVICE float sum_of_row(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

#if PRECISION == 2
// dy^T, 16 outputs by 64 images, from a tile whose rows are images; and the sums of its rows.
struct Gradients {
    u32 a[4][4];
    float db[2];
    DEVICE void load(u32 tile, int lane) {
#pragma unroll
        for (int s = 0; s < 4; s++) ldmatrix4_trans(a[s], tile + (16 * s + (lane & 7) + (lane >> 4) * 8) * DY_PITCH + (lane >> 3 & 1) * 16);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            db[h] = 0.f;
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int q = h; q < 4; q += 2) db[h] += __uint_as_float(a[s][q] << 16) + __uint_as_float(a[s][q] & 0xffff0000u);
            db[h] = sum_of_row(db[h]);
        }
    }
    // dW = dy^T x: (N, B) @ (B, K) -> (N, K), of a thread's weights.
    DEVICE void multiply(float (&out)[2][4], u32 x, int q, float, float, int lane) const {
        float sums[2][2][2] = {};
#pragma unroll
        for (int s = 0; s < 4; s++) {
            u32 r[4];
            ldmatrix4_trans(r, chunk_of(x, s * K_STEP + (lane & 15), 2 * q + (lane >> 4)));
            ::multiply(sums[0], a[s], {r[0], r[1]}), ::multiply(sums[1], a[s], {r[2], r[3]});
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int c = 0; c < 4; c++) out[h][c] = sums[c / 2][h][c & 1];
    }
};
// y'^T = W' x'^T: (N, K) @ (K, B) -> (N, B): 16 outputs by 64 images.
struct Outputs {
    float sums[8][2][2] = {};
    DEVICE void add(const float (&w)[2][4], bool, u32 x, int q, int lane) {
        const u32 a[4] = {pack_bf16(w[0][0], w[0][1]), pack_bf16(w[1][0], w[1][1]), pack_bf16(w[0][2], w[0][3]), pack_bf16(w[1][2], w[1][3])};
#pragma unroll
        for (int pair = 0; pair < IMAGES / 16; pair++) {
            u32 r[4];
            ldmatrix4(r, chunk_of(x, pair * 16 + (lane & 7) + (lane >> 4) * 8, 2 * q + (lane >> 3 & 1)));
            ::multiply(sums[2 * pair], a, {r[0], r[1]}), ::multiply(sums[2 * pair + 1], a, {r[2], r[3]});
        }
    }
    DEVICE void finish(float, float) {}
};
#else
// Left operands in fp16: what is near them, and, for fp32-emulated, what is left.
template <int COUNT> struct Left {
    u32 hi[COUNT][4], lo[PRECISION == 3 ? COUNT : 1][4];
    DEVICE void put(int step, int q, float first, float second, float up) {
        if (PRECISION == 3) split_fp16(first * up, second * up, hi[step][q], lo[step][q]);
        else hi[step][q] = pack_fp16(first * up, second * up);
    }
};
// dy^T, 16 outputs by 64 images, from a tile whose rows are images; what brings a row back from fp16; the sums of rows.
struct Gradients {
    Left<4> left;
    float down[2], db[2];
    DEVICE void load(u32 tile, int lane) {
        float v[4][2][4]; // step, row, image: 2 (lane % 4) + 0, 1, 8, 9
        float most[2] = {0.f, 0.f};
        db[0] = db[1] = 0.f;
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int image = 16 * s + (lane & 3) * 2 + (e & 1) + e / 2 * 8;
                    v[s][h][e] = __uint_as_float(load_shared(tile + image * DY_PITCH + (output_of(lane) + 8 * h) * 4));
                    most[h] = fmaxf(most[h], fabsf(v[s][h][e]));
                    db[h] += v[s][h][e];
                }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const Scale scale = scale_of(most_of_row(most[h]));
            down[h] = scale.down, db[h] = sum_of_row(db[h]);
#pragma unroll
            for (int s = 0; s < 4; s++) left.put(s, h, v[s][h][0], v[s][h][1], scale.up), left.put(s, h + 2, v[s][h][2], v[s][h][3], scale.up);
        }
    }
    // dW = dy^T x: (N, B) @ (B, K) -> (N, K), of a thread's weights. Of two tiles one has the even columns, one the odd.
    DEVICE void multiply(float (&out)[2][4], u32 x, int q, float pixel_scale, float pixel_shift, int lane) const {
        u32 pairs[4][2]; // of images, each of two columns
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
            u32 r[4];
            ldmatrix4_trans(r, pixels_of(x, 16 * s + lane, q));
            pairs[s][0] = r[0], pairs[s][1] = r[1], pairs[s + 1][0] = r[2], pairs[s + 1][1] = r[3];
        }
        float sums[2][2][2] = {};
#pragma unroll
        for (int low = PRECISION == 3; low >= 0; low--) // the small ones first
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int j = 0; j < 2; j++) mma_fp16(sums[j], low ? left.lo[s % (sizeof(left.lo) / 16)] : left.hi[s], bytes_of_halves(pairs[s][0], j), bytes_of_halves(pairs[s][1], j));
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float by = down[h] * pixel_scale, shift = db[h] * pixel_shift;
#pragma unroll
            for (int c = 0; c < 4; c++) out[h][c] = fmaf(sums[c & 1][h][c / 2], by, shift);
        }
    }
};
// y'^T = W' x'^T: (N, K) @ (K, B) -> (N, B): 16 outputs by 64 images, before pixels are scaled.
struct Outputs {
    float sums[8][2][2] = {};
    float of_weights[2] = {}; // the thread's part of the sums of rows of W'
    // `exists`: beyond K a weight that is not there took a "step" too, which is no part of a sum.
    DEVICE void add(const float (&w)[2][4], bool exists, u32 x, int q, int lane) {
        Left<1> left;
        float down[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (exists) of_weights[h] += (w[h][0] + w[h][1]) + (w[h][2] + w[h][3]);
            const Scale scale = scale_of(most_of_row(fmaxf(fmaxf(fabsf(w[h][0]), fabsf(w[h][1])), fmaxf(fabsf(w[h][2]), fabsf(w[h][3])))));
            down[h] = scale.down;
            left.put(0, h, w[h][0], w[h][1], scale.up), left.put(0, h + 2, w[h][2], w[h][3], scale.up);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 r[4]; // four pixels of an image of each of four eights
            ldmatrix4(r, pixels_of(x, 32 * half + lane, q));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float part[2][2] = {};
                const u32 b0 = bytes_low(r[i]), b1 = bytes_high(r[i]);
                if (PRECISION == 3) mma_fp16(part, left.lo[0], b0, b1);
                mma_fp16(part, left.hi[0], b0, b1);
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int e = 0; e < 2; e++) sums[4 * half + i][h][e] = fmaf(part[h][e], down[h], sums[4 * half + i][h][e]);
            }
        }
    }
    DEVICE void finish(float pixel_scale, float pixel_shift) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float shift = sum_of_row(of_weights[h]) * pixel_shift;
#pragma unroll
            for (int i = 0; i < 8; i++) sums[i][h][0] = fmaf(sums[i][h][0], pixel_scale, shift), sums[i][h][1] = fmaf(sums[i][h][1], pixel_scale, shift);
        }
    }
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hopper_stem_step(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap velocity, const __grid_constant__ TensorMap copy, const __grid_constant__ TensorMap images,
                     const T *dy, T *y, float *bias, float *bias_velocity, const float *lr, const float *gradient_scale, float momentum, float weight_decay, int nesterov,
                     const u32 *step, int first, int next, float pixel_scale, float pixel_shift, int last_batch, int batch, int inputs, int outputs) {
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
            const auto ask_all_images = [&](int chunk) {
                if (chunk >= SLOTS) barrier_wait(stepped(chunk - SLOTS), 0);
                barrier_expect(images_come(chunk), (dy ? X_BYTES : 0) + (y ? X_BYTES : 0));
                if (dy) tma_load(images_at(chunk), images, images_come(chunk), chunk * COLUMNS, first + moved);
                if (y) tma_load(images_at(chunk) + X_BYTES, images, images_come(chunk), chunk * COLUMNS, next + moved);
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

    const int q = warp & 3, group = warp / GROUP_WARPS, output = output_of(lane);
    // The bias: one thread of the first warp has two outputs. It was written before the kernel ahead began.
    const bool has_bias = warp == 0 && (lane & 3) == 0;
    if (!dy) wait_for_last();
    float bias_w[2] = {}, bias_v[2] = {};
    if (has_bias)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = row0 + output + 8 * h;
            if (row < outputs) bias_w[h] = load_cg(bias + row), bias_v[h] = dy ? load_cg(bias_velocity + row) : 0.f;
        }
    wait_for_last();
    const Sgd sgd = dy ? sgd_settings(lr, gradient_scale, momentum, weight_decay, nesterov) : Sgd{};
    Gradients gradients;
    if (dy) {
        const u32 dy_tile = base + AT_DY;
        for (int i = threadIdx.x; i < IMAGES * OUTPUTS / Vec<T>::N; i += WORKERS) {
            constexpr int N = Vec<T>::N, ACROSS = OUTPUTS / N;
            const int image = i / ACROSS, col = i % ACROSS * N;
            const bool exists = image < last_batch && row0 + col < outputs;
            store_shared16(dy_tile + image * DY_PITCH + col * (int)sizeof(T), exists ? load16(dy + offset(image, outputs) + row0 + col) : make_uint4(0u, 0u, 0u, 0u));
        }
        barrier_among(2, WORKERS);
        gradients.load(dy_tile, lane);
    }
    if (has_bias)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = output + 8 * h;
            if (dy && row0 + row < outputs) {
                Sgd undecayed = sgd; // weights decay, biases do not
                undecayed.weight_decay = 0.f;
                sgd_step(undecayed, gradients.db[h], bias_w[h], bias_v[h]);
                bias[row0 + row] = bias_w[h], bias_velocity[row0 + row] = bias_v[h];
            }
            ((float *)(shared + AT_BIAS))[row] = bias_w[h];
        }

    Outputs out;
    for (int chunk = group; chunk < chunks; chunk += GROUPS) {
        const u32 slot = weights_at(chunk), x = images_at(chunk);
        barrier_wait(come(chunk), 0);
        float w[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++) load_weights(w[h], slot, output + 8 * h, q, lane);
        barrier_wait(images_come(chunk), 0);
        if (dy) {
            float gradient[2][4];
            gradients.multiply(gradient, x, q, pixel_scale, pixel_shift, lane);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = output + 8 * h;
                float v[4];
                load_weights(v, slot + STATE_BYTES, row, q, lane);
#pragma unroll
                for (int c = 0; c < 4; c++) sgd_step(sgd, gradient[h][c], w[h][c], v[c]);
                store_weights(w[h], slot, row, q, lane);
                store_weights(v, slot + STATE_BYTES, row, q, lane);
                if (COPIES)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        store_shared(slot + 2 * STATE_BYTES + q / 2 * (COPY_BYTES / 2) + row * 64 + ((((q & 1) * 2 + j) ^ (row >> 1 & 3)) << 4) + (lane & 3) * 4, pack_bf16(w[h][2 * j], w[h][2 * j + 1]));
            }
        }
        if (y) out.add(w, chunk * COLUMNS + 16 * q + (lane & 3) * 4 < inputs, x + X_BYTES, q, lane);
        fence_shared(); // the copy engine reads what this thread wrote
        __syncwarp();
        if (lane == 0) barrier_arrive(stepped(chunk));
    }
    let_next_start();

    if (!y) return;
    out.finish(pixel_scale, pixel_shift);
    barrier_among(1, WORKERS); // the images have been read
    float *const parts = (float *)(shared + AT_SLOTS);
#pragma unroll
    for (int i = 0; i < IMAGES / 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                parts[(thread() / 32 * IMAGES + i * 8 + (thread() & 3) * 2 + e) * PART_PITCH + 8 * h + output_of(thread() & 31)] = out.sums[i][h][e];
    barrier_among(2, WORKERS);
    if (threadIdx.x >= IMAGES * OUTPUTS / 4) return;
    const int image = thread() / 4, first_output = thread() % 4 * 4;
    float4 sum = *(const float4 *)(shared + AT_BIAS + first_output * 4);
#pragma unroll
    for (int part = 0; part < WORKERS / 32; part++) {
        const float4 v = *(const float4 *)(parts + (part * IMAGES + image) * PART_PITCH + first_output);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    if (image >= batch || row0 + first_output >= outputs) return;
    T *to = y + offset(image, outputs) + row0 + first_output;
    if constexpr (sizeof(T) == 2) *(uint2 *)to = make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
    else *(float4 *)to = sum;
}
