// The head and the loss. z (B, H), w (10, H) fp32, bias (10) fp32, labels (B) u8
//   head_forward    logits = z w^T + bias: (B, H) @ (H, 10) -> (B, 10)
//   head_loss       the same, then loss = mean over b of (log sum exp logits[b] - logits[b][label]),
//                   dlogits[b] = (softmax(logits[b]) - onehot(label)) / B, and how many rows are right
//   head_backward   dz = dlogits w: (B, 10) @ (10, H);  dw = dlogits^T z: (10, B) @ (B, H);  db = column sums of dlogits
//                   or, with _sgd, the step on w and bias in place of dw and db
//
// Reads     z once forward, once backward; w from L2
// Writes    10 floats a row; dz; dw
// Launches  1 forward with the loss, 1 backward with both gradients (a library: 2 products, bias, softmax, loss, 2 products, sums)
// Wins      with 10 classes always: a product 10 wide wastes a tensor core tile, and every pass is a stream over z.
// Loses     with many classes (write a product then).
//
// head_forward, head_loss: ceil(B / HEAD_ROWS) blocks of 256 threads; HEAD_ROWS rows share each read of w. `losses` (B floats) gets a loss a row; `dlogits` may be
// null (an evaluation). Row b's label is labels[first + b], or, where `label_step` is given, labels[first + *label_step * B + b].
// head_backward: ceil(H / 16) blocks of HEAD_THREADS threads: 16 columns by groups of rows, HEAD_CHUNK rows at a time. A block alone reads and writes its columns of
// w, so the update can be in place. The first block also does the bias. `dz` may be null (not wanted). Every pointer T or fp32 as declared.
//
// The tally: the mean loss goes to loss_log[*step], the number of rows that are right to correct_log[*step] (step null: index 0), and *step moves on.
// Where head_loss is given `counter` (one u32, zero before and after) its last block does so; else head_backward does, in one block more, and nobody waits
// for it. Losses are added up in one order, so the sum does not depend on timing. head_loss also puts this step's learning rate, rates[*step], where the
// kernels after it read it (`rates` null: not).
#include "head.cuh"
#include "sgd.cuh"

// logits[r][c] of rows row0 .. row0 + HEAD_ROWS, in shared memory, for all threads.
DEVICE void head_logits(const T *z, const float *w, const float *bias, int row0, int batch, int hidden, float (*logits)[CLASSES], float (*scratch)[HEAD_ROWS * CLASSES]) {
    constexpr int COUNT = HEAD_ROWS * CLASSES;
    static_assert(COUNT <= THREADS, "a thread finishes each logit");
    const float start = threadIdx.x < COUNT ? load_cg(bias + threadIdx.x % CLASSES) : 0.f;
    HeadQuad quad;
    head_sums(z, w, row0, batch, hidden, quad, scratch);
    if (threadIdx.x < COUNT) {
        float s = start;
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; warp++) s += scratch[warp][threadIdx.x];
        logits[threadIdx.x / CLASSES][threadIdx.x % CLASSES] = s;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS) head_forward(const T *z, const float *w, const float *bias, float *logits_out, int batch, int hidden) {
    __shared__ float logits[HEAD_ROWS][CLASSES], scratch[THREADS / 32][HEAD_ROWS * CLASSES];
    const int row0 = blockIdx.x * HEAD_ROWS;
    head_logits(z, w, bias, row0, batch, hidden, logits, scratch);
    const int row = row0 + threadIdx.x / CLASSES;
    if (threadIdx.x < HEAD_ROWS * CLASSES && row < batch) logits_out[(u64)row * CLASSES + threadIdx.x % CLASSES] = logits[threadIdx.x / CLASSES][threadIdx.x % CLASSES];
}

