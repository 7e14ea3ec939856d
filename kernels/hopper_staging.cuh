// A tile of activations on its way from sums to memory, where a row is one image: `Staging` keeps it in shared memory, one row a column of the product: IMAGES
// rows of `WIDTH` elements, 16 bytes longer so that they start on other banks.
#pragma once
#include "hopper_product.cuh"
#include "hopper_stream.cuh"

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
    // All threads that multiply: 16 bytes each, whole rows. Rows of the matrix in memory have `pitch` elements, `cols` of them from `col0` on exist. ADDS: to what is there.
    template <bool ADDS = false> DEVICE void write(E *matrix, int row0, int rows, int col0, int cols, int pitch) const {
        constexpr int N = 16 / (int)sizeof(E), CHUNKS = WIDTH / N;
        for (int i = threadIdx.x; i < IMAGES * CHUNKS; i += MULTIPLIERS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS;
            uint4 v;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(base + row * PITCH + chunk * 16) : "memory");
            if (row0 + row >= rows || col0 + chunk * N >= cols) continue;
            E *to = matrix + offset(row0 + row, pitch) + col0 + chunk * N;
            if (ADDS) asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(__uint_as_float(v.x)), "f"(__uint_as_float(v.y)), "f"(__uint_as_float(v.z)), "f"(__uint_as_float(v.w)) : "memory");
            else *(uint4 *)to = v;
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

// A box of results as the copy engine takes it: `IMAGES` rows of `WIDTH` elements, 64 or 128 bytes, whose 16-byte chunks are swizzled over those bytes.
template <class E, int WIDTH, int IMAGES> struct Box {
    static constexpr int ROW = WIDTH * (int)sizeof(E), BYTES = IMAGES * ROW;
    static_assert((ROW == 64 || ROW == 128) && IMAGES % 16 == 0, "what is swizzled, and how many a store of matrices takes");
    DEVICE static u32 chunk(u32 box, int image, int at) { return box + image * ROW + ((at ^ (ROW == 128 ? image & 7 : image >> 1 & 3)) << 4); }
    // A warp's sums of elements `at` to `at` + 7 (of `element`, in fp32, the thread's), two a thread of each 8 images.
    DEVICE static void put(u32 box, int at, int element, const float (&v)[IMAGES / 4]) {
        const int lane = threadIdx.x & 31;
        if constexpr (sizeof(E) == 2 && IMAGES % 32 == 0) {
#pragma unroll
            for (int j = 0; j < IMAGES / 4; j += 8)
                asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(chunk(box, 4 * j + lane, at / 8)), "r"(pack_bf16(v[j], v[j + 1])),
                             "r"(pack_bf16(v[j + 2], v[j + 3])), "r"(pack_bf16(v[j + 4], v[j + 5])), "r"(pack_bf16(v[j + 6], v[j + 7])) : "memory");
        } else if constexpr (sizeof(E) == 2) {
#pragma unroll
            for (int j = 0; j < IMAGES / 4; j += 4)
                asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(chunk(box, 4 * j + (lane & 15), at / 8)), "r"(pack_bf16(v[j], v[j + 1])),
                             "r"(pack_bf16(v[j + 2], v[j + 3])) : "memory");
        } else {
#pragma unroll
            for (int j = 0; j < IMAGES / 4; j += 2) {
                const int image = 4 * j + lane % 4 * 2, word = (element & 3) * 4;
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(chunk(box, image, element / 4) + word), "f"(v[j]) : "memory");
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(chunk(box, image + 1, element / 4) + word), "f"(v[j + 1]) : "memory");
            }
        }
    }
};

constexpr int OUTBOX = RESULTS / WARPGROUPS / 1024 * 1024; // bytes of a warpgroup's
// The most images, a power of two from 16 to 128, of which it holds `row_bytes` twice. The host knows the same (HopperTile::sent).
DEVICE constexpr int images_sent(int row_bytes) {
    int images = SHARE_COLS < 128 ? SHARE_COLS : 128;
    while (images > 16 && 2 * images * row_bytes > OUTBOX) images /= 2;
    return images;
}
// A warpgroup's own way out: SLOTS places of BYTES beside the ring, used in turns, each sent by one thread when all 128 have written to it. No warpgroup waits
// for another.
template <int BYTES> struct Outbox {
    static constexpr int SLOTS = OUTBOX / BYTES;
    static_assert(SLOTS >= 2, "while one place is written, another is on its way");
    u32 base;
    int slot;
    DEVICE Outbox(const Ring &ring) : base(ring.results() + threadIdx.x / 128 * OUTBOX), slot(0) {}
    // `put(place)` by all, then `send(place)` by one.
    template <class Put, class Send> DEVICE void pass(const Put &put, const Send &send) {
        const u32 place = base + slot * BYTES;
        put(place);
        fence_shared(); // the copy engine reads what this thread wrote
        const bool sends = threadIdx.x % 128 == 0;
        if (sends) stores_read<SLOTS - 2>(); // what was in the next place is gone
        barrier_among(4 + threadIdx.x / 128, 128);
        if (sends) send(place), stores_commit();
        if (++slot == SLOTS) slot = 0;
    }
    // Shared memory has been read.
    DEVICE void leave() const {
        if (threadIdx.x % 128 == 0) stores_read();
    }
};
