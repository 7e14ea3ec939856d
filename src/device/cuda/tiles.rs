//! Which tile a fused kernel is given: by rules drawn from the table of kernels/README.md, for any chip.
//!
//! Large tiles read operands less often; small ones, and splits of K, give every multiprocessor something to do.

use super::context::Chip;
use crate::device::Precision;

/// A block's tile, and how its warps share it. kernels/README.md explains each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Columns; in the forward and in dx they count gate and up.
    pub cols: usize,
    /// Warps along the rows.
    pub warp_rows: usize,
    /// Warps along the columns.
    pub warp_cols: usize,
    /// Groups of warps that share K.
    pub slices: usize,
    /// Stages of the ring in shared memory.
    pub stages: usize,
    /// Blocks that a multiprocessor should hold.
    pub blocks: usize,
}

const fn tile(rows: usize, cols: usize, warps: (usize, usize), slices: usize, stages: usize, blocks: usize) -> Tile {
    Tile { rows, cols, warp_rows: warps.0, warp_cols: warps.1, slices, stages, blocks }
}

// Tensor cores.
pub(super) const T64X64: Tile = tile(64, 64, (2, 2), 1, 4, 3);
pub(super) const T64X128: Tile = tile(64, 128, (2, 2), 1, 4, 2);
pub(super) const T64X128_W8: Tile = tile(64, 128, (2, 4), 1, 8, 1);
pub(super) const T64X128_K2: Tile = tile(64, 128, (1, 2), 2, 4, 2);
pub(super) const T128X128: Tile = tile(128, 128, (2, 2), 1, 3, 2);
pub(super) const T128X128_W8: Tile = tile(128, 128, (2, 4), 1, 6, 1);
pub(super) const T128X128_K2: Tile = tile(128, 128, (2, 2), 2, 6, 1);
pub(super) const T128X256: Tile = tile(128, 256, (2, 4), 1, 4, 1);
// Emulated fp32 has the tiles of tensor cores whose warps own 32 x 64, 64 x 32 or less: beside the sums of more there is no room for
// split operands.
// fp32 on the ordinary cores.
pub(super) const S64X64: Tile = tile(64, 64, (2, 2), 1, 3, 4);
pub(super) const S64X128: Tile = tile(64, 128, (1, 2), 1, 3, 3);
pub(super) const S64X128_W4: Tile = tile(64, 128, (1, 4), 1, 3, 3);
pub(super) const S128X128: Tile = tile(128, 128, (2, 2), 1, 3, 2);

impl Tile {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        32 * self.warp_rows * self.warp_cols * self.slices
    }

    /// Bytes of dynamic shared memory, with `cols` columns (or more, when another product of the kernel is wider).
    pub fn shared(&self, cols: usize) -> usize {
        self.stages * (self.rows + self.cols.max(cols)) * 128
    }

    /// Tiles of an output of `rows` x `cols`.
    pub fn count(&self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }

    /// Whether a block of it fits. A kernel has a kilobyte of static shared memory beside it, and the driver takes another.
    pub(super) fn fits(&self, chip: Chip) -> bool {
        let bytes = self.shared(0) + 2048;
        bytes <= chip.shared_per_block && bytes <= chip.shared_per_multiprocessor
    }

    /// Blocks that a multiprocessor surely holds at once.
    pub(super) fn resident(&self, chip: Chip) -> usize {
        self.blocks.min(chip.shared_per_multiprocessor / (self.shared(0) + 2048)).max(1)
    }

    /// The largest number of splits (a power of two) for which blocks stay within `slots`, and each split keeps at least
    /// two tiles of K.
    pub(super) fn splits(&self, tiles: usize, k_bytes: usize, slots: usize, most: usize) -> usize {
        // Each split finishes an equal share of a thread's sums, 16 bytes at a time.
        let parts = self.rows * self.cols / (4 * self.threads());
        let k_tiles = k_bytes.div_ceil(128);
        let mut splits = 1;
        while tiles * splits * 2 <= slots && splits * 4 <= k_tiles && splits * 2 <= most.min(parts) {
            splits *= 2;
        }
        splits
    }

    /// Its defines.
    pub fn defines(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("TILE_M", self.rows as u32),
            ("TILE_N", self.cols as u32),
            ("WARP_ROWS", self.warp_rows as u32),
            ("WARP_COLS", self.warp_cols as u32),
            ("WARP_SLICES", self.slices as u32),
            ("TILE_STAGES", self.stages as u32),
            ("MIN_BLOCKS", self.blocks as u32),
        ]
    }
}

