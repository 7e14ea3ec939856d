//! Which tile a Hopper kernel is given: by rules drawn from the tables of kernels/README.md.

use super::context::Chip;
use crate::device::Precision;

/// A block's tile, and how a cluster of blocks shares work: kernels/hopper_product.cuh explains each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopperTile {
    /// Warpgroups that multiply.
    pub warpgroups: usize,
    /// Times 64 rows of the weight that each has.
    pub m_tiles: usize,
    /// Columns: images, or in dWf inputs.
    pub cols: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// Blocks that share a sum over K.
    pub splits: usize,
    /// Blocks that share the weight's tiles.
    pub share_a: usize,
    /// Blocks that share the batch's tiles.
    pub share_b: usize,
    /// Blocks that a multiprocessor should hold.
    pub blocks: usize,
}

impl HopperTile {
    /// Rows of the weight in a block's tile; half as many hidden units in the forward.
    pub const fn rows(&self) -> usize {
        64 * self.warpgroups * self.m_tiles
    }

    /// Threads of a block: those that multiply, and a warpgroup that loads.
    pub const fn threads(&self) -> usize {
        128 * (self.warpgroups + 1)
    }

    /// Blocks of a cluster.
    pub const fn cluster(&self) -> usize {
        self.splits * self.share_a * self.share_b
    }

    /// What of K a stage holds.
    pub fn k_tile(&self, precision: Precision) -> usize {
        if precision == Precision::Tf32 { 32 } else { 64 }
    }

    /// Bytes of dynamic shared memory: the ring, its barriers, a few words.
    pub fn shared(&self, _precision: Precision) -> usize {
        let stage = (self.rows() + self.cols) * 128;
        self.stages * stage + self.stages * 16 + 16 + 64
    }

    /// Its defines.
    pub fn defines(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("WARPGROUPS", self.warpgroups as u32),
            ("M_TILES", self.m_tiles as u32),
            ("BATCH_TILE", self.cols as u32),
            ("RING_STAGES", self.stages as u32),
            ("SPLITS", self.splits as u32),
            ("SHARE_A", self.share_a as u32),
            ("SHARE_B", self.share_b as u32),
            ("MIN_BLOCKS", self.blocks as u32),
        ]
    }
}
