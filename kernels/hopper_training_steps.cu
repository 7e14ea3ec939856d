// Whole steps of training in one launch, for small networks: 784 -> Linear D -> SwiGLU H -> Linear 10, SGD with momentum, batches of up to 64 images.
//
//   h = x Ws^T + bs       [g | u] = h Wf^T       z = silu(g) * u       logits = z Wh^T + bh       softmax cross-entropy
//   dWh = dlogits^T z     dz = dlogits Wh        (dg, du) from dz      dWf = [dg | du]^T h        dh = [dg | du] Wf       dWs = dh^T x
//
// The idea: weights and their velocity never move. Each block keeps its part of them in registers, with the copy that products read in shared memory, for as
// many steps as a launch takes; activations, which are small, travel instead.
// - A cluster c of four blocks has columns c * STEM_COLS of h (rows of Ws) and hidden units c * UNITS. Within it the sum over K is split: block r multiplies the
//   r-th slice of the pixels (for h) and of D (for g, u), and finishes the r-th OWN images, for which it gets the other blocks' parts.
// - So block r has for Ws: STEM_COLS x a slice of the pixels, and for Wf: its units' gates and ups x a slice of D. Their gradients need [dg | du] and dh of
//   these units and columns, for all images (the cluster shares them), and x or h of just the slices that the block holds already.
// - dh sums over all units, so over all clusters: each block makes the part of its units for its slice of D, and the owners add the parts up.
// Three times a step something crosses the chip: h, parts of the logits, parts of dh. Each is a store and a load that waits (hopper_exchange.cuh), no barrier. Four times
// something crosses a cluster: stores into the other blocks' shared memory that their barriers hear of. While the one or the other travels, there is work that nobody waits for:
// dWf and its step beside h, the next images and the head's gradient beside dh.
//
// Reads     images (u8), by index; once a launch all weights and velocities
// Writes    losses and hits of each step; once a launch all weights and velocities
// Launches  1 for any number of steps. Bytes a step through L2: D = H = 512: 2 MB of h, 0.2 of logits, 2 + 2 of dh; images from memory, nothing else.
// Wins      where a step is so short that launches and trips to memory are most of it
// Loses     when weights do not fit on the chip (the host does not offer it then); to launches when the batch is large
//
// Every number is summed in a fixed order: results do not depend on timing. PRECISION 2 rounds h, [dg | du], dh and the weights' copies to bf16, as the launches
// do; 1 to TF32; 3 splits operands (engine_mma.cuh). D and H may be anything up to what the clusters hold: what is beyond is weights of zero, which stay zero.
//
// Grid: CLUSTER * CLUSTERS blocks of THREADS threads in clusters of CLUSTER, all of which must run at once. `exchange`: zeroed at allocation, for one network alone; its first word
// counts the steps that were ever taken.
#include "engine_mma.cuh"
#include "hopper_exchange.cuh"
#include "hopper_tma.cuh"
#include "sgd.cuh"

#ifndef CLUSTERS
#define CLUSTERS 16
#define STEM_COLS 32
#define UNITS 32
#endif
#ifndef LEARNS // whether Wf learns
#define LEARNS 1
#endif

constexpr int PIXELS = 784, CLASSES = 10, ROWS = 64, CLUSTER = 4, THREADS = 512, WARPS = THREADS / 32;
constexpr int K_STEP = 32 / (int)sizeof(T); // of K in one step of mma
constexpr int OWN = ROWS / CLUSTER;         // images whose sums a block finishes: the rows of a fragment
constexpr int SLICE_PIXELS = (PIXELS / CLUSTER + 15) / 16 * 16, WIDTH = CLUSTERS * STEM_COLS, SLICE_D = WIDTH / CLUSTER, GATE_UP = 2 * UNITS;
constexpr int STEM_ELEMENTS = OWN * STEM_COLS, GATE_ELEMENTS = OWN * UNITS; // of h and of z, that a block finishes
constexpr int QUADS = STEM_ELEMENTS / 4, GROUPS = THREADS / QUADS;          // groups of threads share the clusters whose parts of dh they add up
constexpr int HEAD = CLASSES * (UNITS + 1);                                 // the head's weights of the cluster's units, and its bias
static_assert(OWN == 16 && STEM_COLS % 16 == 0 && UNITS % 8 == 0 && CLUSTERS % CLUSTER == 0, "whole fragments");
static_assert(HEAD <= 11 * 32 && STEM_ELEMENTS <= THREADS && GATE_ELEMENTS <= THREADS && THREADS % QUADS == 0 && CLUSTERS % GROUPS == 0, "one of each a thread");

