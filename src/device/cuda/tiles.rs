//! Which tile a fused kernel is given: by rules drawn from the table of kernels/README.md, for any chip; and what the tuner
//! ([`super::tune`]) times the rules' choice against.
//!
//! Large tiles read operands less often; small ones, and splits of K, give every multiprocessor something to do.

use super::{context::Chip, tune::Candidate};
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
const T64X64: Tile = tile(64, 64, (2, 2), 1, 4, 3);
const T64X128: Tile = tile(64, 128, (2, 2), 1, 4, 2);
const T64X128_W8: Tile = tile(64, 128, (2, 4), 1, 8, 1);
const T64X128_K2: Tile = tile(64, 128, (1, 2), 2, 4, 2);
const T128X128: Tile = tile(128, 128, (2, 2), 1, 3, 2);
const T128X128_W8: Tile = tile(128, 128, (2, 4), 1, 6, 1);
const T128X128_K2: Tile = tile(128, 128, (2, 2), 2, 6, 1);
const T128X256: Tile = tile(128, 256, (2, 4), 1, 4, 1);
// Emulated fp32 has the tiles of tensor cores whose warps own 32 x 64, 64 x 32 or less: beside the sums of more there is no room for
// split operands.
// fp32 on the ordinary cores.
const S64X64: Tile = tile(64, 64, (2, 2), 1, 3, 4);
const S64X128: Tile = tile(64, 128, (1, 2), 1, 3, 3);
const S64X128_W4: Tile = tile(64, 128, (1, 4), 1, 3, 3);
const S128X128: Tile = tile(128, 128, (2, 2), 1, 3, 2);

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
    fn fits(&self, chip: Chip) -> bool {
        let bytes = self.shared(0) + 2048;
        bytes <= chip.shared_per_block && bytes <= chip.shared_per_multiprocessor
    }

    /// Blocks that a multiprocessor surely holds at once.
    fn resident(&self, chip: Chip) -> usize {
        self.blocks.min(chip.shared_per_multiprocessor / (self.shared(0) + 2048)).max(1)
    }

    /// The largest number of splits (a power of two) for which blocks stay within `slots`, and each split keeps at least
    /// two tiles of K.
    fn splits(&self, tiles: usize, k_bytes: usize, slots: usize, most: usize) -> usize {
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

impl Candidate for Tile {
    fn name(&self) -> String {
        let Tile { rows, cols, warp_rows, warp_cols, slices, stages, blocks } = self;
        let slices = if *slices > 1 { format!(" k{slices}") } else { String::new() };
        format!("{rows}x{cols} w{warp_rows}x{warp_cols}{slices} s{stages} x{blocks}")
    }
}

/// A tile and its splits of D.
impl Candidate for (Tile, usize) {
    fn name(&self) -> String {
        format!("{} split {}", self.0.name(), self.1)
    }
}

/// A tile, columns of dx a tile, splits of D and of 2H.
impl Candidate for (Tile, usize, usize, usize) {
    fn name(&self) -> String {
        format!("{} dx {} split {}.{}", self.0.name(), self.1, self.2, self.3)
    }
}

/// The tiles that a precision has.
fn tiles_of(precision: Precision) -> &'static [Tile] {
    match precision {
        Precision::Fp32 => &[S64X64, S64X128, S64X128_W4, S128X128],
        Precision::Fp32Emulated => &[T64X64, T64X128, T64X128_W8, T128X128_W8],
        Precision::Tf32 | Precision::Bf16 => {
            &[T64X64, T64X128, T64X128_W8, T64X128_K2, T128X128, T128X128_W8, T128X128_K2, T128X256]
        }
    }
}

/// The tiles beside `rule` that are worth a try on an output of `rows` x `cols`. Far smaller ones read too often, far fewer
/// leave the chip idle; where rows are not whole 16 bytes a kernel takes seconds to compile, and the rules decide.
fn neighbours(
    chip: Chip,
    precision: Precision,
    rule: Tile,
    (rows, cols): (usize, usize),
) -> impl Iterator<Item = Tile> {
    let enough = rule.count(rows, cols).min(chip.multiprocessors) / 2;
    tiles_of(precision).iter().copied().filter(move |tile| {
        let close = tile.rows * tile.cols * 4 >= rule.rows * rule.cols && tile.count(rows, cols) >= enough;
        *tile != rule && tile.fits(chip) && close && tile.rows <= rows.next_multiple_of(64)
    })
}

