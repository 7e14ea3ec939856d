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
#include "hopper_exchange.cuh"
#include "hopper_training_tiles.cuh"

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
            constexpr int N = CLUSTERS * QUADS / THREADS; // a quarter of the clusters, four blocks each
            static_assert(CLUSTERS * QUADS % THREADS == 0, "whole threads");
            uint4 v[N];
            const float *const from = pass_h + rank * CLUSTERS * STEM_ELEMENTS + thread * 4;
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
