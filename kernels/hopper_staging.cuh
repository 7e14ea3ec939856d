// A tile of activations on its way from sums to memory, where a row is one image: `Staging` keeps it in shared memory, one row a column of the product: IMAGES
// rows of `WIDTH` elements, 16 bytes longer so that they start on other banks.
#pragma once
#include "hopper_product.cuh"

template <class E, int WIDTH, int IMAGES = SHARE_COLS> struct Staging {
    static constexpr int PITCH = WIDTH * (int)sizeof(E) + 16;
    static constexpr int BYTES = IMAGES * PITCH;
    u32 base;
    // A thread's two sums of element `at`, images 8 `j` and the next.
    DEVICE void put_pair(int at, int j, float first, float second) const {
        static_assert(sizeof(E) == 4, "a word each");
        const u32 address = base + (8 * j + threadIdx.x % 4 * 2) * PITCH + at * 4;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(first) : "memory");
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(address + PITCH), "f"(second) : "memory");
    }
    // Sums of 8 rows x 8 columns, as a warp holds them (two a thread), of element `at` on (a multiple of 8), images 8 `j` and on.
    DEVICE void put(int at, int j, float first, float second) const {
        const int lane = threadIdx.x & 31;
        if constexpr (sizeof(E) == 2) {
            const u32 address = base + (8 * j + (lane & 7)) * PITCH + at * 2;
            asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(pack_bf16(first, second)) : "memory");
        } else {
            put_pair(at + lane / 4, j, first, second);
        }
    }
    DEVICE void get(int at, int j, float &first, float &second) const {
        const int lane = threadIdx.x & 31;
        if constexpr (sizeof(E) == 2) {
            u32 pair;
            const u32 address = base + (8 * j + (lane & 7)) * PITCH + at * 2;
            asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(pair) : "r"(address) : "memory");
            first = __uint_as_float(pair << 16), second = __uint_as_float(pair & 0xffff0000u);
        } else {
            const u32 address = base + (8 * j + lane % 4 * 2) * PITCH + (at + lane / 4) * 4;
            first = load_shared_float(address), second = load_shared_float(address + PITCH);
        }
    }
    // All threads that multiply: 16 bytes each, whole rows. Rows of the matrix in memory have `pitch` elements, `cols` of them from `col0` on exist.
    DEVICE void write(E *matrix, int row0, int rows, int col0, int cols, int pitch) const {
        constexpr int N = 16 / (int)sizeof(E), CHUNKS = WIDTH / N;
        for (int i = threadIdx.x; i < IMAGES * CHUNKS; i += MULTIPLIERS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS;
            uint4 v;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(base + row * PITCH + chunk * 16) : "memory");
            if (row0 + row < rows && col0 + chunk * N < cols) *(uint4 *)(matrix + offset(row0 + row, pitch) + col0 + chunk * N) = v;
        }
    }
    DEVICE void read(const E *matrix, int row0, int rows, int col0, int cols, int pitch) const {
        constexpr int N = 16 / (int)sizeof(E), CHUNKS = WIDTH / N;
#pragma unroll 4
        for (int i = threadIdx.x; i < IMAGES * CHUNKS; i += MULTIPLIERS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS;
            uint4 v = make_uint4(0u, 0u, 0u, 0u);
            if (row0 + row < rows && col0 + chunk * N < cols) v = load16(matrix + offset(row0 + row, pitch) + col0 + chunk * N);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(base + row * PITCH + chunk * 16), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
        }
    }
};
// The most images, a power of two, of which RESULTS bytes hold rows of `row_bytes`.
DEVICE constexpr int images_at_once(int row_bytes) {
    int images = SHARE_COLS;
    while (images > 8 && images * row_bytes > RESULTS) images /= 2;
    return images;
}
