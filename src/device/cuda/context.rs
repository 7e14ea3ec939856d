//! A GPU opened for work: its context, the one stream that everything runs on, memory, and what a failure means.
//!
//! One stream, in order: a kernel that comes later may read what one before it wrote, and scratch memory can be shared.

use std::{
    ffi::c_void,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::driver::{Driver, Gpu};
use crate::{Error, Kind, Result};

/// The oldest compute capability that the kernels run on.
pub const OLDEST: (i32, i32) = (8, 0);

/// What the choice of tiles needs to know of a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared_per_block: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_per_multiprocessor: usize,
    /// Bytes of L2 cache.
    pub l2_bytes: usize,
    /// Whether the kernels for Hopper run on it (TMA, wgmma, clusters).
    pub hopper: bool,
}

impl Chip {
    /// A large chip for tests and tables: NVIDIA's H200.
    pub const H200: Chip = Chip {
        multiprocessors: 132,
        shared_per_block: 227 << 10,
        shared_per_multiprocessor: 228 << 10,
        l2_bytes: 50 << 20,
        hopper: true,
    };
    /// A small one: a laptop's, of the Ada generation.
    pub const LAPTOP: Chip = Chip {
        multiprocessors: 20,
        shared_per_block: 99 << 10,
        shared_per_multiprocessor: 100 << 10,
        l2_bytes: 24 << 20,
        hopper: false,
    };
}

/// A device's context and stream. It lives as long as anything on the device does.
#[derive(Debug)]
pub struct Context {
    gpu: Gpu,
    chip: Chip,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// For memory that is made while the stream is being captured.
    side: sys::CUstream,
    /// Bytes that this program holds on the device, and the most that it held.
    held: AtomicUsize,
    peak: AtomicUsize,
}

// SAFETY: the handles are the driver's, which may be used from any thread once its context is current there (`bind`).
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Context {}

