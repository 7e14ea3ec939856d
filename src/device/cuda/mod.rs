//! An NVIDIA GPU: its driver and libraries found, the kernels compiled and kept, and the operations of the network on it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`sources`] | the texts of kernels/, embedded |
//! | [`library`] | finds and loads NVRTC and cuBLAS |
//! | [`nvrtc`] | NVIDIA's run-time compiler, loaded |
//! | [`compile`] | a kernel file and its defines, to a cubin |
//! | [`cache`] | cubins kept on disk |
//! | [`driver`] | the driver and the devices that it shows |
//! | [`context`], [`event`] | a device opened: its stream, memory, failures, time |
//! | [`launch`], [`modules`] | what a launch is; kernels loaded and launched |
//! | [`tensor_map`] | how Hopper's TMA finds the boxes of a matrix |
//! | [`blas`] | cuBLAS |
//! | [`graph`], [`log`] | a step captured and replayed; what it reads and writes beside the network |
//! | [`tiles`], [`hopper_tiles`] | which tile a product is given by rules |
//! | [`tune`] | which it is given where others were timed |
//! | [`ops`], [`head`] | the operations of the network |
//! | [`hopper`], [`hopper_linear`] | what launches on Hopper share; a linear layer there, and the step of a weight |
//! | [`epoch`] | an epoch's images laid out in their order |
//! | [`timing`] | device time of some work |
//!
//! Nothing here panics when a library is not there, and nothing of CUDA is needed to build it.

pub mod blas;
pub mod cache;
pub mod compile;
pub mod context;
pub mod driver;
pub mod epoch;
pub mod event;
pub mod graph;
pub mod head;
pub mod hopper;
pub mod hopper_linear;
pub mod hopper_stem;
pub mod hopper_tiles;
pub mod hopper_weight_step;
pub mod launch;
pub mod library;
pub mod log;
pub mod modules;
pub mod nvrtc;
pub mod ops;
mod places;
pub mod sources;
pub mod tensor_map;
pub mod tiles;
pub mod timing;
pub mod tune;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{Precision, SgdStep};
use crate::{Error, Kind, Result};
use blas::Blas;
use cache::Cache;
use compile::{Arch, Configuration};
use context::{Chip, Context, Memory};
use event::Event;
use graph::Graph;
use hopper_weight_step::Held;
use log::Log;
use modules::{Arg, CompileTime, Grid, Modules};
use tune::{Met, Tuner};

/// What the elements of a tensor on the device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision: all parameters, and the activations of all precisions but bf16.
    F32,
    /// bf16: activations, the copies of weights that products read, and those weights' gradients.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// The elements of a tensor on the device.
#[derive(Debug)]
pub struct Buffer {
    /// Where they are.
    pub memory: Memory,
    /// What they are.
    pub element: Element,
}

/// A GPU that computes in one precision. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cuda {
    shared: Arc<Shared>,
    precision: Precision,
}

#[derive(Debug)]
struct Shared {
    context: Arc<Context>,
    modules: Modules,
    /// Started at the first library product: a training in steps of one launch has none.
    blas: Mutex<Option<Blas>>,
    /// Memory that kernels use and nobody reads afterwards, by purpose. What grew too small is kept, for graphs that use it.
    scratch: Mutex<HashMap<&'static str, Vec<Memory>>>,
    /// Learning rate and gradient scale of the step in hand.
    scalars: Memory,
    mode: Mutex<Mode>,
    held: Mutex<Held>,
    tuner: Mutex<Tuner>,
}

/// What a launch means now.
#[derive(Debug)]
enum Mode {
    /// It runs.
    Eager,
    /// Its kernel is noted, to be compiled with all others at once.
    Planning(Plan),
    /// It becomes part of a graph whose steps use this log.
    Recording(Arc<Log>),
}