// Tiles in shared memory: rows 16 bytes longer than their elements, so that eight rows start on different banks.
template <int COLS> constexpr int PITCH_OF = COLS * (int)sizeof(T) + 16;
constexpr int X_PITCH = PITCH_OF<SLICE_PIXELS>, H_PITCH = PITCH_OF<SLICE_D>, D_PITCH = PITCH_OF<GATE_UP>, DH_PITCH = PITCH_OF<ROWS>;
static_assert(SLICE_PIXELS % 16 == 0 && SLICE_D % 16 == 0 && GATE_UP % 16 == 0, "whole steps of K");
template <int PITCH> DEVICE u32 place(u32 tile, int row, int col) { return tile + row * PITCH + col * (int)sizeof(T); }
// TF32 and split operands leave no room for two tiles of images: the next one is made when the last one was read.
constexpr int X_TILES = sizeof(T) == 2 ? 2 : 1;

// Shared memory, in bytes.
constexpr int AT_WS = 0, AT_WF = AT_WS + STEM_COLS * X_PITCH, AT_X = AT_WF + GATE_UP * H_PITCH, AT_H = AT_X + X_TILES * ROWS * X_PITCH, AT_D = AT_H + ROWS * H_PITCH,
              AT_DH = AT_D + ROWS * D_PITCH, AT_BYTES = AT_DH + STEM_COLS * DH_PITCH, AT_STEM_PARTS = AT_BYTES + ROWS * SLICE_PIXELS,
              AT_GATE_PARTS = AT_STEM_PARTS + CLUSTER * STEM_ELEMENTS * 4, AT_HEAD_PARTS = AT_GATE_PARTS + CLUSTER * 2 * GATE_ELEMENTS * 4, AT_SMALL = AT_HEAD_PARTS + CLUSTER * HEAD * 4;
static_assert(GROUPS * STEM_ELEMENTS <= CLUSTER * 2 * GATE_ELEMENTS, "parts of dh are added up where those of g and u were");
struct Small {
    float z[OWN][UNITS + 4], head[CLASSES][UNITS], dlogits[OWN][12], logits[OWN][12], head_bias[12], stem_bias[STEM_COLS], loss[OWN]; // 16 bytes each row
    u64 barriers[5];
    float2 tally[CLUSTER]; // loss and hits of each block's images
    u32 hit[OWN], index[2][ROWS]; // images of two steps
    u8 labels[2][ROWS];
};
constexpr int SHARED = AT_SMALL + (int)sizeof(Small);
static_assert(SHARED <= 227 << 10, "a multiprocessor's shared memory");

// Floats of `exchange`: the count of steps; h [cluster][block][element]; logits [block][cluster][image, class]; dh [cluster][block][from cluster][element].
constexpr int AT_PASS_H = 32, AT_PASS_LOGITS = AT_PASS_H + ROWS * WIDTH, AT_PASS_DH = AT_PASS_LOGITS + CLUSTERS * ROWS * CLASSES;
// The host gives so much of both: the two must agree.
#ifdef SHARED_BYTES
static_assert(SHARED == SHARED_BYTES && AT_PASS_DH + CLUSTERS * CLUSTERS * ROWS * STEM_COLS == EXCHANGE_FLOATS, "the host's count of shared memory and of exchange");
#endif

// Elements of a block's 16 images x columns go in the order of fragments: tiles of 8 columns, lanes, four sums a lane.
struct Spot {
    int row, col;
};
DEVICE Spot spot(int element) {
    const int lane = element / 4 % 32, e = element % 4;
    return Spot{lane / 4 + e / 2 * 8, element / 128 * 8 + lane % 4 * 2 + e % 2};
}

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

