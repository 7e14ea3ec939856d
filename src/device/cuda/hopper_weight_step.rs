//! A weight's gradient and the optimiser's step with it in one launch on Hopper, for SwiGLU layers and the stem; for two weights at once
//! where that fills the chip better: kernels/hopper_weight_step.cu.

use super::{
    Cuda,
    context::Chip,
    hopper::{matrix, streamed},
    hopper_linear::Input,
    hopper_tiles::{self, HopperTile},
    lock,
    modules::{
        Arg::{self, Int, Map, Pointer},
        Grid,
    },
    ops::{int, pointer},
    tensor_map::MapElement,
};
use crate::{
    Result,
    device::{Precision, SgdStep},
    tensor::Param,
};

/// Whether a layer's step on its weights waits for the stem's.
#[derive(Debug, Default)]
pub(super) enum Held {
    /// It is launched at once.
    #[default]
    Nothing,
    /// The next one waits.
    Wanted,
    /// It waits.
    Step(WeightStep),
}

/// The tile of a weight's step, and the slots of 32 columns of weights that stream past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTile {
    /// The product's tile.
    pub tile: HopperTile,
    /// Slots of the stream.
    pub slots: usize,
    /// Weights that a launch takes, one or two.
    pub jobs: usize,
    /// Whether a tile is stepped beside the next one's product; each warpgroup then has slots of its own.
    pub beside: bool,
}

impl StepTile {
    const fn new((warpgroups, cols, blocks): (usize, usize, usize), (stages, slots): (usize, usize)) -> StepTile {
        let tile = HopperTile { stages, ..hopper_tiles::tile(warpgroups, cols, 1, blocks) };
        StepTile { tile, slots, jobs: 1, beside: false }
    }

    /// Its defines.
    pub fn defines(&self) -> Vec<(&'static str, u32)> {
        let slots = self.slots as u32;
        let own = vec![("STATE_SLOTS", slots), ("JOBS", self.jobs as u32), ("BESIDE", u32::from(self.beside))];
        [self.tile.defines(), own].concat()
    }

    /// Bytes of dynamic shared memory: a slot holds weights and velocities, and in bf16 the copies; three barriers each.
    pub fn shared(&self, precision: Precision) -> usize {
        let weight = if precision == Precision::Bf16 { 10 } else { 8 };
        self.tile.shared(precision) + self.slots * (self.slot_rows() * 32 * weight + 24)
    }

    /// Rows of a slot.
    fn slot_rows(&self) -> usize {
        if self.beside { 64 } else { self.tile.rows() }
    }

    /// Tiles of some weights (rows, columns) together.
    fn count(&self, shapes: &[(usize, usize)]) -> usize {
        shapes.iter().map(|(rows, cols)| rows.div_ceil(self.tile.rows()) * cols.div_ceil(self.tile.cols)).sum()
    }

    /// The tile for weights (rows, cols) with gradients summed over `batch` rows: the largest that gives seven eighths of the
    /// multiprocessors a block. At small batches it is a stream, which two small blocks a multiprocessor keep more even. In TF32, where
    /// products take as long as weights need to pass, both run beside each other from four tiles a multiprocessor on.
    pub fn choose(chip: Chip, precision: Precision, batch: usize, shapes: &[(usize, usize)]) -> StepTile {
        const fn of(tile: (usize, usize, usize), ring: (usize, usize)) -> StepTile {
            StepTile::new(tile, ring)
        }
        let beside = StepTile { jobs: shapes.len(), beside: true, ..of((2, 128, 1), (6, 2)) };
        if precision == Precision::Tf32 && batch > 256 && beside.count(shapes) >= 4 * chip.multiprocessors {
            return beside;
        }
        let tiles: &[StepTile] = match (precision, batch <= 256) {
            (Precision::Tf32, true) => &[of((1, 64, 2), (2, 5))],
            (Precision::Tf32, false) => {
                &[of((2, 128, 1), (4, 3)), of((2, 64, 1), (5, 3)), of((1, 128, 2), (3, 2)), of((1, 64, 1), (8, 4))]
            }
            // The stages' own sums take registers: one block a multiprocessor.
            (Precision::Fp32Emulated, true) => &[of((2, 64, 1), (2, 4)), of((1, 64, 1), (3, 6))],
            (Precision::Fp32Emulated, false) => {
                &[of((2, 128, 1), (2, 3)), of((1, 128, 1), (3, 4)), of((1, 64, 1), (4, 4))]
            }
            (Precision::Bf16 | Precision::Fp32, true) => &[of((1, 64, 2), (2, 4))],
            (Precision::Bf16 | Precision::Fp32, false) => {
                &[of((2, 128, 1), (4, 2)), of((2, 64, 1), (5, 2)), of((1, 128, 2), (3, 2)), of((1, 64, 1), (8, 4))]
            }
        };
        let fills = |tile: &&StepTile| tile.count(shapes) * 8 >= chip.multiprocessors * 7;
        StepTile { jobs: shapes.len(), ..tiles.iter().find(fills).copied().unwrap_or(tiles[tiles.len() - 1]) }
    }
}

