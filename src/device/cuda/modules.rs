//! Kernels, compiled (or read from the cache) and loaded at their first launch.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CString, c_void},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use cudarc::driver::{result, sys};

pub use super::launch::{Arg, Grid};
use super::{cache::Cache, compile::Configuration, context::Context, nvrtc::Nvrtc};
use crate::{Error, Kind, Result};

/// A configuration and its machine code.
type Compiled = (Configuration, Vec<u8>);

/// What compiling took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompileTime {
    /// Kernel configurations made ready.
    pub modules: usize,
    /// Of which NVRTC compiled so many; the rest came from the cache.
    pub compiled: usize,
    /// Wall time, in ms.
    pub ms: f64,
}

/// The kernels that are loaded on one device.
#[derive(Debug)]
pub struct Modules {
    context: Arc<Context>,
    cache: Cache,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<Configuration, sys::CUmodule>,
    functions: HashMap<(Configuration, &'static str), sys::CUfunction>,
    time: CompileTime,
}

// SAFETY: modules and functions are the driver's handles, usable from any thread whose context is current.
unsafe impl Send for Loaded {}

impl Modules {
    /// None loaded yet.
    pub fn new(context: &Arc<Context>, cache: Cache) -> Modules {
        Modules { context: context.clone(), cache, loaded: Mutex::default() }
    }

    /// What compiling and loading took so far.
    pub fn time(&self) -> CompileTime {
        self.lock().time
    }

    /// Puts the count back to what it was: what came since is told elsewhere.
    pub(super) fn set_time(&self, time: CompileTime) {
        self.lock().time = time;
    }

    /// Why compiled kernels are not kept, once.
    pub fn take_warning(&self) -> Option<Error> {
        self.cache.take_warning()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a configuration is loaded.
    pub(super) fn has(&self, configuration: &Configuration) -> bool {
        self.lock().modules.contains_key(configuration)
    }

    /// Compiles what is missing of `wanted` on all cores, in its order, and loads it. None is begun after `deadline`.
    ///
    /// # Errors
    /// When NVRTC is missing or refuses, or the driver does not load the result.
    pub fn prepare<'a>(
        &self,
        wanted: impl Iterator<Item = &'a Configuration>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let missing: Vec<&Configuration> = {
            let (loaded, mut seen) = (self.lock(), HashSet::new());
            wanted.filter(|&wanted| !loaded.modules.contains_key(wanted) && seen.insert(wanted)).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let (next, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let results: Mutex<Vec<Result<Compiled>>> = Mutex::default();
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(missing.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(&configuration) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                            break;
                        }
                        let cubin = self.cubin(configuration, &compiled).map(|cubin| (configuration.clone(), cubin));
                        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(cubin);
                    }
                });
            }
        });
        self.context.bind()?;
        let mut loaded = self.lock();
        let before = loaded.modules.len();
        for result in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let (configuration, cubin) = result?;
            // SAFETY: the image is a whole cubin (an ELF file, checked by the cache's checksum or fresh from NVRTC).
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .map_err(|cause| self.context.failed(&format!("load {configuration}"), cause))?;
            loaded.modules.insert(configuration, module);
        }
        loaded.time.modules += loaded.modules.len() - before;
        loaded.time.compiled += compiled.into_inner();
        loaded.time.ms += begin.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    fn cubin(&self, configuration: &Configuration, compiled: &AtomicUsize) -> Result<Vec<u8>> {
        let nvrtc = Nvrtc::load()?;
        let (cubin, fresh) = self.cache.cubin_and_whether_fresh(nvrtc, configuration)?;
        compiled.fetch_add(usize::from(fresh), Ordering::Relaxed);
        Ok(cubin)
    }

    /// The function `name` of a configuration, loaded, with as much shared memory as it will ask for.
    fn function(&self, configuration: &Configuration, name: &'static str, shared: usize) -> Result<sys::CUfunction> {
        if !self.lock().modules.contains_key(configuration) {
            self.prepare(std::iter::once(configuration), None)?;
        }
        let mut loaded = self.lock();
        let key = (configuration.clone(), name);
        if let Some(&function) = loaded.functions.get(&key) {
            return Ok(function);
        }
        let module = *loaded
            .modules
            .get(configuration)
            .ok_or_else(|| Error::new(Kind::Device, format!("{configuration} was compiled and is not loaded")))?;
        let failed = |cause| self.context.failed(&format!("find {name} in {configuration}"), cause);
        let symbol = CString::new(name)
            .map_err(|cause| Error::new(Kind::Device, format!("{name:?} is no name of a kernel")).because(cause))?;
        // SAFETY: the module is loaded and never unloaded.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(failed)?;
        if shared > 0 {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            // SAFETY: the function is the module's.
            unsafe { result::function::set_function_attribute(function, SHARED, shared as i32) }.map_err(failed)?;
        }
        loaded.functions.insert(key, function);
        Ok(function)
    }

    /// Blocks of `grid` that the whole chip holds at once. Clusters are counted by the driver: a chip whose groups of
    /// multiprocessors are of unequal size holds fewer than a division would give.
    ///
    /// # Errors
    /// When the kernel cannot be loaded.
    pub fn resident_blocks(&self, configuration: &Configuration, name: &'static str, grid: Grid) -> Result<usize> {
        grid.check(name)?;
        let function = self.function(configuration, name, grid.shared)?;
        self.context.bind()?;
        let failed = |cause| self.context.failed(&format!("run {name}"), cause);
        if grid.cluster > 1 {
            let mut attributes = grid.attributes();
            let config = grid.config(self.context.stream(), &mut attributes);
            let mut clusters = 0;
            // SAFETY: the function is loaded, and the attributes outlive the call.
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, function, &raw const config) }
                .result()
                .map_err(failed)?;
            return Ok(clusters.max(1) as usize * grid.cluster);
        }
        // SAFETY: the function is loaded.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(function, grid.threads as i32, grid.shared)
        };
        Ok(self.context.chip().multiprocessors * blocks.map_err(failed)?.max(1) as usize)
    }

    /// Puts a launch on the stream.
    ///
    /// # Errors
    /// When the kernel cannot be loaded or launched. A failure inside it shows at the next synchronisation.
    ///
    /// # Safety
    /// `args` are what the kernel declares, in its order, and every address (those in tensor maps too) is good for what it
    /// reads and writes until the stream has come past the launch, and every graph that was captured from it is gone.
    pub unsafe fn launch(
        &self,
        configuration: &Configuration,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<()> {
        grid.check(name)?;
        let function = self.function(configuration, name, grid.shared)?;
        self.context.bind()?;
        let stream = self.context.stream();
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        let mut attributes = grid.attributes();
        let outcome = if attributes.is_empty() {
            let (blocks, threads) = ((grid.blocks as u32, 1, 1), (grid.threads as u32, 1, 1));
            // SAFETY: the caller vouches for the arguments; the function is loaded; the arguments outlive the call, which
            // copies them.
            unsafe { result::launch_kernel(function, blocks, threads, grid.shared as u32, stream, &mut pointers) }
        } else {
            let config = grid.config(stream, &mut attributes);
            // SAFETY: as above, and the attributes outlive the call too. Every driver of CUDA 12 has the function, and none
            // older is used.
            unsafe {
                sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), std::ptr::null_mut()).result()
            }
        };
        outcome.map_err(|cause| self.context.failed(&format!("launch {name}"), cause))
    }
}
