//! Threads for parallel regions of microseconds.
//!
//! A step of training is some fifteen regions of 5 to 100 us, one after the other. A pool made for longer tasks lets threads
//! sleep between two regions, and waking fifteen of them takes as long as a region. Here the caller is one of the threads, and
//! the others watch one word for the next region: first without a pause, then giving way to other threads, and only after
//! `PATIENCE` do they sleep. A region begins when the caller changes that word, and ends when all its tasks are done: a thread
//! that comes late, because it slept or something else runs on its core, is not waited for.
//!
//! Tasks are dealt out beforehand, each thread the same consecutive ones each time, so that a thread finds in its cache the
//! rows of a weight that it saw a step ago; who is done helps the others. Which thread runs a task changes no result.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread looks for the next region without a pause, and then giving way, before it sleeps. Between two regions of a
/// step lie microseconds, between two epochs milliseconds.
const SPIN: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_millis(2);

/// The word that threads watch: how many are inside the region in hand, whether it is open, and its number.
const INSIDE: usize = (1 << 20) - 1;
const OPEN: usize = 1 << 20;
const NEXT: usize = 1 << 21;

/// Alone on its cache line, or the threads that use its neighbours would wait for each other.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Alone<T>(T);

/// The tasks of a thread that nobody has taken yet.
#[derive(Debug, Default)]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

/// A task by its number. The lifetime is that of a call of [`Pool::run`], which ends after the last use.
type Task = *const (dyn Fn(usize) + Sync + 'static);

struct Shared {
    word: Alone<AtomicUsize>,
    shares: Vec<Alone<Share>>,
    /// What the open region runs; written while no thread is inside.
    task: UnsafeCell<Option<Task>>,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// How many threads sleep, and where.
    asleep: AtomicUsize,
    bed: (Mutex<()>, Condvar),
    ending: AtomicBool,
    /// Whether there is a core for each thread: else one that waits takes the time of one that works.
    spins: bool,
}

// SAFETY: `task` is written by the thread that holds `Pool::busy`, while nobody is inside a region, and read by threads that have
// come in; what it points to may be shared (it is `Sync`).
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Threads that wait for work. The thread that brings it works too.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Whether a region is under way: another one, from a task or another thread, then runs where it is asked for.
    busy: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool of {} threads", self.threads())
    }
}