/// A weight's step that can be launched: where everything is. A launch may take two.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightStep {
    /// dy (B, rows), and B.
    dy: u64,
    batch: usize,
    input: Input,
    value: u64,
    velocity: u64,
    /// The weights in bf16, where products read them so.
    copy: Option<u64>,
    /// Rows and columns of the weight.
    shape: (usize, usize),
    decays: bool,
    sgd: SgdStep,
}

impl WeightStep {
    fn of(
        cuda: &Cuda,
        (dy, batch): (u64, usize),
        input: Input,
        weight: &mut Param,
        sgd: &SgdStep,
    ) -> Result<WeightStep> {
        Ok(WeightStep {
            dy,
            batch,
            input: input.summed_over(cuda)?,
            value: pointer(&weight.value)?,
            velocity: pointer(cuda.velocity_of(weight)?)?,
            copy: weight.copy.as_ref().map(pointer).transpose()?,
            shape: weight.value.shape(),
            decays: weight.decays,
            sgd: *sgd,
        })
    }

    /// Whether it may wait for another's.
    pub(super) fn may_wait(&self) -> bool {
        hopper_tiles::is_large(self.batch)
    }

    /// What the kernel is told of it.
    fn args(&self, cuda: &Cuda, chosen: &StepTile) -> Result<Vec<Arg>> {
        let ((rows, cols), tile) = (self.shape, chosen.tile);
        let stream = |name, element, pointer| streamed(name, element, pointer, self.shape, chosen.slot_rows());
        let value = stream("W", MapElement::F32, self.value)?;
        let copy = self.copy.map(|copy| stream("W in bf16", MapElement::Bf16, copy)).transpose()?;
        let head = [
            Map(matrix(cuda, "dy", self.dy, (self.batch, rows), tile.k_tile(cuda.precision()))?),
            Map(self.input.map_over_batch(cuda, tile)?),
            Map(value),
            Map(stream("velocity", MapElement::F32, self.velocity)?),
            Map(copy.unwrap_or(value)),
            Pointer(self.input.factors()),
        ];
        Ok([&head[..], &self.input.place_args_over_batch(cuda)?, &[Int(int(rows)?), Int(int(cols)?)]].concat())
    }
}

