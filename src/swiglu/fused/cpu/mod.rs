//! The fused kernels on the CPU: register tiles of g and u, gated where they are.
//!
//! Everything between the passes lies transposed, (2H, B) with the batch innermost, because the batch is what vectors
//! run along: weights are read where they stand, one broadcast at a time, and need no packing.
//!
//! | kernel | tile (AVX-512) | parallel over | memory beside x, Wf, z |
//! |---|---|---|---|
//! | [`forward`] | 4 gate + 4 up rows x 32 images | hidden rows | x of 512 images, packed |
//! | [`backward_gates`] | the same, then the gate's derivative | hidden rows | [dg \| du]^T, (2H, B) |
//! | [`backward_dx`] | 8 images x 32 inputs over 2H | inputs | a panel of Wf a thread |
//! | [`backward_dwf`] | 8 rows of Wf x 32 inputs over B | rows of Wf | x of a block of inputs, packed |
//!
//! They win by what they leave out: g and u are not written and read again, the large operand is not packed, and the
//! last kernel applies SGD to its tile while that is in registers. They lose where a library has a better kernel for
//! the shape: batches far below 32 fill the vectors badly.

mod dwf;
mod dx;
mod gates;

pub use dwf::{backward_dwf, library_dwf};
pub use dx::backward_dx;
pub use gates::{backward_gates, forward};

pub use crate::device::cpu::weight_grad::Target;
use crate::tensor::AlignedVec;

/// Images whose packed x is kept at a time: 4 MB at D = 2048, whatever the batch.
const BATCH_BLOCK: usize = 512;
/// Hidden rows of a task that only derives the gates: a cache line of dz. A product's task is a register tile.
const HIDDEN_TASK: usize = 16;
/// Floats between the copied weight rows of a tile, beyond D, so that they do not all fall into one set of the cache.
const PAD: usize = 16;

/// What is in a [`Workspace`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    /// A forward has run; g and u were not kept.
    Forward,
    /// g and u.
    Gates,
    /// dg and du.
    Gradients,
}

/// Memory of a layer between its passes.
#[derive(Debug, Default)]
pub struct Workspace {
    /// [g ; u] and then [dg ; du], (2H, B) with `stride` floats between rows.
    gates: AlignedVec,
    /// x of one batch block, in panels (D, width).
    panels: AlignedVec,
    held: Held,
    batch: usize,
}

impl Workspace {
    /// Bytes that the last forward kept for its backward.
    pub fn saved_bytes(&self, hidden: usize) -> usize {
        if self.held == Held::Gates { 2 * self.batch * hidden * size_of::<f32>() } else { 0 }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.gates.bytes() + self.panels.bytes()
    }
}

/// Floats between two rows of the transposed gates: whole panels of every width, and a line more, so that consecutive
/// rows do not fall into one set of the cache.
fn gate_stride(batch: usize) -> usize {
    batch.next_multiple_of(32) + PAD
}