impl Context {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`Kind::Device`] without a driver, without such a device, or with one that is too old.
    pub fn open(ordinal: usize) -> Result<Arc<Context>> {
        let gpus = Driver::start()?.devices()?;
        let count = gpus.len();
        let gpu = gpus.into_iter().nth(ordinal).ok_or_else(|| {
            Error::new(Kind::Device, format!("there is no device cuda:{ordinal}: the driver shows {count}"))
                .hint("mnist-swiglu doctor lists them; CUDA_VISIBLE_DEVICES hides devices")
        })?;
        let (major, minor) = gpu.capability;
        if gpu.capability < OLDEST {
            return Err(Error::new(
                Kind::Device,
                format!("cuda:{ordinal} ({}) has compute capability {major}.{minor}; the kernels need 8.0", gpu.name),
            )
            .hint("use --device cpu, or a GPU of the Ampere generation or later"));
        }
        let failed = |cause| failure(&gpu.name, "be opened", cause);
        let device = result::device::get(gpu.ordinal).map_err(failed)?;
        // SAFETY: the device is one that the driver has given; the context is retained until `drop`.
        let (context, stream, side) = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            result::ctx::set_current(context).map_err(failed)?;
            let stream = || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed);
            (context, stream()?, stream()?)
        };
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            // SAFETY: as above.
            unsafe { result::device::get_attribute(device, which) }.map(|value| value as usize).map_err(failed)
        };
        let chip = Chip {
            multiprocessors: gpu.multiprocessors as usize,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            shared_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            hopper: gpu.is_hopper(),
        };
        let (held, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Context { gpu, chip, device, context, stream, side, held, peak }))
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What the choice of tiles needs to know.
    pub fn chip(&self) -> Chip {
        self.chip
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(|cause| self.failed("be used", cause))
    }

    /// Waits for everything on the stream.
    ///
    /// # Errors
    /// When something that ran before failed: the driver tells only here.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|cause| self.failed("finish its work", cause))
    }

    /// Free and total bytes of memory.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        result::mem_get_info().map_err(|cause| self.failed("tell its memory", cause))
    }

    /// Bytes that this program holds on the device, and the most that it held since the last [`Context::reset_peak`].
    pub fn held_and_peak(&self) -> (usize, usize) {
        (self.held.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    /// Puts the peak back to what is held now.
    pub fn reset_peak(&self) {
        self.peak.store(self.held.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Forgets a peak above `bytes` (or what is held now, if that is more).
    pub(super) fn set_peak(&self, bytes: usize) {
        self.peak.store(bytes.max(self.held.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Memory for `bytes` bytes, zeroed. Works while the stream is being captured, and is then no part of the graph.
    ///
    /// # Errors
    /// [`Kind::Device`] when there is not so much; it says how much is free.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        self.bind()?;
        // Nothing is still something: a pointer that kernels can be given.
        let bytes = bytes.max(16).next_multiple_of(16);
        // SAFETY: the memory is zeroed before anybody reads it, and freed once, by `Memory`.
        let pointer = unsafe { result::malloc_sync(bytes) }.map_err(|cause| self.out_of_memory(bytes, cause))?;
        let memory = Memory { pointer, bytes, context: self.clone() };
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the bytes are ours, and nothing on the other stream knows of them yet.
        unsafe {
            result::memset_d8_async(pointer, 0, bytes, self.side)
                .and_then(|()| result::stream::synchronize(self.side))
                .map_err(|cause| self.failed("zero its memory", cause))?;
        }
        Ok(memory)
    }

    fn out_of_memory(&self, bytes: usize, cause: DriverError) -> Error {
        if cause.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return self.failed("give memory", cause);
        }
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let free = self.memory().map_or_else(
            |_| String::new(),
            |(free, total)| format!(" ({:.0} of {:.0} MiB are free)", mib(free), mib(total)),
        );
        Error::new(
            Kind::Device,
            format!("cuda:{} ({}) has no {:.1} MiB more{free}", self.gpu.ordinal, self.gpu.name, mib(bytes)),
        )
        .hint("make --batch-size, --width or --hidden smaller, or end what else uses the GPU (nvidia-smi shows it)")
    }

    /// What a failure of the driver means.
    pub fn failed(&self, doing: &str, cause: DriverError) -> Error {
        failure(&format!("cuda:{} ({})", self.gpu.ordinal, self.gpu.name), doing, cause)
    }
}

fn failure(device: &str, doing: &str, cause: DriverError) -> Error {
    use sys::CUresult as Code;
    let hint = match cause.0 {
        Code::CUDA_ERROR_ECC_UNCORRECTABLE | Code::CUDA_ERROR_CONTAINED | Code::CUDA_ERROR_HARDWARE_STACK_ERROR => {
            "the GPU reports a hardware fault: see nvidia-smi -q and dmesg; the last checkpoint is good, go on with train --resume"
        }
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "a kernel failed; mnist-swiglu selftest tells whether this GPU computes right; the last checkpoint is good, go on with train --resume"
        }
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | Code::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "update NVIDIA's driver; nvidia-smi shows its version"
        }
        _ => "nvidia-smi shows whether the GPU is there; the last checkpoint is good, go on with train --resume",
    };
    Error::new(Kind::Device, format!("{device} cannot {doing}")).hint(hint).because(cause)
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        // SAFETY: both streams and the reference to the context were made in `open` and are given back once.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::destroy(self.stream);
            let _ = result::stream::destroy(self.side);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Bytes on a device.
#[derive(Debug)]
pub struct Memory {
    pointer: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<Context>,
}

impl Memory {
    /// The address on the device.
    pub fn pointer(&self) -> sys::CUdeviceptr {
        self.pointer
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from main memory, in the order of the stream. The source may be reused at once.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub fn write<V: Copy>(&self, values: &[V]) -> Result<()> {
        self.fits("copied to", size_of_val(values))?;
        self.context.bind()?;
        // SAFETY: the source is read before the call returns (pageable memory is staged), the target is large enough.
        unsafe { result::memcpy_htod_async(self.pointer, values, self.context.stream) }
            .map_err(|cause| self.context.failed("be copied to", cause))?;
        // Staging of large copies may go on: the caller's memory must outlive it.
        self.context.synchronize()
    }

    /// Copies the first elements to main memory, after everything before it on the stream.
    ///
    /// # Errors
    /// When there are not so many, or the device fails.
    pub fn read<V: Copy + Default>(&self, count: usize) -> Result<Vec<V>> {
        let mut values = vec![V::default(); count];
        self.fits("copied from", size_of_val(values.as_slice()))?;
        self.context.bind()?;
        // SAFETY: the target lives until the synchronisation below, and the source is large enough.
        unsafe { result::memcpy_dtoh_async(&mut values, self.pointer, self.context.stream) }
            .map_err(|cause| self.context.failed("be copied from", cause))?;
        self.context.synchronize()?;
        Ok(values)
    }

    fn fits(&self, doing: &str, bytes: usize) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(Error::shape(format!("{bytes} bytes cannot be {doing} {} bytes on the device", self.bytes)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.context.held.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.context.bind().is_ok() {
            // SAFETY: it was allocated once, and the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Page-locked main memory that the device writes while the host goes on.
#[derive(Debug)]
pub struct Pinned {
    pointer: *mut c_void,
    words: usize,
    context: Arc<Context>,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Room for `words` words of 32 bits.
    ///
    /// # Errors
    /// When the system does not lock so much.
    pub fn new(context: &Arc<Context>, words: usize) -> Result<Pinned> {
        context.bind()?;
        // SAFETY: freed once, in `drop`; zeroed before it is read.
        let pointer = unsafe { result::malloc_host(words.max(1) * 4, 0) }
            .map_err(|cause| context.failed("share main memory", cause))?;
        // SAFETY: as many bytes were given.
        unsafe { pointer.cast::<u8>().write_bytes(0, words.max(1) * 4) };
        Ok(Pinned { pointer, words, context: context.clone() })
    }

    /// Starts a copy of words `first ..` of `memory` to the same place here; it is done when an event after it is.
    ///
    /// # Errors
    /// When either has not so many, or the device fails.
    pub fn fetch(&mut self, memory: &Memory, first: usize, count: usize) -> Result<()> {
        if first + count > self.words || (first + count) * 4 > memory.bytes {
            return Err(Error::shape(format!("fetch of words {first} .. {} of {}", first + count, self.words)));
        }
        // SAFETY: both ranges were checked; the words are read after the event only, see `words`.
        unsafe {
            let target = std::slice::from_raw_parts_mut(self.pointer.cast::<u32>().add(first), count);
            result::memcpy_dtoh_async(target, memory.pointer + first as u64 * 4, self.context.stream)
        }
        .map_err(|cause| self.context.failed("be copied from", cause))
    }

    /// The words, of which those are good whose copy is done.
    pub fn words(&self, first: usize, count: usize) -> Vec<u32> {
        (first..(first + count).min(self.words))
            // SAFETY: inside the allocation; volatile, since the device writes other words meanwhile.
            .map(|i| unsafe { self.pointer.cast::<u32>().add(i).read_volatile() })
            .collect()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: no copy into it is under way after the synchronisation; it was allocated once.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}