impl Pool {
    /// `threads` threads, of which the caller's will be one.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> io::Result<Pool> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut pool = Pool {
            shared: Arc::new(Shared {
                word: Alone::default(),
                shares: (0..threads.max(1)).map(|_| Alone::default()).collect(),
                task: UnsafeCell::new(None),
                panic: Mutex::new(None),
                asleep: AtomicUsize::new(0),
                bed: (Mutex::new(()), Condvar::new()),
                ending: AtomicBool::new(false),
                spins: threads <= cores,
            }),
            workers: Vec::new(),
            busy: AtomicBool::new(false),
        };
        for index in 1..threads {
            let shared = pool.shared.clone();
            // A failure drops the pool, which ends the threads that were started.
            pool.workers
                .push(thread::Builder::new().name(format!("cpu-{index}")).spawn(move || shared.wait_and_help(index))?);
        }
        Ok(pool)
    }

    /// How many threads share the work.
    pub fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// Calls `task` with 0..`count`, each exactly once, spread over the threads; inside another region, on this thread alone.
    ///
    /// # Panics
    /// When a task does, after all others are done.
    pub fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.threads() == 1 || self.busy.swap(true, Acquire) {
            (0..count).for_each(task);
            return;
        }
        let shared = &*self.shared;
        let threads = self.threads();
        for (index, Alone(share)) in shared.shares.iter().enumerate() {
            share.next.store(index * count / threads, Relaxed);
            share.end.store((index + 1) * count / threads, Relaxed);
        }
        // SAFETY: only the lifetime changes, and nobody uses it after this function: see `close`.
        let task: Task = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: nobody is inside, so nobody reads it.
        unsafe { *shared.task.get() = Some(task) };
        // Adding keeps the count of those who came in too late for the last region and are on their way out.
        shared.word.0.fetch_add(NEXT | OPEN, SeqCst);
        if shared.asleep.load(SeqCst) > 0 {
            // Whoever is about to sleep holds the lock until it does, and looks at the word once more before.
            drop(shared.bed.0.lock().unwrap_or_else(PoisonError::into_inner));
            shared.bed.1.notify_all();
        }
        shared.help(0, task);
        self.close();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Lets nobody in any more, and waits for those inside: all tasks are taken, so that all are done when they are out.
    fn close(&self) {
        let word = &self.shared.word.0;
        word.fetch_sub(OPEN, AcqRel);
        let mut waited = Waiting::new(self.shared.spins);
        while word.load(Acquire) & INSIDE > 0 {
            waited.a_little();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ending.store(true, SeqCst);
        drop(self.shared.bed.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.bed.1.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of a thread.
    fn wait_and_help(&self, index: usize) {
        let mut seen = 0;
        let mut waited = Waiting::new(self.spins);
        while !self.ending.load(Relaxed) {
            let word = self.word.0.load(Acquire);
            if word & OPEN == 0 || word / NEXT == seen {
                if waited.a_little() {
                    self.sleep(seen);
                    waited = Waiting::new(self.spins);
                }
                continue;
            }
            let word = self.word.0.fetch_add(1, AcqRel);
            if word & OPEN > 0 {
                seen = word / NEXT;
                // SAFETY: the region is open and counts this thread: `task` stays until it has left.
                if let Some(task) = unsafe { *self.task.get() } {
                    self.help(index, task);
                }
            }
            self.word.0.fetch_sub(1, Release);
            waited = Waiting::new(self.spins);
        }
    }

    /// Runs the tasks of thread `index`, then those that others have not come to.
    fn help(&self, index: usize, task: Task) {
        for turn in 0..self.shares.len() {
            let Alone(share) = &self.shares[(index + turn) % self.shares.len()];
            let end = share.end.load(Relaxed);
            // A look before a claim: most shares of others are empty, and a look does not take their line away.
            while share.next.load(Relaxed) < end {
                let number = share.next.fetch_add(1, Relaxed);
                if number >= end {
                    break;
                }
                // SAFETY: `run` does not return before this thread has left the region.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)(number) })) {
                    self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
            }
        }
    }

    /// Sleeps until there is a region after number `seen`, or the end.
    fn sleep(&self, seen: usize) {
        let mut bed = self.bed.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, SeqCst);
        loop {
            let word = self.word.0.load(SeqCst);
            if (word & OPEN > 0 && word / NEXT != seen) || self.ending.load(SeqCst) {
                break;
            }
            bed = self.bed.1.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, SeqCst);
    }
}

/// A wait that becomes more patient.
struct Waiting {
    looks: u32,
    spins: bool,
    began: Option<Instant>,
}

impl Waiting {
    /// One that has just begun.
    fn new(spins: bool) -> Waiting {
        Waiting { looks: 0, spins, began: None }
    }

    /// Waits for less than a microsecond, or lets another thread run; true when patience is over.
    fn a_little(&mut self) -> bool {
        // The clock is read now and then: a look at the word takes less time than that.
        self.looks = self.looks.wrapping_add(1);
        if self.spins && !self.looks.is_multiple_of(16) {
            spin_loop();
            return false;
        }
        let waited = self.began.get_or_insert_with(Instant::now).elapsed();
        if !self.spins || waited > SPIN {
            thread::yield_now();
        }
        waited > if self.spins { PATIENCE } else { SPIN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &Pool, count: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        pool.run(count, &|i| {
            counts[i].fetch_add(1, Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_task_runs_exactly_once_for_any_number_of_threads_and_tasks() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 3, 7, 8, 100, 1001] {
                assert_eq!(counts(&pool, count), vec![1; count], "{threads} threads");
            }
        }
    }

    #[test]
    fn many_regions_one_after_the_other_lose_no_task() {
        let pool = Pool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for region in 0..20_000 {
            pool.run(5, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 10 * (region + 1), "all tasks are done when a region ends");
        }
    }

    #[test]
    fn threads_that_fell_asleep_are_woken() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            thread::sleep(PATIENCE * 5);
            let meeting = std::sync::Barrier::new(3);
            // Three tasks that wait for each other: no two can run on one thread.
            pool.run(3, &|_| {
                meeting.wait();
            });
        }
    }

    #[test]
    fn a_region_inside_another_runs_on_its_thread() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(4, &|i| {
            pool.run(10, &|j| {
                sum.fetch_add(10 * i + j, Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 780);
    }

    #[test]
    fn callers_on_several_threads_share_a_pool() {
        let pool = Pool::new(3).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..200).for_each(|_| assert_eq!(counts(&pool, 17), [1; 17])));
            }
        });
    }

    #[test]
    fn a_panic_comes_out_after_the_other_tasks_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(9, &|i| {
                assert!(i != 4, "task four");
                done.fetch_add(1, Relaxed);
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(done.into_inner(), 8);
        assert_eq!(counts(&pool, 9), [1; 9]);
    }
}