impl Cuda {
    /// Does `work`, in which one layer's step on its weights may wait for the stem's and be launched with it.
    ///
    /// # Errors
    /// When `work` fails.
    pub fn join_steps<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        *lock(&self.shared.held) = Held::Wanted;
        let outcome = work();
        // A step that was held when the work failed goes with it: the first error is what is told.
        let held = self.take_held_step();
        let outcome = outcome?;
        if let Some(step) = held {
            self.launch_steps(None, step, None)?;
        }
        Ok(outcome)
    }

    /// Keeps a step for the stem's launch, where that is wanted.
    fn hold_step(&self, step: WeightStep) -> bool {
        let mut held = lock(&self.shared.held);
        let wanted = matches!(*held, Held::Wanted) && step.may_wait();
        if wanted {
            *held = Held::Step(step);
        }
        wanted
    }

    fn take_held_step(&self) -> Option<WeightStep> {
        match std::mem::take(&mut *lock(&self.shared.held)) {
            Held::Step(step) => Some(step),
            Held::Nothing | Held::Wanted => None,
        }
    }

    /// W <- SGD with dW = dy^T x, dy (B, rows of W), x (B, columns of W): one launch, and dW is never written; with the bias' step,
    /// where there is a bias.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn weight_step(
        &self,
        dy: u64,
        batch: usize,
        input: Input,
        weight: &mut Param,
        bias: Option<&mut Param>,
        step: &SgdStep,
    ) -> Result<()> {
        let weight_step = WeightStep::of(self, (dy, batch), input, weight, step)?;
        let Some(bias) = bias else {
            return if self.hold_step(weight_step) { Ok(()) } else { self.launch_steps(None, weight_step, None) };
        };
        let bias = [pointer(&bias.value)?, pointer(self.velocity_of(bias)?)?];
        self.launch_steps(self.take_held_step(), weight_step, Some(bias))
    }

    /// Takes one weight's step, and `other`'s in the same launch: together they fill a chip that each fills badly alone, and where each
    /// fills it several times over there is one beginning and one end less.
    pub(super) fn launch_steps(
        &self,
        other: Option<WeightStep>,
        last: WeightStep,
        bias: Option<[u64; 2]>,
    ) -> Result<()> {
        let other = match other {
            Some(other) if (other.batch, other.decays) != (last.batch, last.decays) => {
                self.launch_steps(None, other, None)?;
                None
            }
            other => other,
        };
        let shapes: Vec<(usize, usize)> = other.iter().chain([&last]).map(|step| step.shape).collect();
        let chosen = StepTile::choose(self.chip(), self.precision(), last.batch, &shapes);
        let tile = chosen.tile;
        let [bias, bias_velocity] = bias.unwrap_or_default();
        let jobs =
            other.iter().chain([&last]).map(|step| step.args(self, &chosen)).collect::<Result<Vec<_>>>()?.concat();
        let of_bias = [Pointer(last.dy), Pointer(bias), Pointer(bias_velocity)];
        let sgd = self.sgd_args(&last.sgd.for_param(last.decays))?;
        let configuration = self.configuration("hopper_weight_step.cu", true, &chosen.defines());
        let blocks = chosen.count(&shapes).min(self.chip().multiprocessors * tile.blocks);
        let grid = Grid::new(blocks, tile.threads(), chosen.shared(self.precision())).started_early();
        let args = [&jobs[..], &of_bias, &sgd, &[Int(int(last.batch)?)]].concat();
        // SAFETY: the arguments are the kernel's; shapes were checked; a block alone touches its weights.
        unsafe { self.launch(&configuration, "hopper_weight_step", grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measure::check::training::GPU_NETWORKS, swiglu::reference::Dims};

    #[test]
    fn the_tile_of_a_step_fits_its_multiprocessor() {
        for precision in [Precision::Tf32, Precision::Bf16, Precision::Fp32Emulated] {
            for batch in [1, 64, 256, 257, 1024, 8192] {
                for (rows, cols) in [(16, 8), (128, 784), (1024, 512), (2048, 784), (4096, 2048), (8192, 4096)] {
                    let chosen = StepTile::choose(Chip::H200, precision, batch, &[(rows, cols)]);
                    let bytes = (chosen.shared(precision) + 1024) * chosen.tile.blocks;
                    assert!(bytes <= 228 << 10, "{precision:?} {batch} {rows} {cols}: {bytes} bytes, {chosen:?}");
                    assert!(chosen.slots >= 2 && chosen.tile.stages >= 2 && chosen.tile.cluster() == 1);
                }
            }
        }
    }

    #[test]
    fn many_tiles_are_stepped_beside_products_and_selftest_has_such_a_network() {
        let beside = |precision, batch, shapes: &[_]| StepTile::choose(Chip::H200, precision, batch, shapes).beside;
        assert!(beside(Precision::Tf32, 1024, &[(4096, 2048), (2048, 784)]));
        assert!(!beside(Precision::Tf32, 1024, &[(2048, 1024), (1024, 784)]), "few tiles");
        assert!(!beside(Precision::Tf32, 256, &[(8192, 4096)]), "few images");
        assert!(
            !beside(Precision::Bf16, 1024, &[(8192, 4096)]) && !beside(Precision::Fp32Emulated, 1024, &[(8192, 4096)])
        );
        let takes = |dims: &Dims| beside(Precision::Tf32, dims.batch, &[(2 * dims.hidden, dims.inputs)]);
        assert!(GPU_NETWORKS.iter().any(|(dims, _)| takes(dims)), "selftest has a network that takes it");
    }

    #[test]
    fn a_layer_and_the_stem_fill_together_what_they_would_not_alone() {
        let both = [(1024, 512), (512, 784)];
        for precision in [Precision::Tf32, Precision::Bf16, Precision::Fp32Emulated] {
            let chosen = StepTile::choose(Chip::H200, precision, 1024, &both);
            let blocks = Chip::H200.multiprocessors * chosen.tile.blocks;
            assert!((116..=blocks).contains(&chosen.count(&both)), "{precision:?}: {chosen:?}");
            assert_eq!(chosen.jobs, 2);
            assert!(both.iter().all(|&one| chosen.count(&[one]) * 2 <= Chip::H200.multiprocessors), "{chosen:?}");
        }
    }
}
