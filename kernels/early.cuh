// Programmatic dependent launch: a kernel's blocks may start before the kernel ahead of it has ended (compute capability 9.0; on older chips nothing).
//
// Every kernel that is launched so waits in each block before that block lets the next start. So when a kernel begins, all but the one right ahead of it have
// ended, and what those wrote may be read before the wait: weights, which the step before wrote, are on their way while the kernel ahead ends.
//
// But head.cu's kernels let the next start before they wait, for small batches. So when the kernel after them begins, they and the forward ahead of them may still be
// running, and what is read before the wait is older than that forward: no z, no gates.
#pragma once
#include "common.cuh"

// The next kernel's blocks may start.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// From L2, for what is read before the wait: L1 may have it as it was a step ago.
DEVICE u32 load_early(const u32 *p) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
// Returns when what the kernel ahead wrote can be read, and what it read may be written.
DEVICE void wait_for_last() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
