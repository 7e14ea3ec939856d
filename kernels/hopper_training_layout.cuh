// What hopper_training_steps.cu keeps where: how D and H are spread over clusters and blocks, a block's shared memory, the memory through which blocks pass numbers.
#pragma once
#include "common.cuh"

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
