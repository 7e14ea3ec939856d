//! Whole steps of a small network in one launch, on Hopper: kernels/hopper_training_steps.cu, whose blocks keep the weights and
//! stay for hundreds of steps.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Mlp, MlpConfig};
use crate::{
    Error, Kind, Result,
    data::{CLASSES, PIXEL_SCALE, PIXEL_SHIFT},
    device::{
        Device, Images, Precision, SgdStep,
        cuda::{
            Cuda,
            compile::Configuration,
            context::Memory,
            log::Log,
            modules::{
                Arg::{self, Float, Int, Pointer},
                Grid,
            },
            ops::int,
        },
    },
    swiglu::Entry,
    tensor::Param,
};

/// Images of a step at most.
const ROWS: usize = 64;
/// Blocks of a cluster; threads of a block.
const CLUSTER: usize = 4;
const THREADS: usize = 512;
/// Pixels of a block's slice: a quarter of an image, in whole 16.
const SLICE_PIXELS: usize = 208;
/// The most that a multiprocessor's registers and shared memory hold of D and of H.
const WIDEST: usize = 512;

/// How steps of training are run on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steps {
    /// Persistent where the network is small enough for it, else launches
    #[default]
    Auto,
    /// A launch for each part of a step, replayed as a graph
    Launches,
    /// Hundreds of steps in one launch whose blocks keep the weights: compute capability 9.0, fused-frozen and fused-triton-grad
    /// with D and H up to 512, one layer, batches of up to 64, any precision but fp32
    Persistent,
}

impl Steps {
    /// What old checkpoints, which do not say it, were trained with.
    pub fn of_old() -> Steps {
        Steps::Launches
    }

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Steps::Auto => "auto",
            Steps::Launches => "launches",
            Steps::Persistent => "persistent",
        }
    }

    /// `Launches` or `Persistent`: what a run on `device` takes.
    ///
    /// # Errors
    /// When `Persistent` is asked for and cannot be: the message says why.
    pub fn resolve(self, device: &Device, config: &MlpConfig, batch: usize, clips: bool) -> Result<Steps> {
        let obstacle = match device {
            Device::Cpu(_) => Some("it is a GPU's".to_owned()),
            Device::Cuda(cuda) => obstacle(cuda, config, batch, clips),
        };
        match (self, obstacle) {
            (Steps::Launches, _) | (Steps::Auto, Some(_)) => Ok(Steps::Launches),
            (Steps::Auto | Steps::Persistent, None) => Ok(Steps::Persistent),
            (Steps::Persistent, Some(obstacle)) => {
                Err(Error::usage(format!("--steps persistent: {obstacle}")).hint("--steps auto takes it where it can"))
            }
        }
    }
}

/// Why the kernel cannot train this network, if so.
fn obstacle(cuda: &Cuda, config: &MlpConfig, batch: usize, clips: bool) -> Option<String> {
    let (inputs, hidden) = (config.layer.inputs, config.layer.hidden);
    let entry = config.entry;
    if !cuda.chip().hopper {
        Some(format!("{} does not have compute capability 9.0", cuda.context().gpu().name))
    } else if config.layer.precision == Precision::Fp32 {
        Some("it multiplies on tensor cores, which do not compute fp32 (fp32-emulated is as accurate)".into())
    } else if !is_taken(entry) {
        Some(format!("{} takes its weights' gradient from the library", entry.name))
    } else if config.depth > 1 {
        Some(format!("it has one SwiGLU layer, and the network {}", config.depth))
    } else if inputs.max(hidden) > WIDEST {
        Some(format!("D = {inputs} and H = {hidden}: weights for more than {WIDEST} do not fit on the chip"))
    } else if batch > ROWS {
        Some(format!("a step has up to {ROWS} images, not {batch}"))
    } else if clips {
        Some("clipping needs the norm of all gradients, which it never has in one place".into())
    } else {
        Shape::of(cuda, config).err().map(|error| error.to_string())
    }
}

/// Whether an implementation's step is what the kernel computes: products of its own only.
fn is_taken(entry: &Entry) -> bool {
    let launches = entry.launches;
    [launches.forward, launches.backward_dx, launches.backward_dwf].iter().all(|&(_, library)| library == 0)
}

/// How D and H are spread over clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Clusters of four blocks.
    pub clusters: usize,
    /// Columns of the stem, and hidden units, that each has.
    pub columns: usize,
}

