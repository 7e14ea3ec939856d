//! Tiles of the Hopper kernels that are worth a try beside the one that the rules of [`super::super::hopper_tiles`] choose.

use super::{
    super::{
        context::Chip,
        hopper_tiles::{HopperTile, tile},
    },
    Candidate,
};
use crate::device::Precision;

impl Candidate for HopperTile {
    fn name(&self) -> String {
        let HopperTile { warpgroups, cols, stages, splits, share_a, share_b, blocks, addends, .. } = self;
        let mut name = format!("{}x{cols} g{warpgroups} s{stages}", self.rows());
        for (letter, number) in [("k", splits), ("a", share_a), ("b", share_b), ("x", blocks), ("n", addends)] {
            if *number > 1 {
                name.push_str(&format!(" {letter}{number}"));
            }
        }
        name
    }
}

/// Twice the rows: two products of 64 rows a warpgroup.
const fn tall(tile: HopperTile) -> HopperTile {
    HopperTile { m_tiles: 2, ..tile }
}

/// In clusters of two, whose blocks share the batch's tiles.
const fn shared(tile: HopperTile) -> HopperTile {
    HopperTile { share_b: 2, ..tile }
}

const FORWARD: [HopperTile; 11] = [
    tile(2, 256, 1, 1),
    tile(2, 128, 1, 1),
    tile(2, 64, 1, 1),
    tile(1, 64, 1, 1),
    tile(1, 64, 1, 2),
    tile(1, 64, 2, 2),
    tile(1, 64, 4, 1),
    tile(2, 64, 2, 1),
    tile(2, 128, 2, 1),
    tile(1, 128, 1, 2),
    shared(tile(2, 256, 1, 1)),
];

/// All blocks of dx wait for each other, so all must run at once, on any chip, whatever ran before them. That is certain of
/// single blocks and of pairs, one block a multiprocessor: multiprocessors come in pairs, so each that is free leaves room for
/// its share. Larger clusters need several that are free in the same part of the chip: 30 clusters of four and 15 of eight are all
/// that an H100 holds of 33 and 16. And with two blocks a multiprocessor the driver's count is that of the best packing, which
/// blocks that came while others left need not find: launches of 64 clusters of four, of 66 that it counts, hung in three of
/// six tries. A tuner must not be able to hang a machine.
const DX: [HopperTile; 9] = [
    tile(2, 256, 1, 1),
    tile(2, 128, 1, 1),
    tile(2, 128, 2, 1),
    tile(1, 128, 1, 1),
    tile(1, 128, 2, 1),
    tile(1, 64, 1, 1),
    tile(1, 64, 2, 1),
    tile(2, 64, 1, 1),
    tile(2, 64, 2, 1),
];

/// With room for results, which pass beside the ring: at least a box for each warpgroup.
const DWF: [HopperTile; 9] = [
    tile(2, 256, 1, 1).with_boxes(2),
    tile(2, 128, 1, 1).with_boxes(4),
    tile(1, 128, 1, 2).with_boxes(2),
    tile(1, 64, 1, 2).with_boxes(2),
    tall(tile(1, 128, 1, 2)).with_boxes(2),
    tall(tile(2, 128, 1, 1)).with_boxes(2),
    tile(2, 64, 1, 1).with_boxes(4),
    tile(1, 128, 1, 1).with_boxes(4),
    tile(1, 256, 1, 1).with_boxes(4),
];

/// A tile of dWf with as many stages as there is room for: of two blocks of 128 x 128 what is left beside their results holds
/// three to the byte.
fn filled_by_two(tile: HopperTile) -> HopperTile {
    if tile.m_tiles == 2 && tile.blocks == 2 { HopperTile { stages: 3, ..tile } } else { tile }
}

/// Those of `tiles` that may be faster than `rule` for a product of `rows` (of the weight) x `cols` that sums over each of `sums`.
fn hopeful(
    (chip, precision): (Chip, Precision),
    rule: HopperTile,
    tiles: impl Iterator<Item = HopperTile>,
    (rows, cols): (usize, usize),
    sums: &[usize],
) -> Vec<HopperTile> {
    let blocks = |tile: &HopperTile| tile.count(rows, cols);
    // Far fewer blocks leave the chip idle, far smaller tiles read too often, and columns that do not exist cost as much as those
    // that do.
    let enough = blocks(&rule).min(chip.multiprocessors) / 2;
    let area = |tile: &HopperTile| tile.rows() * tile.cols;
    let may = |tile: &HopperTile| {
        // Split operands take the registers of wider tiles, of a second product of 64 rows, and of sums on their way to other splits
        // where two blocks share a multiprocessor.
        let room = tile.m_tiles == 1 && tile.cols * tile.blocks <= 128 && tile.splits.min(tile.blocks) == 1;
        let registers = precision != Precision::Fp32Emulated || room;
        registers
            && blocks(tile) >= enough
            && area(tile) * 4 >= area(&rule)
            && tile.cols <= cols.next_multiple_of(64)
            && rows.div_ceil(tile.rows()).is_multiple_of(tile.share_b)
            && sums.iter().all(|&k| tile.splits_evenly(k, precision))
    };
    tiles.filter(may).map(|tile| tile.filled(precision)).filter(|tile| *tile != rule).collect()
}