// Adds the losses of the rows up, by a whole block. A row's loss is at least 0, so its sign bit is free to say that the guess was right.
DEVICE void tally(const float *losses, float *loss_log, u32 *correct_log, u32 *step, int batch, float *sums) {
    float sum = 0.f, right = 0.f;
    if (threadIdx.x < THREADS)
        for (int b = threadIdx.x; b < batch; b += THREADS) {
            u32 v;
            asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(losses + b) : "memory");
            sum += __uint_as_float(v & 0x7fffffffu);
            right += (float)(v >> 31);
        }
    sum = block_sum<THREADS>(sum, sums);
    right = block_sum<THREADS>(right, sums);
    if (threadIdx.x == 0) {
        const u32 at = step ? *step : 0;
        loss_log[at] = sum / batch;
        correct_log[at] = (u32)right;
        if (step) *step = at + 1;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    head_loss(const T *z, const float *w, const float *bias, const u8 *labels, const u32 *label_step, int first, float *dlogits, float *losses, u32 *counter, float *loss_log, u32 *correct_log,
              u32 *step, const float *rates, float *rate, int batch, int hidden) {
    __shared__ float logits[HEAD_ROWS][CLASSES], scratch[THREADS / 32][HEAD_ROWS * CLASSES], sums[THREADS / 32];
    __shared__ u32 arrived;
    const int row0 = blockIdx.x * HEAD_ROWS, row = row0 + threadIdx.x;
    head_logits(z, w, bias, row0, batch, hidden, logits, scratch);
    if (blockIdx.x == 0 && threadIdx.x == THREADS - 1 && rates) *rate = rates[*step];
    if (threadIdx.x < HEAD_ROWS && row < batch) { // one thread a row: ten classes are no work
        const int label = labels[first + (label_step ? (int)*label_step * batch : 0) + row];
        float top = logits[threadIdx.x][0], e[CLASSES], total = 0.f;
        int guess = 0;
#pragma unroll
        for (int c = 1; c < CLASSES; c++)
            if (logits[threadIdx.x][c] > top) top = logits[threadIdx.x][c], guess = c;
#pragma unroll
        for (int c = 0; c < CLASSES; c++) total += e[c] = expf(logits[threadIdx.x][c] - top);
        float at_label = 0.f;
#pragma unroll
        for (int c = 0; c < CLASSES; c++) {
            if (c == label) at_label = logits[threadIdx.x][c];
            if (dlogits) dlogits[(u64)row * CLASSES + c] = (e[c] / total - (c == label ? 1.f : 0.f)) / batch;
        }
        const float loss = fmaxf(logf(total) + top - at_label, 0.f);
        losses[row] = loss != loss || total != total ? __uint_as_float(0x7fffffffu) : __uint_as_float(__float_as_uint(loss) | (guess == label ? 0x80000000u : 0u));
    }
    if (!counter) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // after the barrier it speaks for the whole block
        arrived = atomicAdd(counter, 1u);
        __threadfence();
    }
    __syncthreads();
    if (arrived != gridDim.x - 1) return;
    tally(losses, loss_log, correct_log, step, batch, sums);
    if (threadIdx.x == 0) *counter = 0;
}

// What head_backward does with its gradients: keeps them, or takes a step.
struct Gradients {
    float *weight, *bias;
};
struct Step {
    float *weight, *weight_velocity, *bias, *bias_velocity;
    const float *lr, *scale;
    float momentum, weight_decay;
    int nesterov;
};
struct State {
    float value, velocity;
};
// Asked for before the kernel ahead has ended.
DEVICE State state_of(const Gradients &, u64, bool) { return State{0.f, 0.f}; }
DEVICE State state_of(const Step &s, u64 at, bool is_bias) {
    return State{load_cg((is_bias ? s.bias : s.weight) + at), load_cg((is_bias ? s.bias_velocity : s.weight_velocity) + at)};
}
DEVICE void apply(const Gradients &g, u64 at, float gradient, State, bool is_bias) { (is_bias ? g.bias : g.weight)[at] = gradient; }
DEVICE void apply(const Step &s, u64 at, float gradient, State state, bool is_bias) {
    const float decay = is_bias ? 0.f : s.weight_decay; // weights decay, biases do not
    sgd_step(sgd_settings(s.lr, s.scale, s.momentum, decay, s.nesterov), gradient, state.value, state.velocity);
    (is_bias ? s.bias : s.weight)[at] = state.value, (is_bias ? s.bias_velocity : s.weight_velocity)[at] = state.velocity;
}

