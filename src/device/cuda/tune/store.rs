//! Choices kept on disk, so that only the first start tunes: one small file a problem, beside the kernel cache.
//!
//! A file's name is a hash of all that the choice depends on, and its second line says it in words: the problem (kernel,
//! precision, shape, variant), the GPU's name, compute capability and multiprocessors, the versions of driver and NVRTC, a hash of the kernel's
//! text and its headers, the candidates. What is damaged or of another origin is not believed; a folder that cannot be written
//! is a warning.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Problem;
use crate::{
    Error,
    device::cuda::{
        cache::{Cache, Kept, Kind},
        driver::Gpu,
        sources::{fingerprint, hex},
    },
};

/// What is known of a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The fastest tile.
    pub(super) tile: String,
    /// Candidates that were timed, the rules' choice among them; 0 while they are being tried.
    pub(super) timed: usize,
    /// Microseconds of the rules' choice.
    pub(super) rule_us: f64,
    /// Microseconds of the fastest.
    pub(super) tile_us: f64,
    /// What finding out took, in ms.
    pub(super) ms: f64,
}

/// What there is of a problem.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A choice.
    Entry(Entry),
    /// Nothing.
    Nothing,
    /// A file that is not to be believed.
    Damaged(PathBuf),
    /// A file that says that the problem is being tried.
    Unfinished(PathBuf),
}

/// Choices on disk, of one GPU, driver and compiler.
#[derive(Debug)]
pub(super) struct Store {
    cache: Cache,
    machine: String,
}

impl Store {
    pub(super) fn of_user(gpu: &Gpu, driver: (i32, i32), nvrtc: (i32, i32)) -> Store {
        Store::new(Cache::of_user(Kind::Tiles), gpu, driver, nvrtc)
    }

    pub(super) fn new(cache: Cache, gpu: &Gpu, driver: (i32, i32), nvrtc: (i32, i32)) -> Store {
        let (major, minor) = gpu.capability;
        let machine = format!(
            "{} sm_{major}{minor} x{} driver-{}.{} nvrtc-{}.{}",
            gpu.name, gpu.multiprocessors, driver.0, driver.1, nvrtc.0, nvrtc.1
        );
        Store { cache, machine }
    }

    /// What is remembered of a problem with these candidates.
    pub(super) fn get(&self, problem: Problem, candidates: &[String]) -> Found {
        let key = self.key(problem, candidates);
        match self.cache.read(&name(problem, &key), &key) {
            Kept::Nothing => Found::Nothing,
            Kept::Damaged(path) => Found::Damaged(path),
            Kept::Whole(path, body) => match serde_json::from_slice::<Entry>(&body) {
                Ok(entry) if entry.timed == 0 => Found::Unfinished(path),
                Ok(entry) => Found::Entry(entry),
                Err(_) => Found::Damaged(path),
            },
        }
    }

    /// Remembers it. That it cannot be kept is no error: see [`Store::take_warning`].
    pub(super) fn put(&self, problem: Problem, candidates: &[String], entry: &Entry) {
        let key = self.key(problem, candidates);
        // A struct of strings and numbers is always JSON.
        if let Ok(body) = serde_json::to_vec(entry) {
            self.cache.keep(&name(problem, &key), &key, &body);
        }
    }

    /// Forgets it.
    pub(super) fn forget(&self, problem: Problem, candidates: &[String]) {
        let key = self.key(problem, candidates);
        self.cache.remove(&name(problem, &key));
    }

    pub(super) fn take_warning(&self) -> Option<Error> {
        self.cache.take_warning()
    }

    /// All that a choice depends on, in one line.
    fn key(&self, problem: Problem, candidates: &[String]) -> String {
        let sources = fingerprint(problem.file).unwrap_or_default();
        format!("{problem} on {}, {sources} of {}", self.machine, candidates.join(", "))
    }
}

/// `hopper_swiglu_forward-0123456789abcdef0123456789abcdef.tile`.
fn name(problem: Problem, key: &str) -> String {
    format!("{}-{}.tile", problem.file.trim_end_matches(".cu"), &hex(&Sha256::digest(key))[..32])
}
