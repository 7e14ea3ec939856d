// One step of SGD for one weight, as PyTorch's SGD defines it:
//   d = scale * grad + weight_decay * w      v = momentum * v + d      w -= lr * (nesterov ? d + momentum * v : v)
// lr and scale come from device memory, so that a captured graph can be replayed with new values.
#pragma once
#include "common.cuh"

struct Sgd {
    float lr, scale, momentum, weight_decay;
    bool nesterov;
};
DEVICE Sgd sgd_settings(const float *lr, const float *scale, float momentum, float weight_decay, int nesterov) {
    return Sgd{*lr, scale ? *scale : 1.f, momentum, weight_decay, nesterov != 0};
}
DEVICE void sgd_step(const Sgd &s, float grad, float &w, float &v) {
    const float d = fmaf(s.weight_decay, w, s.scale * grad);
    v = fmaf(s.momentum, v, d);
    w = fmaf(-s.lr, s.nesterov ? fmaf(s.momentum, v, d) : v, w);
}