/// What the tuner tries of the forward, the rules' choice first.
pub fn forward_candidates(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
) -> Vec<(Tile, usize)> {
    let rule = forward(chip, precision, batch, inputs, hidden);
    let cols = 2 * hidden;
    let splits = |tile: Tile, per_sm: usize| {
        let slots = chip.multiprocessors * per_sm.min(tile.resident(chip));
        tile.splits(tile.count(batch, cols), inputs * element_bytes(precision), slots, 8)
    };
    let others = neighbours(chip, precision, rule.0, (batch, cols)).map(|tile| (tile, splits(tile, 1)));
    let same = [1, rule.1 / 2, splits(rule.0, 1), splits(rule.0, 2)].into_iter().map(|splits| (rule.0, splits));
    distinct(rule, same.chain(others).filter(|(_, splits)| *splits > 0))
}

/// What the tuner tries of the backward, the rules' choice first.
pub fn backward_dx_candidates(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
) -> Vec<(Tile, usize, usize, usize)> {
    let rule = backward_dx(chip, precision, batch, inputs, hidden);
    let (tile, dx_cols, splits, dx_splits) = rule;
    let bytes = element_bytes(precision);
    let with = |tile: Tile| {
        let slots = chip.multiprocessors * tile.resident(chip);
        let wide = Tile { cols: dx_cols, ..tile };
        let splits = tile.splits(tile.count(batch, 2 * hidden), inputs * bytes, slots, 8);
        (tile, dx_cols, splits, wide.splits(wide.count(batch, inputs), 2 * hidden * bytes, slots, 16))
    };
    // dx tiles of 128 columns need the shared memory of tiles as wide.
    let others = neighbours(chip, precision, tile, (batch, 2 * hidden)).filter(|tile| tile.cols >= dx_cols).map(with);
    let most = 2 * hidden * bytes / 512;
    let same = [dx_splits / 2, dx_splits * 2].into_iter().map(|dx_splits| (tile, dx_cols, splits, dx_splits));
    let parts = tile.rows * dx_cols / (4 * tile.threads());
    distinct(rule, same.filter(|&(_, _, _, splits)| (1..=most.min(16).min(parts)).contains(&splits)).chain(others))
}

/// What the tuner tries of dWf, the rules' choice first. Its kernel does not slice K.
pub fn dwf_candidates(
    chip: Chip,
    precision: Precision,
    batch: usize,
    inputs: usize,
    hidden: usize,
    update: bool,
) -> Vec<Tile> {
    let rule = dwf(chip, precision, batch, inputs, hidden, update);
    distinct(rule, neighbours(chip, precision, rule, (2 * hidden, inputs)).filter(|tile| tile.slices == 1))
}

/// `rule`, then the others, each once.
fn distinct<C: PartialEq>(rule: C, others: impl Iterator<Item = C>) -> Vec<C> {
    let mut all = vec![rule];
    for other in others {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    all
}

/// The first of `tiles` that fits the chip; the last fits every chip that the kernels run on.
fn first_that_fits(chip: Chip, tiles: &[Tile]) -> Tile {
    tiles.iter().copied().find(|tile| tile.fits(chip)).unwrap_or(tiles[tiles.len() - 1])
}

fn element_bytes(precision: Precision) -> usize {
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
                        let what = format!("{chip:?} {precision:?} {batch} {inputs} {hidden}");
                        let all = forward_candidates(chip, precision, batch, inputs, hidden);
                        assert_eq!(all[0], forward(chip, precision, batch, inputs, hidden), "{what}");
                        for (tile, splits) in all {
                            let blocks = tile.count(batch, 2 * hidden) * splits;
                            let resident = chip.multiprocessors * tile.resident(chip);
                            assert!(splits == 1 || blocks <= resident, "{what}: {tile:?} {splits}");
                            assert!(tile.fits(chip), "{what}: {tile:?}");
                        }
                        let all = backward_dx_candidates(chip, precision, batch, inputs, hidden);
                        assert_eq!(all[0], backward_dx(chip, precision, batch, inputs, hidden), "{what}");
                        for (tile, dx_cols, one, two) in all {
                            assert!(tile.fits(chip) && tile.shared(dx_cols) == tile.shared(0), "{what}: {tile:?}");
                            assert!(one.max(two) <= chip.multiprocessors, "{what}: {tile:?} {one} {two}");
                        }
                        for update in [false, true] {
                            let all = dwf_candidates(chip, precision, batch, inputs, hidden, update);
                            assert_eq!(all[0], dwf(chip, precision, batch, inputs, hidden, update), "{what}");
                            assert!(all.iter().all(|tile| tile.fits(chip)), "{what}");
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