/// For the forward.
pub fn forward(
    chip: Chip,
    precision: Precision,
    (batch, inputs, hidden): (usize, usize, usize),
    rule: HopperTile,
) -> Vec<HopperTile> {
    let tiles = FORWARD.iter().map(|tile| tile.with_results(precision));
    hopeful((chip, precision), rule, tiles, (2 * hidden, batch), &[inputs])
}

/// For the backward, whose gates are `saved` or made again.
pub fn backward_dx(
    chip: Chip,
    precision: Precision,
    (batch, inputs, hidden): (usize, usize, usize),
    saved: bool,
    rule: HopperTile,
) -> Vec<HopperTile> {
    let tiles = DX.iter().map(|tile| tile.with_results(precision));
    let sums = if saved { &[2 * hidden][..] } else { &[2 * hidden, inputs] };
    hopeful((chip, precision), rule, tiles, (inputs, batch), sums)
}

/// For dWf.
pub fn dwf(
    chip: Chip,
    precision: Precision,
    (batch, inputs, hidden): (usize, usize, usize),
    rule: HopperTile,
) -> Vec<HopperTile> {
    // Split operands take twice the room in the ring; TF32's A passes through registers, and two blocks of 128 x 128 a multiprocessor
    // leave too few for it.
    let few = |tile: &HopperTile| precision == Precision::Tf32 && tile.m_tiles * tile.blocks == 4;
    let boxes = |tile: HopperTile| if precision == Precision::Fp32Emulated { tile.with_boxes(2) } else { tile };
    let tiles = DWF.into_iter().filter(|tile| !few(tile)).map(boxes);
    let tiles = hopeful((chip, precision), rule, tiles, (2 * hidden, inputs), &[batch]);
    // A name says nothing of the boxes.
    tiles.into_iter().map(filled_by_two).filter(|tile| tile.name() != rule.name()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::device::cuda::hopper_tiles;

    const CHIP: Chip = Chip::H200;
    const SHAPES: [(usize, usize, usize); 8] = [
        (64, 512, 512),
        (64, 2048, 2048),
        (64, 4096, 4096),
        (256, 2048, 4096),
        (203, 520, 424),
        (1000, 1024, 64),
        (1024, 4096, 4096),
        (8192, 2048, 2048),
    ];

    fn all(precision: Precision, shape: (usize, usize, usize)) -> [(Vec<HopperTile>, Vec<usize>); 4] {
        let (batch, inputs, hidden) = shape;
        let with = |rule, others: Vec<HopperTile>, sums: &[usize]| ([vec![rule], others].concat(), sums.to_vec());
        let rule = hopper_tiles::forward(CHIP, precision, batch, inputs, hidden);
        let dx = |saved, sums: &[usize]| {
            let rule = hopper_tiles::backward_dx(CHIP, precision, batch, inputs, hidden, saved);
            with(rule, backward_dx(CHIP, precision, shape, saved, rule), sums)
        };
        let of_dwf = hopper_tiles::dwf(CHIP, precision, batch, inputs, hidden);
        [
            with(rule, forward(CHIP, precision, shape, rule), &[inputs]),
            dx(true, &[2 * hidden]),
            dx(false, &[2 * hidden, inputs]),
            with(of_dwf, dwf(CHIP, precision, shape, of_dwf), &[batch]),
        ]
    }

    #[test]
    fn candidates_fit_a_multiprocessor_are_named_apart_and_every_split_has_something_to_sum() {
        for precision in [Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
            for shape in SHAPES {
                for (tiles, sums) in all(precision, shape) {
                    let what = format!("{precision:?} {shape:?}: {tiles:?}");
                    for tile in &tiles {
                        assert!((tile.shared(precision) + 1024) * tile.blocks <= 228 << 10, "{what}");
                        assert!(tile.stages >= 2 && tile.cluster() <= 8, "{what}");
                        assert!(sums.iter().all(|&k| tile.splits_evenly(k, precision)), "{what}");
                    }
                    let names: HashSet<String> = tiles.iter().map(Candidate::name).collect();
                    assert_eq!(names.len(), tiles.len(), "a name is one tile's: {what}");
                }
            }
        }
    }

    #[test]
    fn what_is_tried_of_dx_runs_at_once_for_certain() {
        for precision in [Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
            for shape in SHAPES {
                let [_, saved, again, _] = all(precision, shape);
                for tile in saved.0[1..].iter().chain(&again.0[1..]) {
                    assert!(tile.cluster() <= 2 && tile.blocks == 1, "{precision:?} {shape:?}: {tile:?}");
                }
            }
        }
    }

    #[test]
    fn there_is_something_to_try_and_not_much() {
        let counts = |precision, shape| all(precision, shape).map(|(tiles, _)| tiles.len());
        for precision in [Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
            for shape in [(64, 2048, 2048), (256, 2048, 2048), (1024, 4096, 4096)] {
                assert!(
                    counts(precision, shape).iter().all(|count| (2..=9).contains(count)),
                    "{precision:?} {shape:?}"
                );
            }
        }
    }
}
