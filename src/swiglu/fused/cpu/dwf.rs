//! dWf: our own kernel, whose epilogue stores the gradient or applies SGD, and the library's product.

use super::{ROW_TASK, Workspace, gate_stride, store_row};
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
            with_scratch,
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

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D), or the step of SGD that it stands for.
pub fn backward_dwf(cpu: &Cpu, dims: Dims, x: &[f32], target: Target<'_>, workspace: &Workspace) {
    let Dims { batch, inputs, hidden } = dims;
    let width = cpu.isa().panel();
    let across = inputs.div_ceil(width);
    let gates = workspace.gates.as_slice();
    let out = match target {
        Target::Buffer(dwf) => Out::Buffer(SharedMut::new(dwf)),
        Target::Step(rule, w, v) => Out::Step(rule, SharedMut::new(w), SharedMut::new(v)),
    };
    cpu.for_each(across * (2 * hidden).div_ceil(ROW_TASK), |task| {
        let (first, d) = (task / across * ROW_TASK, task % across * width);
        let (rows, cols) = (ROW_TASK.min(2 * hidden - first), width.min(inputs - d));
        with_scratch(batch * width, |panel| {
            pack_columns(x, batch, inputs, d, cols, width, panel);
            // SAFETY: rows first..first + rows, columns d..d + cols of dWf (or Wf) belong to this task.
            unsafe { dwf_kernel(cpu.isa(), dims, gates, panel, first..first + rows, d..d + cols, &out) }
        });
    });
}

simd_dispatch!(unsafe fn dwf_kernel(
    dims: Dims,
    gates: &[f32],
    panel: &[f32],
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) = dwf_tiles);

#[inline(always)]
unsafe fn dwf_tiles<S: Simd, const R: usize, const V: usize>(
    dims: Dims,
    gates: &[f32],
    panel: &[f32],
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    out: &Out<'_>,
) {
    let stride = gate_stride(dims.batch);
    for n in rows.clone().step_by(R) {
        let mut from = [gates.as_ptr(); R];
        for (r, row) in from.iter_mut().enumerate() {
            *row = gates[(n + r).min(rows.end - 1) * stride..].as_ptr();
        }
        // SAFETY: each row holds a batch; the panel is batch x width.
        let acc = unsafe { tile::<S, R, V>(dims.batch, from, 1, panel.as_ptr()) };
        for (r, acc) in acc.iter().enumerate().take(rows.end - n) {
            let at = (n + r) * dims.inputs + cols.start;
            // SAFETY: these columns of row n + r belong to this task.
            unsafe {
                match out {
                    Out::Buffer(dwf) => store_row::<S, V>(*acc, dwf.at(at), cols.len()),
                    Out::Step(rule, w, v) if cols.len() == V * S::LANES => {
                        for (i, grad) in acc.iter().enumerate() {
                            sgd_vector::<S>(rule, w.at(at + i * S::LANES), v.at(at + i * S::LANES), *grad);
                        }
                    }
                    Out::Step(rule, w, v) => {
                        let mut grad = [0.0; 32];
                        store_row::<S, V>(*acc, grad.as_mut_ptr(), V * S::LANES);
                        let (w, v) = (w.slice(at, cols.len()), v.slice(at, cols.len()));
                        for (i, (w, v)) in w.iter_mut().zip(v).enumerate() {
                            rule.apply(w, v, grad[i]);
                        }
                    }
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
