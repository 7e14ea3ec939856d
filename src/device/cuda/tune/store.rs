//! Choices kept on disk, so that only the first start tunes: one small file a problem beside the kernel cache.
//!
//! A file's name is a hash of all that the choice depends on: the GPU's name, NVRTC's version, the kernel's text and its
//! headers, the problem, the candidates. A damaged file is tuned again; a folder that cannot be written is a warning.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Problem;
use crate::{
    Error,
    device::cuda::{
        cache::{Cache, Kind},
        sources::{fingerprint, hex},
    },
};

/// What is known of a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The fastest tile.
    pub(super) tile: String,
    /// Candidates that were timed; 0 when the process ended before any was.
    pub(super) timed: usize,
    /// Microseconds of the rules' choice.
    pub(super) rule_us: f64,
    /// Microseconds of the fastest.
    pub(super) tile_us: f64,
    /// What finding out took.
    pub(super) ms: f64,
}

/// Choices on disk, of one GPU and compiler.
#[derive(Debug)]
pub(super) struct Store {
    cache: Cache,
    gpu: String,
    nvrtc: (i32, i32),
}

impl Store {
    pub(super) fn of_user(gpu: &str, nvrtc: (i32, i32)) -> Store {
        Store::new(Cache::of_user(Kind::Tiles), gpu, nvrtc)
    }

    pub(super) fn new(cache: Cache, gpu: &str, nvrtc: (i32, i32)) -> Store {
        Store { cache, gpu: gpu.into(), nvrtc }
    }

    /// What is remembered of a problem with these candidates.
    pub(super) fn get(&self, problem: Problem, candidates: &[String]) -> Option<Entry> {
        let key = self.key(problem, candidates);
        serde_json::from_slice(&self.cache.read(&name(problem, &key), &key)?).ok()
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
        let (major, minor) = self.nvrtc;
        format!("{problem} on {}, nvrtc-{major}.{minor} {sources} of {}", self.gpu, candidates.join(", "))
    }
}

/// `hopper_swiglu_forward-0123456789abcdef0123456789abcdef.tile`.
fn name(problem: Problem, key: &str) -> String {
    format!("{}-{}.tile", problem.file.trim_end_matches(".cu"), &hex(&Sha256::digest(key))[..32])
}
