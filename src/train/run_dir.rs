//! The folder of a run: its configuration, metrics, checkpoint and chart. One process at a time trains in it, and
//! nothing that an earlier run left is ever overwritten.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{config::Config, metrics_log::MetricsLog};
use crate::{
    Error, Kind, Result, atomic, clock,
    model::checkpoint::{self, CHECKPOINT_FILE, Checkpoint, Position},
};

/// Where runs go without `--out`.
pub const RUNS: &str = "reports/runs";

const LOCK_FILE: &str = "run.lock";

/// `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Version of the program that started the run.
    pub version: String,
    /// When the run was started, in UTC: `2026-11-22T15:56:47Z`.
    pub created: String,
    /// Everything that decides its losses.
    pub configuration: Config,
}

/// The folder of a run, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for as long as this value lives; the system lets go of it when the process dies, however it dies.
    _lock: File,
}

impl RunDir {
    /// A new folder: `out`, which must be absent or empty, or else a new one under `reports/runs/`, named for the time
    /// (UTC), the implementation and the device.
    ///
    /// # Errors
    /// [`Kind::Usage`] when `out` holds something.
    pub fn create(out: Option<PathBuf>, swiglu: &str, device: &str) -> Result<Self> {
        let path = match out {
            Some(path) => {
                require_empty(&path)?;
                create_dir_all(&path)?;
                path
            }
            None => new_folder(Path::new(RUNS), SystemTime::now(), swiglu, device)?,
        };
        let run = Self::lock(path)?;
        // Another process may have trained here between the look and the lock.
        require_empty(&run.path)?;
        Ok(run)
    }

    /// The folder of an earlier run, to go on with it.
    ///
    /// # Errors
    /// [`Kind::Checkpoint`] when it is not a run's folder or another process trains in it.
    pub fn open(path: &Path) -> Result<Self> {
        let run_file = |name: &str| path.join(name).is_file();
        if !run_file("config.json") && !run_file(CHECKPOINT_FILE) {
            let what = if path.is_dir() {
                "it holds no config.json, so it is not a run's folder"
            } else {
                "there is no such folder"
            };
            return Err(Error::new(Kind::Checkpoint, format!("cannot go on with {}: {what}", path.display()))
                .hint("give a folder that `train` made, such as one under reports/runs/"));
        }
        Self::lock(path.to_path_buf())
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let file = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(|source| Error::io("open the lock", &file, source).hint("is the folder writable?"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::Checkpoint, format!("another process is training in {}", path.display()))
                    .hint("wait for it, stop it, or give another folder with --out"));
            }
            Err(TryLockError::Error(source)) if source.kind() == io::ErrorKind::Unsupported => {
                // Some network file systems have no locks: a run there is better than none.
            }
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &file, source)),
        }
        Ok(RunDir { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        metrics_path(&self.path)
    }

    /// `checkpoint.safetensors`.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.path.join(CHECKPOINT_FILE)
    }

    /// `curves.<extension>`: the chart of the run.
    pub fn curves_path(&self, extension: &str) -> PathBuf {
        self.path.join(format!("curves.{extension}"))
    }

    /// Writes `config.json`.
    pub fn write_config(&self, configuration: &Config) -> Result<()> {
        use io::Write;
        let config = RunConfig {
            version: env!("CARGO_PKG_VERSION").into(),
            created: clock::rfc3339(SystemTime::now()),
            configuration: configuration.clone(),
        };
        atomic::write_atomic(&self.config_path(), |file| {
            serde_json::to_writer_pretty(&mut *file, &config)?;
            file.write_all(b"\n")
        })
    }

    /// Reads `config.json`.
    pub fn read_config(&self) -> Result<RunConfig> {
        read_config(&self.path)
    }

    /// Saves a checkpoint in place of the one before. Events that it covers must have been written before.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint::save(&self.path, checkpoint)
    }

    /// Loads the checkpoint.
    pub fn load(&self) -> Result<Checkpoint> {
        checkpoint::load(&self.path)
    }

    /// The metrics of a new run, empty.
    pub fn new_metrics(&self) -> Result<MetricsLog> {
        MetricsLog::create(&self.metrics_path())
    }

    /// The metrics of a run that goes on at `position`, without what was written after it.
    pub fn resume_metrics(&self, position: &Position) -> Result<MetricsLog> {
        MetricsLog::resume(&self.metrics_path(), position)
    }
}

/// Reads the `config.json` of the run in `dir`.
pub fn read_config(dir: &Path) -> Result<RunConfig> {
    let path = dir.join("config.json");
    let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| {
        Error::new(Kind::Checkpoint, format!("{} is not the configuration of a run", path.display()))
            .hint("it was edited, or written by another version; the checkpoint holds the configuration as well")
            .because(source)
    })
}

/// The metrics of the run in `dir`.
pub fn metrics_path(dir: &Path) -> PathBuf {
    dir.join("metrics.jsonl")
}

/// The run under `runs` whose checkpoint is the newest.
pub fn newest(runs: &Path) -> Result<PathBuf> {
    let missing = || {
        Error::new(Kind::Checkpoint, format!("there is no run with a checkpoint under {}", runs.display()))
            .hint("train one with `mnist-swiglu train`, or name a checkpoint")
    };
    fs::read_dir(runs)
        .map_err(|source| missing().because(source))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let saved = path.join(CHECKPOINT_FILE).metadata().ok()?.modified().ok()?;
            Some((saved, path))
        })
        .max()
        .map(|(_, path)| path)
        .ok_or_else(missing)
}

/// Makes a folder under `runs` that was not there.
fn new_folder(runs: &Path, now: SystemTime, swiglu: &str, device: &str) -> Result<PathBuf> {
    create_dir_all(runs)?;
    let stem = format!("{}-{}-{}", clock::compact(now), plain(swiglu), plain(device));
    for number in 1_u32.. {
        let name = if number == 1 { stem.clone() } else { format!("{stem}-{number}") };
        let path = runs.join(name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("make the folder", &path, source)),
        }
    }
    Err(Error::new(Kind::Io, format!("every folder name {stem}-N is taken")))
}

/// `text` with everything that a file name should not hold replaced.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| {
        Error::io("make the folder", path, source).hint("give a folder that you may write to with --out")
    })
}

/// An error when `path` holds anything but a lock that a run left before it wrote anything.
fn require_empty(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) if source.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::usage(format!("--out {} is a file", path.display())).hint("give the name of a folder"));
        }
        Err(source) => return Err(Error::io("look into", path, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("look into", path, source))?;
        if entry.file_name() != LOCK_FILE {
            return Err(Error::usage(format!(
                "--out {} is not empty: it holds {}",
                path.display(),
                entry.file_name().to_string_lossy()
            ))
            .hint("give a new or empty folder; to go on with a run, use --resume"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Folder;

    #[test]
    fn folders_are_named_for_time_implementation_and_device_and_never_shared() {
        let folder = Folder::new("run-names");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_363_007);
        for _ in 0..3 {
            new_folder(folder.path(), now, "fused-frozen", "cuda:0").unwrap();
        }
        assert_eq!(
            folder.names(),
            [
                "20261122-155647-fused-frozen-cuda-0",
                "20261122-155647-fused-frozen-cuda-0-2",
                "20261122-155647-fused-frozen-cuda-0-3"
            ]
        );
    }
}
