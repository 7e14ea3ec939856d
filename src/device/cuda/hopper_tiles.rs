//! Which tile a Hopper kernel is given: by rules drawn from the tables of kernels/README.md.

use super::{context::Chip, tiles::element_bytes};
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
    /// Bytes of shared memory beside the ring, through which results pass.
    pub results: usize,
    /// Clusters, one or in dx two, whose sums over parts of K are added up in memory: of two numbers the order is all one.
    pub addends: usize,
    /// Whether in dWf the batch's tile stays beside the ring, for all of a block's rows of the gradient: a stage holds all images.
    pub stays: bool,
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

    /// Bytes of a stage of the ring: 128 a row, and twice that where an operand is split in two.
    fn stage(&self, precision: Precision) -> usize {
        (self.rows() + if self.stays { 0 } else { self.cols })
            * if precision == Precision::Fp32Emulated { 256 } else { 128 }
    }

    /// Bytes of dynamic shared memory: the ring, its barriers, the results.
    pub fn shared(&self, precision: Precision) -> usize {
        self.stages * self.stage(precision) + self.stages * 16 + self.results
    }

    /// Tiles of a product of `rows` (of the weight) x `cols`, in whole clusters, times the splits.
    pub(super) fn count(&self, rows: usize, cols: usize) -> usize {
        let a = rows.div_ceil(self.rows()).next_multiple_of(self.share_b);
        let b = cols.div_ceil(self.cols).next_multiple_of(self.share_a);
        a * b * self.splits * self.addends
    }

    /// Whether every split has some of a sum over `k`, as the kernels trust.
    pub(super) fn splits_evenly(&self, k: usize, precision: Precision) -> bool {
        let (tiles, parts) = (k.div_ceil(self.k_tile(precision)), self.splits * self.addends);
        (parts - 1) * tiles.div_ceil(parts) < tiles
    }

    /// Stages of a part of [dg | du] that has a scale of its own, in fp32-emulated's dx from saved gates: so many that at 64 images
    /// the chip's warpgroups have one part each, and 64 at most, which stay in registers while they are split. 0, a scale for what
    /// a split sums, where a tile's columns leave no registers to add parts up.
    pub fn part(&self, batch: usize, hidden: usize) -> usize {
        if self.cols != 64 {
            return 0;
        }
        let parts = (2 * self.warpgroups / batch.div_ceil(64)).max(1);
        (2 * hidden).div_ceil(64).div_ceil(parts).next_power_of_two().clamp(8, 64)
    }

    /// The same with as many stages as shared memory holds, 16 at most.
    pub(super) fn filled(self, precision: Precision) -> HopperTile {
        let room = (SHARED / self.blocks).saturating_sub(2048 + self.results);
        HopperTile { stages: (room / self.stage(precision)).clamp(2, 16), ..self }
    }

    /// The same with room for results, in whole kilobytes: for what the other splits send, and for g, u and z of the block's
    /// images, or of as many as [`STAGED`] bytes hold.
    pub(super) fn with_results(self, precision: Precision) -> HopperTile {
        let element = if precision == Precision::Bf16 { 2 } else { 4 };
        let staged = 3 * self.cols / self.splits * (self.rows() / 2 * element + 16);
        let sent = self.rows() * self.cols * 4 / self.splits * (self.splits - 1);
        HopperTile { results: sent.max(staged.min(STAGED)).next_multiple_of(1024), ..self }
    }

    /// Images of which the forward sends results to memory at once, z alone or z, g and u: hopper_staging.cuh counts the same.
    pub(crate) fn sent(&self, precision: Precision, gates: bool) -> usize {
        let row = if gates { 3 } else { 1 } * WIDE * element_bytes(precision);
        let room = self.results / self.warpgroups / 1024 * 1024;
        let mut images = (self.cols / self.splits).min(128);
        while images > 16 && 2 * images * row > room {
            images /= 2;
        }
        images
    }

    /// The same with room for as many boxes of dWf's results for each warpgroup.
    pub(super) const fn with_boxes(self, boxes: usize) -> HopperTile {
        HopperTile { results: boxes * self.warpgroups * BOX, ..self }
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
            ("RESULTS", self.results as u32),
            ("ADDENDS", self.addends as u32),
            ("B_STAYS", u32::from(self.stays)),
        ]
    }
}

