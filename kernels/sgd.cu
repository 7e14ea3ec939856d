// One step of SGD over a whole tensor; sgd.cuh has the formula.
//
// Reads     w, velocity (fp32), grad: fp32 in sgd_update, bf16 in sgd_update_bf16, whose arithmetic is fp32 all the same
// Writes    w, velocity and, when w_copy is given, the bf16 copy that products read
// Launches  1 a tensor. Bytes: 20 an element, 22 with the copy, 20 with the copy and a bf16 gradient. The floor of an optimiser that keeps a momentum.
// Wins      always right: any gradient from anywhere.  Loses: to swiglu_fused_dwf_sgd, which never writes the gradient (8 bytes an element).
//
// Grid: ceil(count / 1024) blocks of 256 threads, four elements a thread. The arrays start on 16 bytes.
#include "common.cuh"
#include "sgd.cuh"

template <class G> DEVICE void update(const Sgd &sgd, float *w, float *velocity, const G *grad, bf16 *w_copy, u64 count) {
    const u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 4;
    if (at + 4 <= count) {
        float a[4], v[4], g[4];
        unpack16(load16(w + at), a, 0.f), unpack16(load16(velocity + at), v, 0.f), load_quad(grad + at, 4, g);
#pragma unroll
        for (int i = 0; i < 4; i++) sgd_step(sgd, g[i], a[i], v[i]);
        *(uint4 *)(w + at) = pack16(a, 0.f);
        *(uint4 *)(velocity + at) = pack16(v, 0.f);
        if (w_copy) *(uint2 *)(w_copy + at) = make_uint2(pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]));
    } else {
        for (u64 i = at; i < count; i++) {
            float a = w[i], v = velocity[i];
            sgd_step(sgd, to_float(grad[i]), a, v);
            w[i] = a, velocity[i] = v;
            if (w_copy) w_copy[i] = from_float<bf16>(a);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    sgd_update(float *w, float *velocity, const float *grad, bf16 *w_copy, const float *lr, const float *scale, float momentum, float weight_decay, int nesterov, u64 count) {
    update(sgd_settings(lr, scale, momentum, weight_decay, nesterov), w, velocity, grad, w_copy, count);
}
extern "C" __global__ void __launch_bounds__(256)
    sgd_update_bf16(float *w, float *velocity, const bf16 *grad, bf16 *w_copy, const float *lr, const float *scale, float momentum, float weight_decay, int nesterov, u64 count) {
    update(sgd_settings(lr, scale, momentum, weight_decay, nesterov), w, velocity, grad, w_copy, count);
}
