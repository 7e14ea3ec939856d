//! dWf: our own kernel, whose epilogue stores the gradient or applies SGD, and the library's product.

use super::{Workspace, gate_stride, store_row};
use crate::{
    Result,
    device::{
        SgdStep,
        cpu::{
            Cpu, SharedMut,
            gemm::{View, gemm},
            ops::sgd_vector,
            simd::{Simd, simd_dispatch},
            tile::{pack_columns, tile},
            with_shared_scratch,
        },
    },
    swiglu::reference::Dims,
};

/// Where the weight gradient's tiles go.
pub enum Target<'a> {
    /// Into dWf.
    Buffer(&'a mut [f32]),
    /// Into Wf and its velocity, by one step of SGD.
    Step(SgdStep, &'a mut [f32], &'a mut [f32]),
}

/// The same, shared between tasks.
enum Out<'a> {
    Buffer(SharedMut<'a>),
    Step(SgdStep, SharedMut<'a>, SharedMut<'a>),
}

/// Floats of packed x that the tiles of a block of columns go through again and again: half of a 1 MB cache.
const PACKED_X: usize = 128 * 1024;

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D), or the step of SGD that it stands for.
///
/// A task walks along its rows of Wf, so that weights and velocity are read and written in the order they lie in: going
/// down one panel of columns instead, each line of them came from another page, and that took twice as long.
pub fn backward_dwf(cpu: &Cpu, dims: Dims, x: &[f32], target: Target<'_>, workspace: &Workspace) {
    let Dims { batch, inputs, hidden } = dims;
    let width = cpu.isa().panel();
    let gates = workspace.gates.as_slice();
    let out = match target {
        Target::Buffer(dwf) => Out::Buffer(SharedMut::new(dwf)),
        Target::Step(rule, w, v) => Out::Step(rule, SharedMut::new(w), SharedMut::new(v)),
    };
    let size = batch * width;
    let block = (PACKED_X / size).max(1).min(inputs.div_ceil(width));
    with_shared_scratch(block * size, |scratch| {
        for first in (0..inputs).step_by(block * width) {
            let cols = first..inputs.min(first + block * width);
            let panels = SharedMut::new(&mut *scratch);
            cpu.for_each(cols.len().div_ceil(width), |p| {
                let d = first + p * width;
                // SAFETY: each panel belongs to one task.
                let panel = unsafe { panels.slice(p * size, size) };
                pack_columns(x, batch, inputs, d, width.min(cols.end - d), width, panel);
            });
            let each = cpu.task_rows(2 * hidden, cpu.isa().tile_rows());
            cpu.for_each((2 * hidden).div_ceil(each), |task| {
                let rows = task * each..(2 * hidden).min((task + 1) * each);
                // SAFETY: these rows of dWf (or Wf) belong to this task.
                unsafe { dwf_kernel(cpu.isa(), dims, gates, scratch, rows, cols.clone(), &out) }
            });
        }
    });
}

simd_dispatch!(unsafe fn dwf_kernel(
    dims: Dims,
    gates: &[f32],
    panels: &[f32],
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) = dwf_tiles);

#[inline(always)]
unsafe fn dwf_tiles<S: Simd, const R: usize, const V: usize>(
    dims: Dims,
    gates: &[f32],
    panels: &[f32],
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) {
    let (stride, width) = (gate_stride(dims.batch), V * S::LANES);
    for n in rows.clone().step_by(R) {
        let mut from = [gates.as_ptr(); R];
        for (r, row) in from.iter_mut().enumerate() {
            *row = gates[(n + r).min(rows.end - 1) * stride..].as_ptr();
        }
        for (d, panel) in cols.clone().step_by(width).zip(panels.chunks_exact(dims.batch * width)) {
            // SAFETY: each row holds a batch; the panel is batch x width.
            let acc = unsafe { tile::<S, R, V>(dims.batch, from, 1, panel.as_ptr()) };
            for (r, acc) in acc.iter().enumerate().take(rows.end - n) {
                // SAFETY: row n + r belongs to this task, and the columns end with the matrix.
                unsafe { finish_row::<S, V>(*acc, (n + r) * dims.inputs + d, width.min(cols.end - d), out) }
            }
        }
    }
}

/// Stores `count` elements of a row of the gradient at `at`, or applies SGD to the weights there.
///
/// # Safety
/// The instruction set of `S` is there; elements at..at + count are in the target, and no other task touches them.
#[inline(always)]
unsafe fn finish_row<S: Simd, const V: usize>(grad: [S::V; V], at: usize, count: usize, out: &Out<'_>) {
    // SAFETY: as the caller vouches.
    unsafe {
        match out {
            Out::Buffer(dwf) => store_row::<S, V>(grad, dwf.at(at), count),
            Out::Step(rule, w, v) if count == V * S::LANES => {
                for (i, grad) in grad.into_iter().enumerate() {
                    sgd_vector::<S>(rule, w.at(at + i * S::LANES), v.at(at + i * S::LANES), grad);
                }
            }
            Out::Step(rule, w, v) => {
                let mut rest = [0.0; 32];
                store_row::<S, V>(grad, rest.as_mut_ptr(), V * S::LANES);
                for ((w, v), grad) in w.slice(at, count).iter_mut().zip(v.slice(at, count)).zip(rest) {
                    rule.apply(w, v, grad);
                }
            }
        }
    }
}

/// dWf = [dg | du]^T x by the library GEMM: (2H, B) @ (B, D) -> (2H, D).
///
/// # Errors
/// When the shapes do not fit.
pub fn library_dwf(cpu: &Cpu, dims: Dims, x: &[f32], dwf: &mut [f32], workspace: &Workspace) -> Result<()> {
    let gates = View {
        data: workspace.gates.as_slice(),
        rows: 2 * dims.hidden,
        cols: dims.batch,
        row_stride: gate_stride(dims.batch),
        col_stride: 1,
    };
    gemm(cpu, gates, View::new(x, dims.batch, dims.inputs), 0.0, dwf)
}
