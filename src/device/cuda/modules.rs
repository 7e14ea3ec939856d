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

use super::{cache::Cache, compile::Configuration, context::Context, nvrtc::Nvrtc};
use crate::{Error, Kind, Result};

/// A value that a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// An address on the device; 0 for none.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
    /// `u64`.
    Count(u64),
}

impl Arg {
    /// Its bytes, little-endian in eight.
    fn word(self) -> u64 {
        match self {
            Arg::Pointer(value) | Arg::Count(value) => value,
            Arg::Int(value) => u64::from(value as u32),
            Arg::Float(value) => u64::from(value.to_bits()),
        }
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: usize,
    /// Threads of each.
    pub threads: usize,
    /// Bytes of dynamic shared memory of each.
    pub shared: usize,
}

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

    /// Why compiled kernels are not kept, once.
    pub fn take_warning(&self) -> Option<Error> {
        self.cache.take_warning()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Compiles what is missing of `wanted` on all cores, and loads it.
    ///
    /// # Errors
    /// When NVRTC is missing or refuses, or the driver does not load the result.
    pub fn prepare(&self, wanted: &HashSet<Configuration>) -> Result<()> {
        let missing: Vec<&Configuration> = {
            let loaded = self.lock();
            wanted.iter().filter(|wanted| !loaded.modules.contains_key(wanted)).collect()
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
                        let cubin = self.cubin(configuration, &compiled).map(|cubin| (configuration.clone(), cubin));
                        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(cubin);
                    }
                });
            }
        });
        self.context.bind()?;
        let mut loaded = self.lock();
        for result in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let (configuration, cubin) = result?;
            // SAFETY: the image is a whole cubin (an ELF file, checked by the cache's checksum or fresh from NVRTC).
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .map_err(|cause| self.context.failed(&format!("load {configuration}"), cause))?;
            loaded.modules.insert(configuration, module);
        }
        loaded.time.modules += missing.len();
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
            self.prepare(&HashSet::from([configuration.clone()]))?;
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

    /// Blocks of `grid` that one multiprocessor holds at once.
    ///
    /// # Errors
    /// When the kernel cannot be loaded.
    pub fn occupancy(&self, configuration: &Configuration, name: &'static str, grid: Grid) -> Result<usize> {
        let function = self.function(configuration, name, grid.shared)?;
        self.context.bind()?;
        // SAFETY: the function is loaded.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(function, grid.threads as i32, grid.shared)
        };
        Ok(blocks.map_err(|cause| self.context.failed(&format!("run {name}"), cause))?.max(0) as usize)
    }

    /// Puts a launch on the stream.
    ///
    /// # Errors
    /// When the kernel cannot be loaded or launched. A failure inside it shows at the next synchronisation.
    ///
    /// # Safety
    /// `args` are what the kernel declares, in its order, and every address is good for what it reads and writes until
    /// the stream has come past the launch, and every graph that was captured from it is gone.
    pub unsafe fn launch(
        &self,
        configuration: &Configuration,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<()> {
        let blocks = u32::try_from(grid.blocks)
            .ok()
            .filter(|blocks| (1..=i32::MAX as u32).contains(blocks))
            .ok_or_else(|| Error::shape(format!("{name}: {} blocks are not a grid", grid.blocks)))?;
        let function = self.function(configuration, name, grid.shared)?;
        self.context.bind()?;
        let mut words: Vec<u64> = args.iter().map(|arg| arg.word()).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: the caller vouches for the arguments; the function is loaded; the words outlive the call, which copies
        // them. Little-endian, as every host of a GPU is, the first bytes of a word are the shorter argument.
        unsafe {
            result::launch_kernel(
                function,
                (blocks, 1, 1),
                (grid.threads as u32, 1, 1),
                grid.shared as u32,
                self.context.stream(),
                &mut pointers,
            )
        }
        .map_err(|cause| self.context.failed(&format!("launch {name}"), cause))
    }
}