/// What some work will launch.
#[derive(Debug, Default)]
struct Plan {
    configurations: HashSet<Configuration>,
    /// The problems that tiles are chosen for.
    met: Vec<Met>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Cuda {
    /// Opens device `ordinal`, for fp32 until [`Cuda::with_precision`] says otherwise.
    ///
    /// # Errors
    /// [`Kind::Device`] when driver, device, cuBLAS or NVRTC are missing or too old; the hint says what provides them.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        let driver = driver::Driver::start()?;
        // Libraries are asked for now, so that what is missing or too old is told before any work is done; and on threads of
        // their own, as making a context takes longer than both.
        let (context, nvrtc, cublas) = thread::scope(|scope| {
            let nvrtc = scope.spawn(nvrtc::Nvrtc::load);
            let cublas = scope.spawn(|| library::Library::Cublas.load());
            let context = Context::open(ordinal);
            (context, joined(nvrtc), joined(cublas))
        });
        let context = context?;
        let (major, minor) = nvrtc?.version();
        cublas?;
        let driver = driver.cuda_version()?;
        if driver.0 < major {
            return Err(Error::new(
                Kind::Device,
                format!(
                    "the NVIDIA driver runs CUDA up to {}.{}, and NVRTC {major}.{minor} compiles for a newer one",
                    driver.0, driver.1
                ),
            )
            .hint(format!(
                "update the driver, or pip install nvidia-cuda-nvrtc-cu{0} nvidia-cublas-cu{0} and name their folders in {1}",
                driver.0,
                library::VARIABLE
            )));
        }
        let blas = Mutex::new(None);
        let modules = Modules::new(&context, Cache::of_user(cache::Kind::Cubins));
        let tuner = Mutex::new(Tuner::of_user(context.gpu(), driver, (major, minor)));
        let scalars = context.allocate(8)?;
        let shared = Shared {
            context,
            modules,
            blas,
            scratch: Mutex::default(),
            scalars,
            mode: Mutex::new(Mode::Eager),
            held: Mutex::default(),
            tuner,
        };
        Ok(Cuda { shared: Arc::new(shared), precision: Precision::Fp32 })
    }