/// Bytes of shared memory that the blocks of a multiprocessor have together.
const SHARED: usize = 227 << 10;

/// Bytes beside the ring for results on their way to memory: in bf16 z of a tile of 128 x 256.
const STAGED: usize = 32_768;

/// Hidden units of 64 rows of the weight: a warpgroup sends results of so many.
pub(crate) const WIDE: usize = 32;

pub(super) const fn tile(warpgroups: usize, cols: usize, splits: usize, blocks: usize) -> HopperTile {
    HopperTile {
        warpgroups,
        m_tiles: 1,
        cols,
        stages: 0,
        splits,
        share_a: 1,
        share_b: 1,
        blocks,
        results: 0,
        addends: 1,
        stays: false,
    }
}

/// The same tiles with room for results.
fn with_results(tiles: &[HopperTile], precision: Precision) -> Vec<HopperTile> {
    tiles.iter().map(|tile| tile.with_results(precision)).collect()
}

/// Whether a batch gives every multiprocessor a block of rows of the head; its products then take longer than weights need to pass.
pub fn is_large(batch: usize) -> bool {
    batch >= 512
}

/// How many sixteenths of a weight of `bytes` bytes its readers should ask L2 to keep: half of the cache, which is what was
/// measured best; none of one that fits. In fp32-emulated half of one that fits and is larger than half of the cache, if these
/// readers are `alone`: no optimiser's step passes over it, which would rather find room.
pub fn kept(chip: Chip, precision: Precision, bytes: usize, alone: bool) -> u32 {
    let room = chip.l2_bytes / 2;
    match precision {
        _ if bytes > chip.l2_bytes => (16 * room / bytes) as u32,
        Precision::Fp32Emulated if alone && bytes > room => 8,
        _ => 0,
    }
}

/// The first of `tiles` (large ones first) that gives nine tenths of the multiprocessors a block; else the one that gives the
/// most of them one, without a second addend. Large tiles read operands less often, and splits and small tiles put idle
/// multiprocessors to work.
fn first_that_fills(
    chip: Chip,
    precision: Precision,
    tiles: &[HopperTile],
    (rows, cols): (usize, usize),
    sums: &[usize],
) -> HopperTile {
    let usable = || {
        // Columns that do not exist cost as much as those that do.
        let fits = |tile: &&HopperTile| {
            tile.cols <= cols.next_multiple_of(64) && sums.iter().all(|&k| tile.splits_evenly(k, precision))
        };
        tiles.iter().filter(fits).copied().map(|tile| tile.filled(precision))
    };
    usable()
        .find(|tile| tile.count(rows, cols) * 10 >= chip.multiprocessors * 9)
        .or_else(|| usable().filter(|tile| tile.addends == 1).max_by_key(|tile| tile.count(rows, cols)))
        .unwrap_or(tile(1, 64, 1, 1).with_results(precision).filled(precision))
}

/// The forward's tile.
pub fn forward(chip: Chip, precision: Precision, batch: usize, inputs: usize, hidden: usize) -> HopperTile {
    let tiles: &[HopperTile] = match precision {
        // The stages' own sums take the registers of a wider tile.
        Precision::Fp32Emulated => &[
            tile(2, 128, 1, 1),
            tile(2, 128, 2, 1),
            tile(2, 64, 1, 1),
            tile(2, 64, 2, 1),
            tile(1, 64, 1, 1),
            tile(1, 64, 2, 1),
        ],
        _ => &[tile(2, 256, 1, 1), tile(2, 128, 1, 1), tile(2, 64, 1, 1), tile(1, 64, 1, 1), tile(1, 64, 2, 2)],
    };
    // In bf16 halves of a sum meet for nothing where it is short, or where blocks of whole sums are many.
    let blocks = (2 * hidden).div_ceil(64) * batch.div_ceil(64);
    let halves = precision != Precision::Bf16 || inputs >= 1024 && inputs >= 32 * blocks;
    let tiles = if halves { tiles } else { &tiles[..tiles.len() - 1] };
    let tile = first_that_fills(chip, precision, &with_results(tiles, precision), (2 * hidden, batch), &[inputs]);
    // Where a product goes on for long enough to heat the chip, two blocks read the batch's tiles for both.
    let long = tile.count(2 * hidden, batch) >= 6 * chip.multiprocessors && precision == Precision::Bf16;
    HopperTile { share_b: if long && tile.cols == 256 { 2 } else { 1 }, ..tile }
}