/// The first of `tiles` that fits the chip; the last fits every chip that the kernels run on.
fn first_that_fits(chip: Chip, tiles: &[Tile]) -> Tile {
    tiles.iter().copied().find(|tile| tile.fits(chip)).unwrap_or(tiles[tiles.len() - 1])
}

pub(super) fn element_bytes(precision: Precision) -> usize {
    if precision == Precision::Bf16 { 2 } else { 4 }
}

/// The forward's tile and splits of D. Every block of a split product fits on the chip at once, because they wait for
/// each other.
pub fn forward(chip: Chip, precision: Precision, batch: usize, inputs: usize, hidden: usize) -> (Tile, usize) {
    let sms = chip.multiprocessors;
    let cols = 2 * hidden;
    let tile = match precision {
        Precision::Fp32 => match batch {
            ..=64 if S64X128.count(batch, cols) * 8 < sms => S64X64,
            ..=64 => S64X128,
            _ if S128X128.count(batch, cols) * 4 < sms => S64X64,
            _ => S128X128,
        },
        // Three products for one: arithmetic counts, and blocks of eight warps or two of four keep it going.
        Precision::Fp32Emulated => match batch {
            _ if T64X128.count(batch, cols) * 2 < sms => T64X64,
            129.. if T128X128_W8.count(batch, cols) * 4 >= sms * 3 => first_that_fits(chip, &[T128X128_W8, T64X128]),
            _ => T64X128,
        },
        Precision::Tf32 | Precision::Bf16 => {
            if batch > 128 && T128X256.count(batch, cols) * 9 >= sms * 4 {
                first_that_fits(chip, &[T128X256, T128X128])
            } else if batch > 128 && T128X128.count(batch, cols) * 4 >= sms * 3 {
                T128X128
            } else if precision == Precision::Tf32 && T64X128.count(batch, cols) * 5 >= sms {
                T64X128_K2
            } else if T64X64.count(batch, cols) <= sms {
                T64X64
            } else {
                T64X128
            }
        }
    };
    let tiles = tile.count(batch, cols);
    let per_sm = match precision {
        Precision::Fp32 | Precision::Fp32Emulated => 2,
        Precision::Tf32 => 1,
        // Small tiles of bf16 are short: a second block hides the wait of the first. A chip that is nearly full is left alone.
        Precision::Bf16 if tile == T64X64 && tiles * 4 < sms * 3 => 2,
        Precision::Bf16 => 1,
    };
    let slots = sms * per_sm.min(tile.resident(chip));
    (tile, tile.splits(tiles, inputs * element_bytes(precision), slots, 8))
}

/// The backward's tile, columns of dx a tile, splits of D (phase 1) and splits of 2H (phase 2).
pub fn backward_dx(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
) -> (Tile, usize, usize, usize) {
    let sms = chip.multiprocessors;
    let tile = match precision {
        Precision::Fp32 if batch > 512 && S128X128.count(batch, inputs) <= 2 * sms => S128X128,
        Precision::Fp32 => S64X128_W4,
        Precision::Fp32Emulated if batch <= 128 => first_that_fits(chip, &[T64X128_W8, T64X128]),
        Precision::Fp32Emulated => first_that_fits(chip, &[T128X128_W8, T64X128]),
        Precision::Tf32 | Precision::Bf16 => match batch {
            ..=128 => first_that_fits(chip, &[T64X128_W8, T64X128]),
            129..=512 if precision == Precision::Tf32 => first_that_fits(chip, &[T128X128_K2, T128X128]),
            129..=512 => first_that_fits(chip, &[T128X128_W8, T128X128]),
            _ if T128X256.count(batch, 2 * hidden) * 4 >= sms * 3 => first_that_fits(chip, &[T128X256, T128X128]),
            _ => first_that_fits(chip, &[T128X128_W8, T128X128]),
        },
    };
    let dx_cols = 128;
    let dx_tile = Tile { cols: dx_cols, ..tile };
    let bytes = element_bytes(precision);
    let per_sm = if precision == Precision::Fp32 { 2 } else { 1 };
    let slots = sms * per_sm.min(tile.resident(chip));
    let splits = tile.splits(tile.count(batch, 2 * hidden), inputs * bytes, slots, 8);
    // Phase 2 is persistent: its splits may outnumber what runs at once. In fp32, whose blocks are long, many short pieces
    // share the chip more evenly (505 us against 678 at B = 256, D = 4096).
    let many = precision == Precision::Fp32 && (65..=512).contains(&batch);
    let slots = if many { 16 * sms } else { slots };
    let dx_splits = dx_tile.splits(dx_tile.count(batch, inputs), 2 * hidden * bytes, slots, 16);
    (tile, dx_cols, splits, dx_splits)
}