    /// The same device, computing in `precision`.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Cuda {
        Cuda { shared: self.shared.clone(), precision }
    }

    /// What products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What activations are kept in.
    pub fn element(&self) -> Element {
        match self.precision {
            Precision::Fp32 | Precision::Fp32Emulated | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        }
    }

    /// The device's context.
    pub fn context(&self) -> &Arc<Context> {
        &self.shared.context
    }

    /// What the choice of tiles needs to know.
    pub fn chip(&self) -> Chip {
        self.shared.context.chip()
    }

    /// What compiling and loading kernels took so far.
    pub fn compile_time(&self) -> CompileTime {
        self.shared.modules.time()
    }

    /// Why compiled kernels or tiles are not kept, or why some are not tuned, each once.
    pub fn take_warning(&self) -> Option<Error> {
        self.shared.modules.take_warning().or_else(|| self.take_tuning_warning())
    }

    /// Memory for `count` elements, zeroed.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn buffer(&self, count: usize, element: Element) -> Result<Buffer> {
        Ok(Buffer { memory: self.shared.context.allocate(count * element.bytes())?, element })
    }

    /// At least `bytes` bytes that kernels may use until the next launch of the same purpose. They are zero when they are
    /// first given; a kernel that needs them zero leaves them zero.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn scratch(&self, purpose: &'static str, bytes: usize) -> Result<u64> {
        let mut scratch = lock(&self.shared.scratch);
        let all = scratch.entry(purpose).or_default();
        if let Some(memory) = all.last().filter(|memory| memory.bytes() >= bytes) {
            return Ok(memory.pointer());
        }
        let memory = self.shared.context.allocate(bytes)?;
        let pointer = memory.pointer();
        all.push(memory);
        Ok(pointer)
    }

    /// Does `work` with scratch memory of its own, which goes when it is done: whatever it leaves there, nobody else finds.
    fn with_own_scratch<R>(&self, work: impl FnOnce() -> R) -> R {
        let others = std::mem::take(&mut *lock(&self.shared.scratch));
        let outcome = work();
        *lock(&self.shared.scratch) = others;
        outcome
    }

    /// A kernel file in this precision, for rows that all start on 16 bytes or not.
    pub fn configuration(&self, file: &'static str, aligned: bool, more: &[(&'static str, u32)]) -> Configuration {
        let products = file.starts_with("swiglu_fused") || file.starts_with("hopper");
        let precision = match self.element() {
            // Without a product these are one: the same elements, the same code, compiled once.
            Element::F32 if !products => compile::define(Precision::Fp32),
            Element::F32 | Element::Bf16 => compile::define(self.precision),
        };
        let (major, minor) = self.shared.context.gpu().capability;
        let defines = [&[("PRECISION", precision), ("ALIGNED", u32::from(aligned))], more].concat();
        Configuration { file, defines, arch: Arch::of_device(major as u32, minor as u32) }
    }

    /// Launches a kernel, or notes it when a plan is made.
    ///
    /// # Errors
    /// When it cannot be compiled, loaded or launched.
    ///
    /// # Safety
    /// As [`Modules::launch`].
    pub unsafe fn launch(
        &self,
        configuration: &Configuration,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<()> {
        if let Mode::Planning(plan) = &mut *lock(&self.shared.mode) {
            plan.configurations.insert(configuration.clone());
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.shared.modules.launch(configuration, name, grid, args) }
    }

    /// Blocks of `grid` that the whole chip holds at once; as many as are asked for while a plan is made.
    ///
    /// # Errors
    /// When the kernel cannot be loaded.
    pub fn resident_blocks(&self, configuration: &Configuration, name: &'static str, grid: Grid) -> Result<usize> {
        if self.is_planning() {
            return Ok(grid.blocks);
        }
        self.shared.modules.resident_blocks(configuration, name, grid)
    }

    pub(crate) fn is_planning(&self) -> bool {
        matches!(&*lock(&self.shared.mode), Mode::Planning(_))
    }

    fn is_eager(&self) -> bool {
        matches!(&*lock(&self.shared.mode), Mode::Eager)
    }

    /// The log of the graph that is being captured.
    fn recording(&self) -> Option<Arc<Log>> {
        match &*lock(&self.shared.mode) {
            Mode::Recording(log) => Some(log.clone()),
            Mode::Eager | Mode::Planning(_) => None,
        }
    }

    /// Starts a kernel that calls `griddepcontrol.wait` before the one ahead of it has ended, where the device can.
    fn early(&self, grid: Grid) -> Grid {
        if self.shared.context.gpu().capability >= (9, 0) { grid.started_early() } else { grid }
    }

    /// Compiles, on all cores, every kernel that `work` launches, without running any of it.
    ///
    /// # Errors
    /// When `work` fails or a kernel does not compile.
    pub fn prepare(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let plan = self.plan(work)?;
        self.shared.modules.prepare(plan.configurations.iter(), None)
    }

    /// What `work` will launch.
    fn plan(&self, work: impl FnOnce() -> Result<()>) -> Result<Plan> {
        *lock(&self.shared.mode) = Mode::Planning(Plan::default());
        let outcome = work();
        let mode = std::mem::replace(&mut *lock(&self.shared.mode), Mode::Eager);
        outcome?;
        match mode {
            Mode::Planning(plan) => Ok(plan),
            Mode::Eager | Mode::Recording(_) => Err(Error::new(Kind::Device, "a plan was made inside another")),
        }
    }

    /// Captures what `work` does into a graph whose steps use `log`.
    ///
    /// # Errors
    /// When `work` fails or does something that cannot be captured.
    pub fn record(&self, log: &Arc<Log>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        *lock(&self.shared.mode) = Mode::Recording(log.clone());
        let graph = Graph::capture(&self.shared.context, Some(log.clone()), work);
        *lock(&self.shared.mode) = Mode::Eager;
        graph
    }

    /// A mark in the stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn event(&self) -> Result<Event> {
        Event::record(&self.shared.context)
    }

    /// The two numbers of a step of SGD that kernels read from memory, as arguments: the learning rate, and the gradient's
    /// scale (none for 1). In a captured step they are what the device wrote there; else they are written now.
    fn scalars(&self, step: &SgdStep) -> Result<[Arg; 2]> {
        let rate = self.shared.scalars.pointer();
        let scale = rate + 4;
        if self.is_eager() {
            self.fill(rate, step.lr.to_bits())?;
        }
        if step.device_scale {
            return Ok([Arg::Pointer(rate), Arg::Pointer(scale)]);
        }
        if step.scale == 1.0 {
            return Ok([Arg::Pointer(rate), Arg::Pointer(0)]);
        }
        if !self.is_planning() {
            self.fill(scale, step.scale.to_bits())?;
        }
        Ok([Arg::Pointer(rate), Arg::Pointer(scale)])
    }

    /// Writes one word in the order of the stream.
    fn fill(&self, pointer: u64, word: u32) -> Result<()> {
        let context = &self.shared.context;
        context.bind()?;
        // SAFETY: the address is one of the two scalars of this device.
        unsafe { cudarc::driver::sys::cuMemsetD32Async(pointer, word, 1, context.stream()) }
            .result()
            .map_err(|cause| context.failed("set a number", cause))
    }
}