impl Shape {
    /// The smallest parts for which there are enough clusters: all of them must run at once. `room` is how many do.
    pub fn fitting(inputs: usize, hidden: usize, room: usize) -> Option<Shape> {
        let fits = |columns: usize, multiple: usize, most: usize| {
            let clusters = inputs.max(hidden).div_ceil(columns).next_multiple_of(multiple);
            (clusters <= most.min(room)).then_some(Shape { clusters, columns })
        };
        // A thread keeps 2 x 208 x columns / 512 numbers of the stem and 2 x 2 columns x D / 4 / 512 of the layer in registers.
        fits(16, 8, 24).or_else(|| fits(32, 4, WIDEST / 32))
    }

    fn of(cuda: &Cuda, config: &MlpConfig) -> Result<Shape> {
        let (inputs, hidden) = (config.layer.inputs, config.layer.hidden);
        let cuda = cuda.with_precision(config.layer.precision);
        let mut room = cuda.chip().multiprocessors / CLUSTER;
        // The driver tells how many clusters run at once of a kernel that is loaded: fewer than a division gives.
        while let Some(shape) = Shape::fitting(inputs, hidden, room) {
            let configuration = shape.configuration(&cuda, config.entry);
            room = cuda.resident_blocks(&configuration, NAME, shape.grid(cuda.precision()))? / CLUSTER;
            if shape.clusters <= room {
                return Ok(shape);
            }
        }
        Err(Error::new(
            Kind::Device,
            format!(
                "D = {inputs} and H = {hidden} need more clusters of {CLUSTER} blocks than the {room} that run at once"
            ),
        ))
    }

    /// Bytes of shared memory of a block, as the kernel lays it out (and checks).
    pub fn shared_bytes(self, precision: Precision) -> usize {
        let (columns, gate_up) = (self.columns, 2 * self.columns);
        let (element, x_tiles) = if precision == Precision::Bf16 { (2, 2) } else { (4, 1) };
        let pitch = |cols: usize| cols * element + 16;
        let slice = self.clusters * columns / CLUSTER; // of D
        let own = ROWS / CLUSTER;
        let tiles = (columns + x_tiles * ROWS) * pitch(SLICE_PIXELS)
            + (gate_up + ROWS) * pitch(slice)
            + ROWS * pitch(gate_up)
            + columns * pitch(ROWS)
            + ROWS * SLICE_PIXELS;
        let parts = 4 * CLUSTER * (own * columns + own * gate_up + CLASSES * (columns + 1));
        let small = 4 * (own * (columns + 4) + CLASSES * columns + 2 * own * 12 + 12 + columns + own)
            + 8 * (5 + CLUSTER)
            + 4 * (own + 2 * ROWS)
            + 2 * ROWS;
        tiles + parts + small.next_multiple_of(8)
    }

    /// Floats through which blocks pass numbers to each other.
    pub fn exchange_floats(self) -> usize {
        let Shape { clusters, columns } = self;
        32 + ROWS * clusters * columns + clusters * ROWS * CLASSES + clusters * clusters * ROWS * columns
    }

    /// The kernel's defines beside the precision.
    pub fn defines(self, precision: Precision, learns: bool) -> Vec<(&'static str, u32)> {
        vec![
            ("CLUSTERS", self.clusters as u32),
            ("STEM_COLS", self.columns as u32),
            ("UNITS", self.columns as u32),
            ("LEARNS", u32::from(learns)),
            ("SHARED_BYTES", self.shared_bytes(precision) as u32),
            ("EXCHANGE_FLOATS", self.exchange_floats() as u32),
        ]
    }

    fn configuration(self, cuda: &Cuda, entry: &Entry) -> Configuration {
        cuda.configuration(FILE, true, &self.defines(cuda.precision(), entry.trains_weight))
    }

    fn grid(self, precision: Precision) -> Grid {
        Grid::new(CLUSTER * self.clusters, THREADS, self.shared_bytes(precision)).in_clusters(CLUSTER)
    }
}

const FILE: &str = "hopper_training_steps.cu";
const NAME: &str = "hopper_training_steps";

/// A network's steps, ready to be launched. Network, images and log must outlive it, where they were.
#[derive(Debug)]
pub struct Persistent {
    cuda: Cuda,
    configuration: Configuration,
    grid: Grid,
    /// All but the count of steps.
    args: Vec<Arg>,
    /// What the kernel's blocks pass to each other; it holds the count of steps ever taken, so it stays with the network.
    _exchange: Memory,
}