// A block's part of a matrix of weights, spread over the threads as the sums of its gradient are: tile i = warp + 8 j of 16 x 8 is row tile i % M_TILES, column tile i / M_TILES.
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
// e^x as in sigmoid().
DEVICE float exponential(float x) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.4426950408889634f));
    return e;
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    hopper_training_steps(const u8 *images, const u8 *labels, const u32 *order, u32 *step, const float *rates, float *loss_log, u32 *hit_log, float *stem_w, float *stem_velocity,
                          bf16 *stem_copy, float *stem_bias, float *stem_bias_velocity, float *wf, float *wf_velocity, bf16 *wf_copy, float *head_w, float *head_velocity, float *head_bias,
                          float *head_bias_velocity, float *exchange, float momentum, float weight_decay, int nesterov, float scale, float shift, int images_in_all, int batch, int inputs, int hidden, int count) {
    extern __shared__ __align__(128) u8 shared[];
    Small &small = *(Small *)(shared + AT_SMALL);
    const u32 base = shared_address(shared), rank = cluster_rank(), cluster = blockIdx.x / CLUSTER;
    const u32 ws = base + AT_WS, wf_tile = base + AT_WF, h_tile = base + AT_H, d_tile = base + AT_D, dh_tile = base + AT_DH;
    const u32 stem_parts = base + AT_STEM_PARTS, gate_parts = base + AT_GATE_PARTS, head_parts = base + AT_HEAD_PARTS;
    // Each is heard once a step: of h's parts, of g's and u's, of [dg | du], of dh with the head's gradient and the losses, of pixels.
    const u32 stem_barrier = shared_address(small.barriers), gate_barrier = stem_barrier + 8, d_barrier = stem_barrier + 16, dh_barrier = stem_barrier + 24, pixel_barrier = stem_barrier + 32;
    float *const pass_h = exchange + AT_PASS_H, *const pass_logits = exchange + AT_PASS_LOGITS, *const pass_dh = exchange + AT_PASS_DH;
    const u32 taken = *(const u32 *)exchange, first = *step;
    const int pixel0 = rank * SLICE_PIXELS, pixels = min(SLICE_PIXELS, PIXELS - pixel0), d0 = rank * SLICE_D;
    int thread = threadIdx.x;

    // Weights into registers and shared memory.
    for (int i = thread; i < AT_STEM_PARTS / 16; i += THREADS) ((uint4 *)shared)[i] = make_uint4(0u, 0u, 0u, 0u);
    Weights<STEM_COLS / 16, SLICE_PIXELS / 8> stem;
    Weights<GATE_UP / 16, SLICE_D / 8> layer;
    const auto stem_place = [&](int row, int col) {
        const int out = cluster * STEM_COLS + row;
        return out < inputs && col < pixels ? (long long)out * PIXELS + pixel0 + col : -1;
    };
    const auto layer_place = [&](int row, int col) {
        const int unit = cluster * UNITS + row % UNITS, in = d0 + col;
        return unit < hidden && in < inputs ? ((long long)unit + (row >= UNITS ? hidden : 0)) * inputs + in : -1;
    };
    stem.load(stem_w, stem_velocity, stem_place);
    layer.load(wf, LEARNS ? wf_velocity : wf, layer_place); // what does not learn has no velocity
    // The head: thread i has class i / (UNITS + 1) and unit i % (UNITS + 1), the last of which is the bias. Every block of the chip keeps the bias, and every block of a cluster the
    // weights of its units; all take the same steps.
    const int head_class = thread / (UNITS + 1), head_unit = thread % (UNITS + 1);
    const bool is_bias = head_unit == UNITS, has_head = thread < HEAD, in_memory = has_head && (is_bias || cluster * UNITS + head_unit < hidden);
    const auto head_place = [&](float *weights, float *biases) {
        const int i = fresh(threadIdx.x), c = i / (UNITS + 1), unit = i % (UNITS + 1);
        return unit == UNITS ? biases + c : weights + c * hidden + cluster * UNITS + unit;
    };
    float head = in_memory ? *head_place(head_w, head_bias) : 0.f, head_v = in_memory ? *head_place(head_velocity, head_bias_velocity) : 0.f;
    const auto show_head = [&] {
        if (has_head) (is_bias ? small.head_bias[head_class] : small.head[head_class][head_unit]) = head;
    };
    // The stem's bias: of the last threads four a column sum its gradient, and the first of them keeps it.
    const int bias_col = (thread - (THREADS - 4 * STEM_COLS)) >> 2, bias_at = cluster * STEM_COLS + bias_col;
    const bool has_bias = bias_col >= 0 && thread % 4 == 0;
    float bias = has_bias && bias_at < inputs ? stem_bias[bias_at] : 0.f, bias_v = has_bias && bias_at < inputs ? stem_bias_velocity[bias_at] : 0.f;
    if (has_bias) small.stem_bias[bias_col] = bias;
    show_head();
    // Index of image `row` of step `at`; ~0 beyond the batch, the epoch or the launch.
    const auto index_of = [&](u32 at, int row) {
        const u64 place = (u64)at * batch + row;
        return row < batch && at < first + count && place < images_in_all ? order[place] : ~0u;
    };
    if (thread < 2 * ROWS) small.index[first + thread / ROWS & 1][thread % ROWS] = index_of(first + thread / ROWS, thread % ROWS);
    if (thread == 0)
        for (int i = 0; i < 5; i++) barrier_init(stem_barrier + 8 * i, 1);
    fence_async();
    __syncthreads(); // the tiles are zero
    stem.show<X_PITCH>(ws);
    layer.show<H_PITCH>(wf_tile);

    const auto images_of = [&](u32 at) { return at < first + count ? max(min(batch, images_in_all - (int)at * batch), 0) : 0; };
    const auto x_tile_of = [&](u32 at) { return base + AT_X + at % X_TILES * (ROWS * X_PITCH); };
    // The pixels of step `at` are asked for, as the slice's bytes; the barrier hears of the images that exist. A copy an image, which a warp starts one by one: so some from each of six
    // warps, `sharer` being the threads of those.
    const auto ask_images = [&](u32 at, int sharer) {
        constexpr int EACH = (ROWS + 5) / 6;
        const int image = sharer / 32 * EACH + sharer % 32;
        if (sharer % 32 < EACH && image < ROWS && small.index[at & 1][image] != ~0u)
            ask_pixels(base + AT_BYTES + image * SLICE_PIXELS, images + (u64)small.index[at & 1][image] * PIXELS + pixel0, pixels, pixel_barrier);
        if (sharer == 0) barrier_expect(pixel_barrier, images_of(at) * pixels);
    };
    // Images of step `at`, which have been asked for, become a tile.
    const auto show_images = [&](u32 at) {
        barrier_wait(pixel_barrier, at - first & 1);
        show_pixels(x_tile_of(at), shared + AT_BYTES, small.index[at & 1], pixels, scale, shift);
    };
    ask_images(first, thread);
    show_images(first);
    if (thread < ROWS) small.labels[first & 1][thread] = small.index[first & 1][thread] != ~0u ? labels[small.index[first & 1][thread]] : 255;
    __syncthreads();
    cluster_arrive();
    cluster_wait(); // every block of the cluster is ready to hear

    float rate_of_step = 0.f;
    // dWf = [dg | du]^T h: (2H, B) @ (B, D) -> (2H, D) of the last step, and its step.
    const auto learn = [&](float rate) {
        if (!LEARNS) return;
        const Sgd sgd{rate, 1.f, momentum, weight_decay, nesterov != 0};
        float gradient[decltype(layer)::N][2][2];
        product<true, true, D_PITCH, H_PITCH, ROWS, decltype(layer)::STRIDE>(gradient, d_tile, layer.first_row(), h_tile, layer.first_tile(), SLICE_D / 8);
        layer.step<H_PITCH>(sgd, gradient, wf_tile);
    };

    for (int i = 0; i < count; i++) {
        thread = fresh(thread);
        const int lane = thread & 31, m = thread / 32 % 4 * 16, n0 = thread / 128; // the warp's images, and the first of its tiles of 8 columns
        constexpr int STRIDE = WARPS / 4;
        const u32 at = first + i, parity = taken + i + 1 & 1, phase = i & 1, x_tile = x_tile_of(at);
        const int rows = images_of(at);
        if (thread == 0) {
            barrier_expect(stem_barrier, CLUSTER * STEM_ELEMENTS * 4);
            barrier_expect(gate_barrier, CLUSTER * 2 * GATE_ELEMENTS * 4);
            barrier_expect(d_barrier, (CLUSTER - 1) * OWN * GATE_UP * (int)sizeof(T));
            barrier_expect(dh_barrier, (CLUSTER - 1) * OWN * STEM_COLS * (int)sizeof(T) + CLUSTER * HEAD * 4 + (blockIdx.x == 0 ? CLUSTER * 8 : 0));
        }
        const float last_rate = rate_of_step;
        rate_of_step = rates[at];

        // h = x Ws^T + bs: (B, 784) @ (784, D) -> (B, D), this cluster's columns.
        {
            constexpr int N = (STEM_COLS / 8 + STRIDE - 1) / STRIDE;
            float part[N][2][2];
            product<false, false, X_PITCH, X_PITCH, SLICE_PIXELS, STRIDE>(part, x_tile, m, ws, n0, STEM_COLS / 8);
            hand_out<STEM_COLS, STRIDE>(part, m, n0, stem_parts, stem_barrier, rank);
            barrier_wait(stem_barrier, phase);
            if (thread < STEM_ELEMENTS) pass_on(pass_h + (cluster * CLUSTER + rank) * STEM_ELEMENTS + thread, take<STEM_COLS>(stem_parts, thread) + small.stem_bias[spot(thread).col], parity);
        }
        if (i > 0) learn(last_rate);
        __syncthreads(); // h of the last step was read
        // This block's slice of h, from all clusters that made some of it.
        {
            constexpr int BLOCKS = CLUSTERS / CLUSTER * CLUSTER, N = (BLOCKS * QUADS + THREADS - 1) / THREADS;
            static_assert(BLOCKS * QUADS % THREADS == 0, "whole threads");
            uint4 v[N];
            const float *const from = pass_h + rank * BLOCKS * STEM_ELEMENTS + thread * 4;
            collect(v, parity, [&](int j) { return from + j * THREADS * 4; });
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int element = (thread + j * THREADS) * 4, block = element / STEM_ELEMENTS;
                const Spot s = spot(element % STEM_ELEMENTS);
                const u32 to = place<H_PITCH>(h_tile, block % CLUSTER * OWN + s.row, block / CLUSTER * STEM_COLS + s.col);
                put(to, __uint_as_float(v[j].x), __uint_as_float(v[j].y)), put(to + 8 * H_PITCH, __uint_as_float(v[j].z), __uint_as_float(v[j].w));
            }
            __syncthreads();
        }
        // [g | u] = h Wf^T: (B, D) @ (D, 2H) -> (B, 2H), this cluster's units; z, and what they add to the logits.
        float g = 0.f, u = 0.f;
        const Spot mine = spot(thread); // image and unit
        {
            constexpr int N = (GATE_UP / 8 + STRIDE - 1) / STRIDE;
            float part[N][2][2];
            product<false, false, H_PITCH, H_PITCH, SLICE_D, STRIDE>(part, h_tile, m, wf_tile, n0, GATE_UP / 8);
            hand_out<GATE_UP, STRIDE>(part, m, n0, gate_parts, gate_barrier, rank);
            barrier_wait(gate_barrier, phase);
            if (thread < GATE_ELEMENTS) {
                g = take<GATE_UP>(gate_parts, thread), u = take<GATE_UP>(gate_parts, thread + GATE_ELEMENTS);
                small.z[mine.row][mine.col] = gate_forward(g, u);
            }
            __syncthreads();
        }
        // Two threads an image and class, each half of the units.
        const int own = thread / (2 * CLASSES), own_class = thread / 2 % CLASSES;
        const bool has_logit = thread < 2 * OWN * CLASSES;
        if (has_logit) {
            float sum = 0.f;
#pragma unroll
            for (int unit = 0; unit < UNITS / 2; unit += 4) {
                const float4 a = *(const float4 *)&small.z[own][thread % 2 * (UNITS / 2) + unit], b = *(const float4 *)&small.head[own_class][thread % 2 * (UNITS / 2) + unit];
                sum = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            if (thread % 2 == 0) pass_on(pass_logits + (rank * CLUSTERS + cluster) * (OWN * CLASSES) + thread / 2, sum, parity);
        }
        // logits = z Wh^T + bh: (B, H) @ (H, 10) -> (B, 10), this block's images, from all clusters; softmax, cross-entropy, dlogits.
        if (has_logit) {
            u32 v[CLUSTERS / 2];
            const float *const from = pass_logits + (rank * CLUSTERS + thread % 2 * (CLUSTERS / 2)) * (OWN * CLASSES) + thread / 2;
            collect(v, parity, [&](int c) { return from + c * (OWN * CLASSES); });
            float sum = 0.f;
#pragma unroll
            for (int c = 0; c < CLUSTERS / 2; c++) sum += __uint_as_float(v[c]);
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            if (thread % 2 == 0) small.logits[own][own_class] = sum + small.head_bias[own_class];
        } else { // the other warps ask for the next step's images
            const int sharer = thread - 2 * OWN * CLASSES;
            const u32 next = at + 1;
            ask_images(next, sharer);
            if (sharer < ROWS) {
                const u32 image = small.index[next & 1][sharer], upcoming = index_of(at + 2, sharer);
                small.labels[next & 1][sharer] = image != ~0u ? labels[image] : 255;
                small.index[at & 1][sharer] = upcoming;
            }
        }
        static_assert(THREADS - 2 * OWN * CLASSES == 6 * 32, "six warps");
        __syncthreads();
        if (thread < OWN * CLASSES) {
            const int row = thread / CLASSES, c = thread % CLASSES, image = rank * OWN + row, right = small.labels[at & 1][image];
            const bool exists = image < rows;
            float logits[CLASSES], total = 0.f;
#pragma unroll
            for (int k = 0; k < CLASSES; k++) logits[k] = small.logits[row][k];
            float top = logits[0];
            int guess = 0;
#pragma unroll
            for (int k = 1; k < CLASSES; k++)
                if (logits[k] > top) top = logits[k], guess = k;
#pragma unroll
            for (int k = 0; k < CLASSES; k++) total += exponential(logits[k] - top);
            const float own_logit = small.logits[row][c];
            small.dlogits[row][c] = exists ? (exponential(own_logit - top) / total - (c == right ? 1.f : 0.f)) / rows : 0.f;
            if (exists && c == right) {
                const float loss = logf(total) + top - own_logit;
                small.loss[row] = loss < 0.f ? 0.f : loss, small.hit[row] = guess == right;
            } else if (!exists && c == 0) small.loss[row] = 0.f, small.hit[row] = 0;
        }
        __syncthreads();

        // dz = dlogits Wh: (B, 10) @ (10, H) -> (B, H); [dg | du], this block's images first, then the cluster's.
        if (thread < GATE_ELEMENTS) {
            float dz = 0.f, dg, du;
#pragma unroll
            for (int c = 0; c < CLASSES; c++) dz = fmaf(small.dlogits[mine.row][c], small.head[c][mine.col], dz);
            gate_backward(g, u, dz, dg, du);
            put(place<D_PITCH>(d_tile, rank * OWN + mine.row, mine.col), dg), put(place<D_PITCH>(d_tile, rank * OWN + mine.row, UNITS + mine.col), du);
        }
        __syncthreads();
        share<OWN, GATE_UP, D_PITCH>(d_tile, rank * OWN, 0, d_barrier, rank);
        barrier_wait(d_barrier, phase);

        // dh = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D): what this cluster's units add to this block's slice, to those who add it up.
        {
            constexpr int N = SLICE_D / 8 / STRIDE;
            static_assert(SLICE_D / 8 % STRIDE == 0, "whole warps");
            float part[N][2][2];
            product<false, true, D_PITCH, H_PITCH, GATE_UP, STRIDE>(part, d_tile, m, wf_tile, n0, SLICE_D / 8);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int tile = n0 + STRIDE * j, to = rank * (CLUSTERS / CLUSTER) + tile / (STEM_COLS / 8), within = tile % (STEM_COLS / 8);
                float *const p = pass_dh + ((to * CLUSTER + m / OWN) * CLUSTERS + cluster) * STEM_ELEMENTS + (within * 32 + lane) * 4;
                pass_on(p, part[j][0][0], part[j][0][1], part[j][1][0], part[j][1][1], parity);
            }
        }
        // While the parts travel: the head's gradient, dWh = dlogits^T z: (10, B) @ (B, H) -> (10, H), and the losses.
        if (has_head) {
            float sum = 0.f;
#pragma unroll
            for (int row = 0; row < OWN; row++) sum = fmaf(small.dlogits[row][head_class], is_bias ? 1.f : small.z[row][head_unit], sum);
#pragma unroll
            for (int to = 0; to < CLUSTER; to++) send(head_parts + (rank * HEAD + thread) * 4, dh_barrier, to, sum);
        }
        if (cluster == 0 && thread == THREADS - 1) {
            float loss = 0.f, hits = 0.f;
            for (int row = 0; row < OWN; row++) loss += small.loss[row], hits += (float)small.hit[row];
            send(shared_address(&small.tally[rank]), dh_barrier, 0, loss, hits);
        }
        if (X_TILES == 2) show_images(at + 1);
        // dh of this block's images and its cluster's columns, then of all images.
        {
            constexpr int N = CLUSTERS / GROUPS;
            float *const sums = (float *)(shared + AT_GATE_PARTS); // those of g and u were taken
            const int quad = thread % QUADS, group = thread / QUADS;
            uint4 v[N];
            const float *const from = pass_dh + ((cluster * CLUSTER + rank) * CLUSTERS + group * N) * STEM_ELEMENTS + quad * 4;
            collect(v, parity, [&](int j) { return from + j * STEM_ELEMENTS; });
            float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
            for (int j = 0; j < N; j++) sum.x += __uint_as_float(v[j].x), sum.y += __uint_as_float(v[j].y), sum.z += __uint_as_float(v[j].z), sum.w += __uint_as_float(v[j].w);
            *(float4 *)(sums + group * STEM_ELEMENTS + quad * 4) = sum;
            __syncthreads();
            if (thread < STEM_ELEMENTS) {
                float total = 0.f;
#pragma unroll
                for (int k = 0; k < GROUPS; k++) total += sums[k * STEM_ELEMENTS + thread];
                const Spot s = spot(thread);
                put(place<DH_PITCH>(dh_tile, s.col, rank * OWN + s.row), total);
            }
            __syncthreads();
            share<STEM_COLS, OWN, DH_PITCH>(dh_tile, 0, rank * OWN, dh_barrier, rank);
            barrier_wait(dh_barrier, phase);
        }
        // dWs = dh^T x: (D, B) @ (B, 784) -> (D, 784) and its step; the head; the biases.
        const auto with_decay = [&](float decay) { return Sgd{rate_of_step, 1.f, momentum, decay, nesterov != 0}; };
        {
            float gradient[decltype(stem)::N][2][2];
            product<false, true, DH_PITCH, X_PITCH, ROWS, decltype(stem)::STRIDE>(gradient, dh_tile, stem.first_row(), x_tile, stem.first_tile(), SLICE_PIXELS / 8);
            stem.step<X_PITCH>(with_decay(weight_decay), gradient, ws);
        }
        if (has_head) {
            float gradient = 0.f;
#pragma unroll
            for (int r = 0; r < CLUSTER; r++) gradient += __uint_as_float(load_shared(head_parts + (r * HEAD + thread) * 4));
            sgd_step(with_decay(is_bias ? 0.f : weight_decay), gradient, head, head_v);
            show_head();
        }
        if (bias_col >= 0) {
            constexpr int N = Vec<T>::N;
            float sum = 0.f, v[N];
#pragma unroll
            for (int image = 0; image < ROWS / 4; image += N) {
                unpack16(load16(shared + place<DH_PITCH>(AT_DH, bias_col, thread % 4 * (ROWS / 4) + image)), v, T());
#pragma unroll
                for (int k = 0; k < N; k++) sum += v[k];
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (has_bias) {
                sgd_step(with_decay(0.f), sum, bias, bias_v);
                small.stem_bias[bias_col] = bias;
            }
        }
        if (blockIdx.x == 0 && thread == 0) {
            float loss = 0.f, hits = 0.f;
            for (int r = 0; r < CLUSTER; r++) loss += small.tally[r].x, hits += small.tally[r].y;
            loss_log[at] = loss / rows, hit_log[at] = (u32)hits;
        }
        __syncthreads();
        if (X_TILES == 1) {
            show_images(at + 1);
            __syncthreads();
        }
    }
    learn(rate_of_step);

    stem.save(stem_w, stem_velocity, stem_copy, stem_place);
    if (LEARNS) layer.save(wf, wf_velocity, wf_copy, layer_place);
    if (in_memory && rank == 0 && (!is_bias || cluster == 0)) *head_place(head_w, head_bias) = head, *head_place(head_velocity, head_bias_velocity) = head_v;
    if (has_bias && rank == 0 && bias_at < inputs) stem_bias[bias_at] = bias, stem_bias_velocity[bias_at] = bias_v;
    if (blockIdx.x == 0 && thread == 0) { // all blocks read these before the first number crossed the chip
        *(u32 *)exchange = taken + count;
        *step = first + count;
    }
    cluster_arrive();
    cluster_wait(); // nobody leaves while others may still send
}
