//! The CPU: a pool of threads, an instruction set, and the operations of the network around the SwiGLU layer.

pub mod gemm;
pub mod linear;
pub mod ops;
pub mod pool;
pub mod simd;
pub mod tile;
pub mod weight_grad;

use std::{cell::RefCell, marker::PhantomData, sync::Arc};

use crate::{Error, Kind, Result, tensor::AlignedVec};
use pool::Pool;
use simd::Isa;

/// The threads and the instruction set that kernels run with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<Pool>,
    isa: Isa,
}

impl Cpu {
    /// `threads` threads; by default as many as `RAYON_NUM_THREADS` says, or one a core.
    ///
    /// # Errors
    /// When `RAYON_NUM_THREADS` is not a number, or the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Cpu> {
        let threads = match threads {
            Some(n) => n,
            None => threads_from_environment()?,
        };
        Self::with_isa(threads, Isa::detect()?)
    }

    /// `threads` threads that use the instruction set `isa`, which must be one of [`Isa::available`].
    ///
    /// # Errors
    /// When it is not, or the threads cannot be started.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu> {
        if !Isa::available().contains(&isa) {
            return Err(Error::new(Kind::Device, format!("this processor has no {}", isa.name())));
        }
        let pool = Pool::new(threads).map_err(|e| {
            Error::new(Kind::Device, format!("cannot start {threads} CPU threads"))
                .because(e)
                .hint("ask for fewer with --threads N")
        })?;
        Ok(Cpu { pool: Arc::new(pool), isa })
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `task` with 0..`count`, each exactly once, spread over the threads.
    pub fn for_each(&self, count: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(count, &task);
    }
}

/// `RAYON_NUM_THREADS`, or the number of cores when it is not set or 0.
fn threads_from_environment() -> Result<usize> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let Some(text) = std::env::var_os("RAYON_NUM_THREADS") else { return Ok(cores()) };
    match text.to_str().and_then(|t| t.parse::<usize>().ok()) {
        Some(0) => Ok(cores()),
        Some(n) if n <= 4096 => Ok(n),
        _ => Err(Error::usage(format!("RAYON_NUM_THREADS={} is not a number of threads", text.display()))
            .hint("set it to a whole number up to 4096, or use --threads N")),
    }
}

/// The processor's name, where the system tells.
pub fn model_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of main memory that this process can still get, swap included, where the system tells: Linux, and of its containers
/// the limit of the control group.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let free = meminfo(&info, "MemAvailable")? + meminfo(&info, "SwapFree").unwrap_or(0);
    let of_group =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok()?.trim().parse::<u64>().ok();
    // A group's `max` is the word "max" when there is no limit.
    let left = of_group("max").zip(of_group("current")).map(|(limit, used)| limit.saturating_sub(used));
    Some(left.map_or(free, |left| left.min(free)))
}

/// Bytes of the entry `name` in the text of /proc/meminfo.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        (key == name).then(|| kib.saturating_mul(1024))
    })
}

/// A slice that tasks write disjoint parts of.
pub struct SharedMut<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it gives out pointers alone; whoever writes through one vouches that no other task touches those elements.
unsafe impl Sync for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    /// Borrows the slice for as long as tasks write to it.
    pub fn new(slice: &'a mut [f32]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The address of element `index`, which must be in the slice (or just past its end).
    pub fn at(&self, index: usize) -> *mut f32 {
        debug_assert!(index <= self.len, "{index} is beyond {}", self.len);
        // SAFETY: inside the borrowed slice, by the contract above.
        unsafe { self.start.add(index) }
    }

    /// Elements `from..from + len`.
    ///
    /// # Safety
    /// They are in the slice, and no other task reads or writes them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        debug_assert!(from + len <= self.len);
        // SAFETY: in bounds and not shared, as the caller vouches.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

thread_local! {
    /// One buffer a thread that packed panels are written to; it grows to the largest that was asked for.
    static SCRATCH: RefCell<AlignedVec> = RefCell::new(AlignedVec::default());
    /// Buffers that one thread lends to the tasks of all, the one lent last at the end.
    static SHARED: RefCell<Vec<AlignedVec>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` elements of this thread's buffer; what is in them is not defined.
pub fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|buffer| {
        buffer.grow(len);
        work(&mut buffer.as_mut_slice()[..len])
    })
}

/// Lends `len` elements that `work` may share between the tasks it starts; what is in them is not defined. Whoever asks again
/// inside gets another buffer, the same one each time.
pub fn with_shared_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = SHARED.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.grow(len);
    let result = work(&mut buffer.as_mut_slice()[..len]);
    SHARED.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}
