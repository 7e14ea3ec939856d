// The gate alone, for products made by a library (liger-style):
//   forward    z = silu(g) * u
//   backward   du = dz silu(g)     dg = dz u sigmoid(g) (1 + g (1 - sigmoid(g)))     in place: g becomes dg, u becomes du
//
// Reads     forward g, u; backward g, u, dz
// Writes    forward z; backward dg, du over g, u: no memory beyond what the forward saved
// Launches  1 each. Bytes: 3 B H elements forward, 5 B H backward. A few instructions an element: memory is the limit.
// Wins      beside large products, where its time is small and the library's product is the fastest there is.
// Loses     beside small ones: a launch and a round trip through memory (or L2) for each.
//
// Grid: ceil(count / (256 * 16 / sizeof(element))) blocks of 256 threads; each thread has one 16-byte vector of each array. The arrays are
// contiguous and start on 16 bytes; count is any number.
#include "common.cuh"

constexpr int THREADS = 256, N = Vec<T>::N;

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_gate_forward(const T *gate, const T *up, T *z, u64 count) {
    const u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at + N <= count) {
        float g[N], u[N], out[N];
        const uint4 gv = load16(gate + at), uv = load16(up + at); // both on their way before either is used
        unpack16(gv, g, T()), unpack16(uv, u, T());
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = gate_forward(g[i], u[i]);
        *(uint4 *)(z + at) = pack16(out, T());
    } else {
        for (u64 i = at; i < count; i++) z[i] = from_float<T>(gate_forward(to_float(gate[i]), to_float(up[i])));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_gate_backward(T *gate, T *up, const T *dz, u64 count) {
    const u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at + N <= count) {
        float g[N], u[N], d[N], dg[N], du[N];
        const uint4 gv = load16(gate + at), uv = load16(up + at), dv = load16(dz + at);
        unpack16(gv, g, T()), unpack16(uv, u, T()), unpack16(dv, d, T());
#pragma unroll
        for (int i = 0; i < N; i++) gate_backward(g[i], u[i], d[i], dg[i], du[i]);
        *(uint4 *)(gate + at) = pack16(dg, T());
        *(uint4 *)(up + at) = pack16(du, T());
    } else {
        for (u64 i = at; i < count; i++) {
            float dg, du;
            gate_backward(to_float(gate[i]), to_float(up[i]), to_float(dz[i]), dg, du);
            gate[i] = from_float<T>(dg);
            up[i] = from_float<T>(du);
        }
    }
}
