//! Tiles of the portable kernels that are worth a try beside those that the rules of [`super::super::tiles`] choose.

use super::{
    super::{
        context::Chip,
        tiles::{
            S64X64, S64X128, S64X128_W4, S128X128, T64X64, T64X128, T64X128_K2, T64X128_W8, T128X128, T128X128_K2,
            T128X128_W8, T128X256, Tile, element_bytes,
        },
    },
    Candidate,
};
use crate::device::Precision;

/// A tile and its splits of D.
pub type Forward = (Tile, usize);
/// A tile, columns of dx a tile, splits of D and of 2H.
pub type BackwardDx = (Tile, usize, usize, usize);

impl Candidate for Tile {
    fn name(&self) -> String {
        let Tile { rows, cols, warp_rows, warp_cols, slices, stages, blocks } = self;
        let slices = if *slices > 1 { format!(" k{slices}") } else { String::new() };
        format!("{rows}x{cols} w{warp_rows}x{warp_cols}{slices} s{stages} x{blocks}")
    }
}

impl Candidate for Forward {
    fn name(&self) -> String {
        format!("{} split {}", self.0.name(), self.1)
    }
}

impl Candidate for BackwardDx {
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

/// The tiles beside `rule` that are worth a try on an output of `rows` x `cols`: far smaller ones read too often, far fewer leave
/// the chip idle.
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

/// For the forward. Blocks of a split product wait for each other: all of them fit on the chip at once, as the launch makes sure.
pub fn forward(
    chip: Chip,
    precision: Precision,
    (batch, inputs, hidden): (usize, usize, usize),
    rule: Forward,
) -> Vec<Forward> {
    let cols = 2 * hidden;
    let splits = |tile: Tile, per_sm: usize| {
        let slots = chip.multiprocessors * per_sm.min(tile.resident(chip));
        tile.splits(tile.count(batch, cols), inputs * element_bytes(precision), slots, 8)
    };
    let others = neighbours(chip, precision, rule.0, (batch, cols)).map(|tile| (tile, splits(tile, 1)));
    let same = [1, rule.1 / 2, splits(rule.0, 1), splits(rule.0, 2)].into_iter().map(|splits| (rule.0, splits));
    distinct(rule, same.chain(others).filter(|(_, splits)| *splits > 0))
}

/// For the backward, whose blocks are handed work in order and never wait for what is not begun: any grid ends of which as many
/// blocks run at once as a tile has splits.
pub fn backward_dx(
    chip: Chip,
    precision: Precision,
    (batch, inputs, hidden): (usize, usize, usize),
    rule: BackwardDx,
) -> Vec<BackwardDx> {
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
    // Splits of a tile wait for each other, so as many blocks must run at once.
    let most = (2 * hidden * bytes / 512).min(16).min(tile.rows * dx_cols / (4 * tile.threads()));
    let most = most.min(chip.multiprocessors * tile.resident(chip));
    let same = [dx_splits / 2, dx_splits * 2].into_iter().map(|dx_splits| (tile, dx_cols, splits, dx_splits));
    distinct(rule, same.filter(|&(_, _, _, splits)| (1..=most).contains(&splits)).chain(others))
}

/// For dWf, whose kernel does not slice K.
pub fn dwf(chip: Chip, precision: Precision, (inputs, hidden): (usize, usize), rule: Tile) -> Vec<Tile> {
    distinct(rule, neighbours(chip, precision, rule, (2 * hidden, inputs)).filter(|tile| tile.slices == 1))
}

/// The others than `rule`, each once.
fn distinct<C: PartialEq>(rule: C, others: impl Iterator<Item = C>) -> Vec<C> {
    let mut all = Vec::new();
    for other in others {
        if other != rule && !all.contains(&other) {
            all.push(other);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::device::cuda::tiles;

    #[test]
    fn candidates_fit_on_the_chip_where_their_blocks_wait_for_each_other_and_are_named_apart() {
        // A slice of a chip too, with fewer multiprocessors than a tile may have splits.
        let slice = Chip { multiprocessors: 14, ..Chip::H200 };
        for chip in [Chip::H200, Chip::LAPTOP, slice] {
            for &precision in Precision::ALL {
                for batch in [1, 64, 200, 256, 1000, 4096] {
                    for (inputs, hidden) in [(123, 431), (512, 512), (2048, 2048), (4096, 4096), (784, 128)] {
                        let (what, shape) =
                            (format!("{chip:?} {precision:?} {batch} {inputs} {hidden}"), (batch, inputs, hidden));
                        let rule = tiles::forward(chip, precision, batch, inputs, hidden);
                        let others = forward(chip, precision, shape, rule);
                        assert_names_differ(&rule, &others, &what);
                        for (tile, splits) in others {
                            let blocks = tile.count(batch, 2 * hidden) * splits;
                            let resident = chip.multiprocessors * tile.resident(chip);
                            assert!(
                                tile.fits(chip) && (splits == 1 || blocks <= resident),
                                "{what}: {tile:?} {splits}"
                            );
                        }
                        let rule = tiles::backward_dx(chip, precision, batch, inputs, hidden);
                        let others = backward_dx(chip, precision, shape, rule);
                        assert_names_differ(&rule, &others, &what);
                        for (tile, dx_cols, one, two) in others {
                            assert!(tile.fits(chip) && tile.shared(dx_cols) == tile.shared(0), "{what}: {tile:?}");
                            let resident = chip.multiprocessors * tile.resident(chip);
                            assert!(one.max(two) <= resident, "{what}: {tile:?} {one} {two}");
                        }
                        for update in [false, true] {
                            let rule = tiles::dwf(chip, precision, batch, inputs, hidden, update);
                            let others = dwf(chip, precision, (inputs, hidden), rule);
                            assert_names_differ(&rule, &others, &what);
                            assert!(others.iter().all(|tile| tile.fits(chip)), "{what}");
                        }
                    }
                }
            }
        }
    }

    fn assert_names_differ<C: Candidate>(rule: &C, others: &[C], what: &str) {
        let names: HashSet<String> = std::iter::once(rule).chain(others).map(Candidate::name).collect();
        assert_eq!(names.len(), others.len() + 1, "{what}");
    }
}