template <class Target> DEVICE void head_gradients(const T *z, const float *w, const float *dlogits, T *dz, const float *losses, float *loss_log, u32 *correct_log, u32 *step, int batch, int hidden,
                                                    const Target &target) {
    constexpr int COLS = 16, GROUPS = HEAD_THREADS / COLS, CHUNK = HEAD_CHUNK; // rows of dlogits that are kept in shared memory at a time
    constexpr int WARPS = HEAD_THREADS / 32, SCRATCH = WARPS * COLS * (CLASSES + 1);
    __shared__ float2 pool[(CHUNK * CLASSES > SCRATCH ? CHUNK * CLASSES : SCRATCH) / 2];
    if (losses && blockIdx.x == gridDim.x - 1) {
        wait_and_let_start();
        tally(losses, loss_log, correct_log, step, batch, (float *)pool);
        return;
    }
    const int lane = threadIdx.x % COLS, group = threadIdx.x / COLS, h = blockIdx.x * COLS + lane, warp = threadIdx.x / 32;
    const bool sums_weight = group < CLASSES && h < hidden, sums_bias = blockIdx.x == 0 && warp < CLASSES;
    static_assert(GROUPS >= CLASSES && WARPS >= CLASSES && CHUNK % GROUPS == 0, "a group sums a class of the weight, a warp of the first block one of the bias");
    State state{0.f, 0.f}, bias_state{0.f, 0.f};
    if (sums_weight) state = state_of(target, (u64)group * hidden + h, false);
    if (sums_bias) bias_state = state_of(target, warp, true);
    float weights[CLASSES], dw[CLASSES] = {};
#pragma unroll
    for (int c = 0; c < CLASSES; c++) weights[c] = h < hidden ? load_cg(w + (u64)c * hidden + h) : 0.f;
    if (AT_ONCE) wait_and_let_start();
    for (int row0 = 0; row0 < batch; row0 += CHUNK) {
        const int rows = min(CHUNK, batch - row0);
        float a[CHUNK / GROUPS]; // asked for before the barrier, so that the two waits overlap; z is not the kernel ahead's, which made dlogits
#pragma unroll
        for (int i = 0; i < CHUNK / GROUPS; i++) a[i] = group + i * GROUPS < rows && h < hidden ? load_cg(z + (u64)(row0 + group + i * GROUPS) * hidden + h) : 0.f;
        if (!AT_ONCE && row0 == 0) wait_and_let_start();
        __syncthreads();
        for (int i = threadIdx.x; i < rows * CLASSES / 2; i += HEAD_THREADS) pool[i] = ((const float2 *)(dlogits + (u64)row0 * CLASSES))[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < CHUNK / GROUPS; i++) {
            const int row = group + i * GROUPS;
            if (row >= rows) break;
            float back = 0.f;
#pragma unroll
            for (int c = 0; c < CLASSES; c += 2) {
                const float2 d = pool[row * (CLASSES / 2) + c / 2];
                dw[c] = fmaf(d.x, a[i], dw[c]), dw[c + 1] = fmaf(d.y, a[i], dw[c + 1]);
                back = fmaf(d.x, weights[c], fmaf(d.y, weights[c + 1], back));
            }
            if (dz && h < hidden) dz[(u64)(row0 + row) * hidden + h] = from_float<T>(back);
        }
    }
    __syncthreads(); // all have read dlogits
    float(*scratch)[COLS][CLASSES + 1] = (float(*)[COLS][CLASSES + 1])pool;
#pragma unroll
    for (int c = 0; c < CLASSES; c++) {
        dw[c] += __shfl_xor_sync(0xffffffffu, dw[c], COLS); // the warp's other group of rows
        if (threadIdx.x % 32 < COLS) scratch[warp][lane][c] = dw[c];
    }
    __syncthreads();
    if (sums_weight) { // groups 0 .. 9 sum a class each
        float sum = 0.f;
        for (int from = 0; from < WARPS; from++) sum += scratch[from][lane][group];
        apply(target, (u64)group * hidden + h, sum, state, false);
    }
    if (sums_bias) {
        float sum = 0.f;
        for (int row = threadIdx.x % 32; row < batch; row += 32) sum += dlogits[(u64)row * CLASSES + warp];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) apply(target, warp, sum, bias_state, true);
    }
}

extern "C" __global__ void __launch_bounds__(HEAD_THREADS)
    head_backward(const T *z, const float *w, const float *dlogits, T *dz, float *dw, float *db, const float *losses, float *loss_log, u32 *correct_log, u32 *step, int batch, int hidden) {
    head_gradients(z, w, dlogits, dz, losses, loss_log, correct_log, step, batch, hidden, Gradients{dw, db});
}

extern "C" __global__ void __launch_bounds__(HEAD_THREADS)
    head_backward_sgd(const T *z, float *w, float *w_velocity, float *bias, float *bias_velocity, const float *dlogits, T *dz, const float *losses, float *loss_log, u32 *correct_log, u32 *step,
                      const float *lr, const float *scale, float momentum, float weight_decay, int nesterov, int batch, int hidden) {
    head_gradients(z, w, dlogits, dz, losses, loss_log, correct_log, step, batch, hidden, Step{w, w_velocity, bias, bias_velocity, lr, scale, momentum, weight_decay, nesterov});
}
