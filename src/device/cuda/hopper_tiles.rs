//! Which tiles a Hopper kernel may be given. The first candidate is what the rules say, drawn from the tables of
//! kernels/README.md; the tuner ([`super::tune`]) times it against the others.

use super::{context::Chip, tune::Candidate};
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

    /// Bytes of a stage of the ring: 128 a row, and twice that where an operand is split in two.
    fn stage(&self, precision: Precision) -> usize {
        (self.rows() + self.cols) * if precision == Precision::Fp32Emulated { 256 } else { 128 }
    }

    /// Bytes of dynamic shared memory: the ring, its barriers, a few words.
    pub fn shared(&self, precision: Precision) -> usize {
        self.stages * self.stage(precision) + self.stages * 16 + 16 + 64
    }

    /// Tiles of a product of `rows` (of the weight) x `cols`, in whole clusters, times the splits.
    fn count(&self, rows: usize, cols: usize) -> usize {
        let a = rows.div_ceil(self.rows()).next_multiple_of(self.share_b);
        let b = cols.div_ceil(self.cols).next_multiple_of(self.share_a);
        a * b * self.splits
    }

    /// Whether every split has some of a sum over `k`, as the kernels trust.
    fn splits_evenly(&self, k: usize, precision: Precision) -> bool {
        let tiles = k.div_ceil(self.k_tile(precision));
        (self.splits - 1) * tiles.div_ceil(self.splits) < tiles
    }

    /// The same with as many stages as shared memory holds, eight at most.
    fn filled(self, precision: Precision) -> HopperTile {
        let room = (SHARED / self.blocks).saturating_sub(2048);
        HopperTile { stages: (room / self.stage(precision)).clamp(2, 8), ..self }
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

impl Candidate for HopperTile {
    fn name(&self) -> String {
        let HopperTile { warpgroups, cols, stages, splits, share_a, share_b, blocks, .. } = self;
        let mut name = format!("{}x{cols} g{warpgroups} s{stages}", self.rows());
        for (letter, number) in [("k", splits), ("a", share_a), ("b", share_b), ("x", blocks)] {
            if *number > 1 {
                name.push_str(&format!(" {letter}{number}"));
            }
        }
        name
    }
}

/// Bytes of shared memory that the blocks of a multiprocessor have together.
const SHARED: usize = 227 << 10;

const fn tile(warpgroups: usize, cols: usize, splits: usize, blocks: usize) -> HopperTile {
    HopperTile { warpgroups, m_tiles: 1, cols, stages: 0, splits, share_a: 1, share_b: 1, blocks }
}

/// Twice the rows: two products of 64 rows a warpgroup.
const fn tall(tile: HopperTile) -> HopperTile {
    HopperTile { m_tiles: 2, ..tile }
}

/// In clusters in which blocks share the tiles of the weight (`share_a`) or of the batch (`share_b`) by multicast.
const fn shared(tile: HopperTile, share_a: usize, share_b: usize) -> HopperTile {
    HopperTile { share_a, share_b, ..tile }
}

// What the rules never choose and the tuner tries beside their lists.
const FORWARD_NEIGHBOURS: [HopperTile; 8] = [
    tile(2, 128, 2, 1),
    tile(2, 64, 2, 1),
    tile(1, 128, 1, 2),
    tile(1, 64, 1, 2),
    tall(tile(2, 128, 1, 1)),
    shared(tile(2, 256, 1, 1), 1, 2),
    shared(tile(2, 128, 1, 1), 1, 2),
    shared(tile(2, 128, 1, 1), 2, 1),
];
const DX_NEIGHBOURS: [HopperTile; 6] = [
    tile(2, 128, 4, 1),
    tile(2, 64, 1, 1),
    tile(2, 64, 4, 1),
    tall(tile(2, 128, 1, 1)),
    shared(tile(2, 256, 1, 1), 1, 2),
    shared(tile(2, 128, 1, 1), 2, 1),
];
const DWF_NEIGHBOURS: [HopperTile; 4] =
    [tile(2, 64, 1, 1), tile(1, 128, 1, 1), tile(1, 256, 1, 1), tall(tile(2, 128, 1, 1))];

/// The rules' choice, then what else is worth a try.
///
/// The rules take the first of `tiles` (large ones first) that gives nine tenths of the multiprocessors a block; else the one
/// that gives the most of them one. Large tiles read operands less often, and splits and small tiles put idle multiprocessors
/// to work.
fn candidates(
    chip: Chip,
    precision: Precision,
    (tiles, neighbours): (&[HopperTile], &[HopperTile]),
    (rows, cols): (usize, usize),
    sums: &[usize],
) -> Vec<HopperTile> {
    let usable = |tiles: &[HopperTile]| -> Vec<HopperTile> {
        // Columns that do not exist cost as much as those that do.
        let fits = |tile: &&HopperTile| {
            tile.cols <= cols.next_multiple_of(64) && sums.iter().all(|&k| tile.splits_evenly(k, precision))
        };
        tiles.iter().filter(fits).copied().map(|tile| tile.filled(precision)).collect()
    };
    let blocks = |tile: &HopperTile| tile.count(rows, cols);
    let listed = usable(tiles);
    let rule = listed
        .iter()
        .find(|tile| blocks(tile) * 10 >= chip.multiprocessors * 9)
        .or_else(|| listed.iter().max_by_key(|tile| blocks(tile)))
        .copied()
        .unwrap_or(tile(1, 64, 1, 1).filled(precision));
    // Far fewer blocks leave the chip idle, far smaller tiles read too often: hopeless, and a second each to compile and time.
    let enough = blocks(&rule).min(chip.multiprocessors) / 2;
    let area = |tile: &HopperTile| tile.rows() * tile.cols;
    let hopeful = |tile: &HopperTile| {
        let whole_clusters = rows.div_ceil(tile.rows()).is_multiple_of(tile.share_b)
            && cols.div_ceil(tile.cols).is_multiple_of(tile.share_a);
        // Split operands take the registers of wider tiles, and of a second product of 64 rows.
        let registers = precision != Precision::Fp32Emulated || (tile.m_tiles == 1 && tile.cols * tile.blocks <= 128);
        blocks(tile) >= enough && area(tile) * 4 >= area(&rule) && whole_clusters && registers
    };
    let mut all = vec![rule];
    for tile in listed.into_iter().chain(usable(neighbours)).filter(hopeful) {
        if !all.contains(&tile) {
            all.push(tile);
        }
    }
    all
}

/// The forward's tiles.
pub fn forward(chip: Chip, precision: Precision, batch: usize, inputs: usize, hidden: usize) -> Vec<HopperTile> {
    let tiles: &[HopperTile] = match precision {
        // The stages' own sums take the registers of a wider tile.
        Precision::Fp32Emulated => {
            &[tile(2, 128, 1, 1), tile(2, 128, 2, 1), tile(2, 64, 1, 1), tile(1, 64, 2, 2), tile(1, 64, 4, 1)]
        }
        Precision::Tf32 => &[
            tile(2, 256, 1, 1),
            tile(2, 128, 1, 1),
            tile(2, 128, 2, 1),
            tile(2, 64, 1, 1),
            tile(1, 64, 2, 2),
            tile(1, 64, 4, 1),
        ],
        Precision::Bf16 | Precision::Fp32 => &[
            tile(2, 256, 1, 1),
            tile(2, 128, 1, 1),
            tile(2, 64, 1, 1),
            tile(1, 64, 1, 2),
            tile(1, 64, 2, 2),
            tile(1, 64, 4, 1),
        ],
    };
    candidates(chip, precision, (tiles, &FORWARD_NEIGHBOURS), (2 * hidden, batch), &[inputs])
}

/// The backward's tiles, by the shape of dx.
pub fn backward_dx(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
    saved: bool,
) -> Vec<HopperTile> {
    const TILES: [HopperTile; 6] = [
        tile(2, 256, 1, 1),
        tile(2, 128, 1, 1),
        tile(2, 128, 2, 1),
        tile(2, 64, 2, 1),
        tile(1, 64, 2, 1),
        tile(1, 64, 4, 2),
    ];
    let tiles = match precision {
        Precision::Fp32Emulated => &TILES[1..],
        Precision::Fp32 | Precision::Tf32 | Precision::Bf16 => &TILES[..],
    };
    // Gates made again: the same blocks also take the forward's product, which has twice the rows and is split less.
    let (tiles, sums) = match saved {
        true => (tiles, &[2 * hidden][..]),
        false => (&tiles[..tiles.len() - 1], &[2 * hidden, inputs][..]),
    };
    candidates(chip, precision, (tiles, &DX_NEIGHBOURS), (inputs, batch), sums)
}

/// The tiles of dWf, with or without SGD in its epilogue.
pub fn dwf(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
    update: bool,
) -> Vec<HopperTile> {
    const TILES: [HopperTile; 4] = [tile(2, 256, 1, 1), tile(2, 128, 1, 1), tile(1, 128, 1, 2), tile(1, 64, 1, 2)];
    let tiles: &[HopperTile] = match precision {
        Precision::Fp32Emulated => &[tile(2, 128, 1, 1), tile(1, 64, 1, 2)],
        // The update is a stream over the weights: two blocks a multiprocessor keep more of it under way, until arithmetic counts.
        _ if update && batch <= 256 => &TILES[2..],
        _ => &TILES,
    };
    candidates(chip, precision, (tiles, &DWF_NEIGHBOURS), (2 * hidden, inputs), &[batch])
}

#[cfg(test)]
mod tests {
    use super::*;

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
                let check = |tiles: Vec<HopperTile>, sums: &[usize]| {
                    let what = format!("{precision:?} {batch} {inputs} {hidden}: {tiles:?}");
                    for tile in &tiles {
                        assert!(tile.shared(precision) * tile.blocks + 1024 * tile.blocks <= 228 << 10, "{what}");
                        assert!(tile.stages >= 2 && tile.cluster() <= 8, "{what}");
                        assert!(sums.iter().all(|&k| tile.splits_evenly(k, precision)), "{what}");
                    }
                    let names: std::collections::HashSet<String> = tiles.iter().map(Candidate::name).collect();
                    assert_eq!(names.len(), tiles.len(), "a name is one tile's: {what}");
                };
                check(forward(Chip::H200, precision, batch, inputs, hidden), &[inputs]);
                check(backward_dx(Chip::H200, precision, batch, inputs, hidden, true), &[2 * hidden]);
                check(backward_dx(Chip::H200, precision, batch, inputs, hidden, false), &[2 * hidden, inputs]);
                for update in [false, true] {
                    check(dwf(Chip::H200, precision, batch, inputs, hidden, update), &[batch]);
                }
            }
        }
    }

    #[test]
    fn measured_shapes_get_what_was_measured_best_or_close_to_it() {
        let shape = |tiles: Vec<HopperTile>| (tiles[0].rows(), tiles[0].cols, tiles[0].splits);
        let forward = |precision, batch, width| shape(forward(Chip::H200, precision, batch, width, width));
        assert_eq!(forward(Precision::Bf16, 64, 2048), (64, 64, 2));
        assert_eq!(forward(Precision::Bf16, 64, 4096), (64, 64, 1));
        assert_eq!(forward(Precision::Bf16, 256, 2048), (128, 64, 1));
        assert_eq!(forward(Precision::Bf16, 1024, 4096), (128, 256, 1));
        assert_eq!(forward(Precision::Tf32, 256, 2048), (128, 128, 2));
        assert_eq!(forward(Precision::Fp32Emulated, 256, 4096), (128, 128, 1));
        assert_eq!(forward(Precision::Fp32Emulated, 64, 4096), (64, 64, 2));
        let dx = |precision, batch, width| shape(backward_dx(Chip::H200, precision, batch, width, width, true));
        assert_eq!(dx(Precision::Bf16, 64, 2048), (64, 64, 4));
        assert_eq!(dx(Precision::Tf32, 256, 4096), (128, 128, 2));
        assert_eq!(dx(Precision::Fp32Emulated, 1024, 2048), (128, 128, 1));
    }
}