impl Persistent {
    /// For the steps of `log` over `images` in batches of `batch`; learning rates are the log's.
    ///
    /// # Errors
    /// When memory is short, or the network is none that [`Steps::resolve`] calls persistent.
    pub fn new(
        cuda: &Cuda,
        model: &mut Mlp,
        images: &Images,
        (log, sgd, batch): (&Log, &SgdStep, usize),
    ) -> Result<Persistent> {
        let shape = Shape::of(cuda, &model.config)?;
        let entry = model.config.entry;
        let (inputs, hidden) = (model.config.layer.inputs, model.config.layer.hidden);
        let (configuration, grid) = (shape.configuration(cuda, entry), shape.grid(cuda.precision()));
        let exchange = cuda.context().allocate(4 * shape.exchange_floats())?;
        let (pixels, labels) = images.on_cuda()?;
        let device = Device::Cuda(cuda.clone());
        let place = |param: &mut Param, learns: bool| -> Result<[Arg; 3]> {
            let velocity = match learns {
                true => device.velocity(&mut param.velocity, param.value.shape())?.cuda()?.memory.pointer(),
                false => 0,
            };
            let copy = param.copy.as_ref().map_or(Ok(0), |copy| copy.cuda().map(|copy| copy.memory.pointer()))?;
            Ok([Pointer(param.value.cuda()?.memory.pointer()), Pointer(velocity), Pointer(copy)])
        };
        let stem = place(&mut model.stem.weight, true)?;
        let [stem_bias, stem_bias_velocity, _] = place(&mut model.stem.bias, true)?;
        let mut params = model.layers.iter_mut().flat_map(|layer| layer.params());
        let (Some(wf), None) = (params.next(), params.next()) else {
            return Err(Error::shape("persistent steps: the layer is not one packed weight"));
        };
        let wf = place(wf, entry.trains_weight)?;
        let [head, head_velocity, _] = place(&mut model.head.weight, true)?;
        let [head_bias, head_bias_velocity, _] = place(&mut model.head.bias, true)?;
        let step = [Pointer(pixels.pointer()), Pointer(labels.pointer()), Pointer(log.order_pointer())];
        let results = [
            Pointer(log.step_pointer()),
            Pointer(log.rates_pointer()),
            Pointer(log.losses().pointer()),
            Pointer(log.hits().pointer()),
        ];
        let biases = [stem_bias, stem_bias_velocity];
        let top = [head, head_velocity, head_bias, head_bias_velocity, Pointer(exchange.pointer())];
        let numbers = [
            Float(sgd.momentum),
            Float(sgd.weight_decay),
            Int(i32::from(sgd.nesterov)),
            Float(PIXEL_SCALE),
            Float(PIXEL_SHIFT),
            Int(int(images.len())?),
            Int(int(batch)?),
            Int(int(inputs)?),
            Int(int(hidden)?),
        ];
        let args = [&step[..], &results, &stem, &biases, &wf, &top, &numbers].concat();
        Ok(Persistent { cuda: cuda.clone(), configuration, grid, args, _exchange: exchange })
    }

    /// Puts the next `count` steps of the log on the stream, in one launch.
    ///
    /// # Errors
    /// When the kernel does not compile, or the device fails.
    pub fn run(&self, count: usize) -> Result<()> {
        let args = [&self.args[..], &[Int(int(count)?)]].concat();
        // SAFETY: the arguments are the kernel's, and shapes were checked; the log holds indices of images and a rate more than
        // it has steps; all blocks run at once, as `Shape::of` has asked the driver.
        unsafe { self.cuda.launch(&self.configuration, NAME, self.grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_get_the_smallest_parts_for_which_there_are_clusters() {
        let shape = |inputs, hidden, room| Shape::fitting(inputs, hidden, room).map(|s| (s.clusters, s.columns));
        assert_eq!(shape(512, 512, 30), Some((16, 32)));
        assert_eq!(shape(256, 256, 30), Some((16, 16)));
        assert_eq!(shape(1, 384, 30), Some((24, 16)));
        assert_eq!(shape(384, 200, 20), Some((12, 32)), "24 clusters do not run at once");
        assert_eq!(shape(67, 101, 30), Some((8, 16)));
        assert_eq!(shape(513, 8, 30), None);
        assert_eq!(shape(512, 512, 15), None);
    }

    #[test]
    fn a_block_fits_a_multiprocessor_in_every_precision() {
        for width in [1, 128, 256, 384, 512] {
            let shape = Shape::fitting(width, width, 30).unwrap();
            for &precision in &[Precision::Bf16, Precision::Tf32, Precision::Fp32Emulated] {
                assert!(shape.shared_bytes(precision) <= 227 << 10, "{width} {precision:?}");
            }
        }
    }

    #[test]
    fn implementations_without_library_products_are_taken() {
        let taken: Vec<_> = crate::swiglu::ALL.iter().filter(|entry| is_taken(entry)).map(|entry| entry.name).collect();
        assert_eq!(taken, ["fused-frozen", "fused-triton-grad"]);
    }
}