/// The tile of dWf, with or without SGD in its epilogue.
pub fn dwf(chip: Chip, precision: Precision, batch: usize, inputs: usize, hidden: usize, update: bool) -> Tile {
    let (small, large) = match precision {
        Precision::Fp32 => (S64X64, if update { S64X128_W4 } else { S128X128 }),
        Precision::Fp32Emulated => (T64X64, first_that_fits(chip, &[T128X128_W8, T64X128])),
        Precision::Tf32 | Precision::Bf16 => (T64X64, T128X128),
    };
    let scarce = large.count(2 * hidden, inputs) < chip.multiprocessors;
    // The update is a stream over the weights: small tiles keep more of it under way, until arithmetic counts.
    if scarce || (update && batch <= 256) { small } else { large }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Chip = Chip::H200;
    const LAPTOP: Chip = Chip::LAPTOP;

    #[test]
    fn blocks_that_wait_for_each_other_fit_on_the_chip_at_once() {
        for chip in [H200, LAPTOP] {
            for &precision in Precision::ALL {
                for batch in [1, 32, 64, 200, 256, 1000, 4096] {
                    for (inputs, hidden) in [(1, 1), (123, 431), (512, 512), (2048, 2048), (4096, 4096), (784, 128)] {
                        let (tile, splits) = forward(chip, precision, batch, inputs, hidden);
                        let blocks = tile.count(batch, 2 * hidden) * splits;
                        let resident = chip.multiprocessors * tile.resident(chip);
                        assert!(splits == 1 || blocks <= resident, "{chip:?} {precision:?} {batch} {inputs} {hidden}");
                        assert!(tile.fits(chip), "{chip:?} {tile:?}");
                        let (tile, dx_cols, one, two) = backward_dx(chip, precision, batch, inputs, hidden);
                        assert!(tile.fits(chip) && tile.shared(dx_cols) == tile.shared(0));
                        assert!(one.max(two) <= chip.multiprocessors);
                        for update in [false, true] {
                            assert!(dwf(chip, precision, batch, inputs, hidden, update).fits(chip));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_tiny_product_is_not_split() {
        for &precision in Precision::ALL {
            assert_eq!(forward(H200, precision, 1, 1, 1).1, 1);
            let (_, _, one, two) = backward_dx(H200, precision, 1, 1, 1);
            assert_eq!((one, two), (1, 1));
        }
    }

    #[test]
    fn measured_shapes_get_what_was_measured_best_or_close_to_it() {
        let of = |precision, batch, width| forward(H200, precision, batch, width, width);
        assert_eq!(of(Precision::Fp32, 64, 2048), (S64X128, 8));
        assert_eq!(of(Precision::Fp32, 256, 4096), (S128X128, 2));
        assert_eq!(of(Precision::Tf32, 64, 2048), (T64X128_K2, 4));
        assert_eq!(of(Precision::Tf32, 256, 2048), (T64X128_K2, 1));
        assert_eq!(of(Precision::Tf32, 256, 4096), (T128X256, 2));
        assert_eq!(of(Precision::Bf16, 64, 2048), (T64X64, 4));
        assert_eq!(of(Precision::Bf16, 64, 4096), (T64X64, 1));
        assert_eq!(of(Precision::Bf16, 1024, 4096), (T128X256, 1));
    }
}