/// The tile of a linear layer's forward: where the batch is small its blocks are few, and split the sum.
pub fn linear(chip: Chip, precision: Precision, batch: usize, inputs: usize, outputs: usize) -> HopperTile {
    let tiles: &[HopperTile] = match precision {
        _ if batch <= 128 => &[tile(1, 64, 4, 1)],
        Precision::Fp32Emulated => &[tile(2, 128, 1, 1)],
        Precision::Fp32 | Precision::Tf32 | Precision::Bf16 => {
            &[tile(2, 256, 1, 1), tile(2, 128, 1, 1), tile(1, 64, 1, 1)]
        }
    };
    first_that_fills(chip, precision, &with_results(tiles, precision), (outputs, batch), &[inputs])
}

/// The backward's tile, by the shape of dx.
pub fn backward_dx(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
    saved: bool,
) -> HopperTile {
    let tiles: &[HopperTile] = match precision {
        Precision::Fp32Emulated => {
            &[tile(2, 128, 1, 1), tile(2, 128, 2, 1), tile(2, 64, 2, 1), tile(1, 64, 2, 1), tile(2, 64, 4, 1)]
        }
        Precision::Tf32 => &[
            tile(2, 256, 1, 1),
            tile(2, 128, 1, 1),
            tile(2, 128, 2, 1),
            tile(1, 128, 2, 1),
            tile(1, 64, 2, 1),
            tile(1, 64, 4, 2),
        ],
        // Of a short sum halves are not worth a cluster.
        Precision::Bf16 | Precision::Fp32 if 2 * hidden < 4096 => {
            &[tile(2, 256, 1, 1), tile(2, 128, 1, 1), tile(1, 128, 1, 1), tile(1, 64, 1, 1), tile(1, 64, 2, 1)]
        }
        Precision::Bf16 | Precision::Fp32 => &[
            tile(2, 256, 1, 1),
            tile(2, 128, 1, 1),
            tile(1, 128, 1, 1),
            tile(1, 128, 2, 1),
            tile(1, 64, 1, 1),
            tile(1, 64, 2, 1),
        ],
    };
    // Gates made again: the same blocks also take the forward's product, which has twice the rows.
    let sums = if saved { &[2 * hidden][..] } else { &[2 * hidden, inputs] };
    let tiles = if saved && batch <= 64 && precision == Precision::Fp32Emulated { &ADDED } else { tiles };
    first_that_fills(chip, precision, &with_results(tiles, precision), (inputs, batch), sums)
}

/// Tiles of fp32-emulated's dx at small batches, from saved gates. They take longest for what L2 has to hand out, and tall tiles
/// read the planes less often; so K is split in four without clusters of four, of which not all run at once.
const ADDED: [HopperTile; 5] = [
    tile(2, 64, 2, 1),
    HopperTile { addends: 2, ..tile(2, 64, 2, 1) },
    tile(1, 64, 2, 1),
    HopperTile { addends: 2, ..tile(1, 64, 2, 1) },
    tile(2, 64, 4, 1),
];

/// Bytes of a box of dWf on its way to memory: 64 rows of 128 bytes.
const BOX: usize = 64 * 128;

/// The tile of dWf. `results` is a few boxes for each warpgroup: in bf16 at large batches all of a tile.
pub fn dwf(chip: Chip, precision: Precision, batch: usize, inputs: usize, hidden: usize) -> HopperTile {
    let bf16 = precision == Precision::Bf16;
    let small = [tile(2, 128, 1, 1).with_boxes(4), tile(1, 128, 1, 2).with_boxes(2), tile(1, 64, 1, 2).with_boxes(2)];
    let tiles = match precision {
        Precision::Fp32Emulated => {
            let wide = tile(2, 128, 1, 1);
            let stays = HopperTile { results: wide.cols * 256 + 4 * wide.warpgroups * BOX, stays: true, ..wide };
            vec![if batch <= 64 { stays } else { wide.with_boxes(2) }, tile(1, 64, 1, 2).with_boxes(2)]
        }
        _ if bf16 && batch <= 256 && inputs <= 2048 => small.to_vec(),
        _ => [&[tile(2, 256, 1, 1).with_boxes(if bf16 && batch > 256 { 4 } else { 2 })][..], &small].concat(),
    };
    first_that_fills(chip, precision, &tiles, (2 * hidden, inputs), &[batch])
}

/// The tiles of dx, from saved gates, and of dWf where the two run side by side, a block of each on a multiprocessor: at small
/// batches dx waits (for the gates' derivative, for weights, for the other half of a sum) while dWf writes. Where the weight fits
/// L2; else both wait for memory, and dWf's writes drive out what dx is to read. In TF32 from 16 MB of weights on: at 8 MB and less it
/// was measured slower (kernels/HOPPER.md). None where two blocks of dx would fit: they would gather on some multiprocessors.
pub fn beside(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
) -> Option<(HopperTile, HopperTile)> {
    let bytes = 2 * hidden * inputs * element_bytes(precision);
    let worth_it = match precision {
        Precision::Bf16 => true,
        Precision::Tf32 => bytes >= 16 << 20,
        Precision::Fp32 | Precision::Fp32Emulated => false,
    };
    if batch > 64 || bytes > chip.l2_bytes || !worth_it {
        return None;
    }
    let dwf = HopperTile { stages: 2, ..tile(1, 128, 1, 2).with_boxes(6) };
    // Two blocks: half of the registers each. A kilobyte of a block's shared memory is the driver's.
    let dx = tile(1, 64, 2, 2).with_results(precision);
    let all = chip.shared_per_multiprocessor;
    let room = all.checked_sub(2048 + dwf.shared(precision) + dx.results)?;
    let dx = HopperTile { stages: room / (dx.stage(precision) + 16), ..dx };
    let apart = 2 * (dx.shared(precision) + 1024) > all && dx.count(inputs, batch) <= chip.multiprocessors;
    (apart && dx.splits_evenly(2 * hidden, precision)).then_some((dx, dwf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measure::check::LARGE_SHAPES, swiglu::reference::Dims};

    const SHAPES: [(usize, usize, usize); 10] = [
        (1, 8, 8),
        (1, 784, 128),
        (64, 512, 512),
        (64, 2048, 2048),
        (203, 520, 424),
        (256, 2048, 4096),
        (1000, 1024, 64),
        (1024, 4096, 4096),
        (4096, 512, 512),
        (8192, 2048, 2048),
    ];

    #[test]
    fn tiles_fit_a_multiprocessor_and_every_split_has_something_to_sum() {
        for &precision in &[Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
            for (batch, inputs, hidden) in SHAPES {
                let check = |tile: HopperTile, sums: &[usize]| {
                    let what = format!("{precision:?} {batch} {inputs} {hidden}: {tile:?}");
                    assert!(tile.shared(precision) * tile.blocks + 1024 * tile.blocks <= 228 << 10, "{what}");
                    assert!(tile.stages >= 2 && tile.cluster() <= 8, "{what}");
                    assert!(sums.iter().all(|&k| tile.splits_evenly(k, precision)), "{what}");
                };
                check(forward(Chip::H200, precision, batch, inputs, hidden), &[inputs]);
                check(backward_dx(Chip::H200, precision, batch, inputs, hidden, true), &[2 * hidden]);
                check(backward_dx(Chip::H200, precision, batch, inputs, hidden, false), &[2 * hidden, inputs]);
                check(linear(Chip::H200, precision, batch, inputs, hidden), &[inputs]);
                check(dwf(Chip::H200, precision, batch, inputs, hidden), &[batch]);
            }
        }
    }

    #[test]
    fn dx_and_dwf_side_by_side_fit_a_multiprocessor_and_two_of_dx_do_not() {
        let mut found = 0;
        for &precision in &[Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
            for (batch, inputs, hidden) in SHAPES {
                let Some((dx, dwf)) = beside(Chip::H200, precision, batch, inputs, hidden) else { continue };
                found += 1;
                let (dx_bytes, dwf_bytes) = (dx.shared(precision) + 1024, dwf.shared(precision) + 1024);
                let what = format!("{precision:?} {batch} {inputs} {hidden}: {dx:?} {dwf:?}");
                assert!(dx_bytes + dwf_bytes <= 228 << 10 && 2 * dx_bytes > 228 << 10, "{what}");
                assert!(dx.stages >= 2 && dx.splits_evenly(2 * hidden, precision), "{what}");
            }
        }
        assert!(found > 0);
        let takes = |d: &Dims| beside(Chip::H200, Precision::Tf32, d.batch, d.inputs, d.hidden).is_some();
        assert!(LARGE_SHAPES.iter().any(takes), "selftest has a shape that takes it");
        assert!(beside(Chip::H200, Precision::Bf16, 64, 2048, 2048).is_some());
        assert!(beside(Chip::H200, Precision::Bf16, 64, 4096, 4096).is_none(), "larger than L2");
        assert!(beside(Chip::H200, Precision::Tf32, 64, 2048, 2048).is_some());
        assert!(beside(Chip::H200, Precision::Tf32, 64, 1024, 1024).is_none(), "8 MB");
        assert!(beside(Chip::H200, Precision::Bf16, 256, 2048, 2048).is_none());
    }

    #[test]
    fn measured_shapes_get_what_was_measured_best_or_close_to_it() {
        let shape = |tile: HopperTile| (tile.rows(), tile.cols, tile.splits);
        let forward = |precision, batch, width| shape(forward(Chip::H200, precision, batch, width, width));
        assert_eq!(forward(Precision::Bf16, 64, 2048), (64, 64, 2));
        assert_eq!(forward(Precision::Bf16, 256, 2048), (128, 64, 1));
        assert_eq!(forward(Precision::Bf16, 64, 512), (64, 64, 1));
        assert_eq!(forward(Precision::Bf16, 64, 1024), (64, 64, 2));
        assert_eq!(forward(Precision::Bf16, 128, 1024), (64, 64, 1));
        assert_eq!(forward(Precision::Bf16, 1024, 4096), (128, 256, 1));
        assert_eq!(forward(Precision::Tf32, 256, 2048), (128, 64, 1));
        assert_eq!(forward(Precision::Fp32Emulated, 256, 4096), (128, 128, 1));
        assert_eq!(forward(Precision::Bf16, 64, 4096), (64, 64, 1));
        let dx = |precision, batch, width| shape(backward_dx(Chip::H200, precision, batch, width, width, true));
        assert_eq!(dx(Precision::Bf16, 64, 2048), (64, 64, 2));
        assert_eq!(dx(Precision::Bf16, 256, 2048), (64, 128, 2));
        assert_eq!(dx(Precision::Bf16, 256, 4096), (64, 128, 1));
        assert_eq!(dx(Precision::Bf16, 512, 1024), (64, 64, 1));
        let dwf = |precision, batch, width| shape(dwf(Chip::H200, precision, batch, width, width));
        assert_eq!(dwf(Precision::Bf16, 256, 2048), (128, 128, 1));
        assert_eq!(dwf(Precision::Bf16, 256, 4096), (128, 256, 1));
        assert_eq!(dwf(Precision::Tf32, 256, 2048), (128, 256, 1));
        assert_eq!(dx(Precision::Tf32, 64, 2048), (64, 64, 4));
        assert_eq!(dx(Precision::Tf32, 256, 2048), (64, 128, 2));
        assert_eq!(dx(Precision::Tf32, 256, 4096), (128, 128, 2));
        assert_eq!(dx(Precision::Fp32Emulated, 1024, 2048), (128, 128, 1));
        assert_eq!(forward(Precision::Fp32Emulated, 64, 4096), (128, 64, 2));
        let forward = |d: &Dims| super::forward(Chip::H200, Precision::Bf16, d.batch, d.inputs, d.hidden);
        let dx = |d: &Dims| backward_dx(Chip::H200, Precision::Bf16, d.batch, d.inputs, d.hidden, true);
        let has = |tile: &dyn Fn(&Dims) -> HopperTile, cols| {
            LARGE_SHAPES.iter().map(tile).any(|tile| tile.cols == cols && tile.splits == 2)
        };
        assert!(has(&forward, 64) && has(&dx, 128), "selftest has shapes that take them");
        let addends = |saved, width| {
            let tile = backward_dx(Chip::H200, Precision::Fp32Emulated, 64, width, width, saved);
            (tile.rows(), tile.splits, tile.addends)
        };
        assert_eq!(addends(true, 2048), (64, 2, 2));
        assert_eq!(addends(true, 4096), (128, 2, 2));
        assert_eq!(addends(false, 4096), (64, 2, 1));
        assert_eq!(addends(true, 512), (128, 4, 1));
    }
}
