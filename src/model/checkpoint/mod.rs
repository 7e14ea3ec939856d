//! Checkpoints: what training needs to go on exactly where it stopped, and what inference needs of it.
//!
//! A run's folder holds two files of the safetensors format:
//!
//! | file | what it holds |
//! |---|---|
//! | `checkpoint.safetensors` | the weights, the configuration, the position in training, the name of the other file |
//! | `optimizer-<global step>.safetensors` | the velocities, under the names of the weights |
//!
//! The optimiser's file is written first, under a name of its own; then the checkpoint that names it replaces the one
//! before; then older optimiser files are removed. A kill at any moment leaves a checkpoint whose optimiser file is there.
//!
//! Weights are called `stem.weight`, `stem.bias`, `layers.N.gate.weight`, `layers.N.up.weight`, `head.weight`,
//! `head.bias`, (out, in) as PyTorch's `nn.Linear` keeps them, whichever implementation trained them.

mod archive;
pub mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Kind, Result, atomic};
use archive::Archive;

/// The file with the weights, in a run's folder.
pub const CHECKPOINT_FILE: &str = "checkpoint.safetensors";

/// A tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes, the slowest dimension first.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub data: Vec<f32>,
}

/// Tensors by name.
pub type Arrays = BTreeMap<String, Array>;

/// How far training has come, and what the epoch in progress has added up so far: an epoch that was interrupted ends
/// with the very same training loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Epochs completed.
    pub epoch: u32,
    /// Steps done inside the epoch in progress; 0 at the end of an epoch.
    pub step: u64,
    /// Steps done since training began.
    pub global_step: u64,
    /// Sum of the loss over the images of the epoch in progress.
    pub loss_sum: f64,
    /// Images of the epoch in progress that were trained on.
    pub images_seen: u64,
    /// Training time of the epoch in progress, in milliseconds.
    pub train_ms: f64,
}

/// Everything that training needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The configuration of the run, as JSON: this module does not look inside. See [`parse_config`].
    pub config: serde_json::Value,
    /// How far training had come.
    pub position: Position,
    /// The weights.
    pub weights: Arrays,
    /// The velocities of momentum, under the names of the weights; none for SGD without momentum.
    pub velocities: Option<Arrays>,
}

/// What inference needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The weights.
    pub weights: Arrays,
    /// The configuration of the run; none in a safetensors file that another program wrote.
    pub config: Option<serde_json::Value>,
    /// How far training had come; none in a file that another program wrote.
    pub position: Option<Position>,
    /// The file that was read.
    pub path: PathBuf,
}

/// Saves `checkpoint` in the folder `dir`, in place of the one before.
///
/// # Errors
/// [`Kind::Diverged`] when a value is not finite: the checkpoint on disk stays the last good one. [`Kind::Io`] when the
/// disk fails.
pub fn save(dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    refuse_non_finite(dir, &checkpoint.weights, "weights")?;
    atomic::remove_stale(dir)?;
    let optimizer = match &checkpoint.velocities {
        Some(velocities) => {
            refuse_non_finite(dir, velocities, "velocities")?;
            let name = optimizer_name(checkpoint.position.global_step);
            Archive::optimizer(checkpoint.position.global_step).write(&dir.join(&name), velocities)?;
            Some(name)
        }
        None => None,
    };
    Archive::checkpoint(&checkpoint.config, &checkpoint.position, optimizer.as_deref())?
        .write(&dir.join(CHECKPOINT_FILE), &checkpoint.weights)?;
    remove_other_optimizers(dir, optimizer.as_deref())
}

/// Loads what training needs to go on; `path` is a run's folder or its checkpoint.
///
/// # Errors
/// [`Kind::Checkpoint`] when a file is missing, damaged, of another program or of another moment in training.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let file = checkpoint_file(path)?;
    let (archive, weights) = Archive::read(&file)?;
    archive.require_own(&file)?;
    let velocities = match archive.optimizer_name(&file)? {
        Some(name) => Some(load_optimizer(&file, &name, archive.position(&file)?.global_step, &weights)?),
        None => None,
    };
    Ok(Checkpoint { config: archive.config(&file)?, position: archive.position(&file)?, weights, velocities })
}

/// Loads what inference needs; `path` is a run's folder or a safetensors file, of this program or of another one.
///
/// # Errors
/// [`Kind::Checkpoint`] when the file is missing or damaged.
pub fn load_weights_only(path: &Path) -> Result<Weights> {
    let file = checkpoint_file(path)?;
    let (archive, weights) = Archive::read(&file)?;
    let own = archive.is_own();
    Ok(Weights {
        config: own.then(|| archive.config(&file)).transpose()?,
        position: own.then(|| archive.position(&file)).transpose()?,
        weights,
        path: file,
    })
}

/// The configuration in a checkpoint as the type it was saved from; `path` is for the error.
pub fn parse_config<T: DeserializeOwned>(config: &serde_json::Value, path: &Path) -> Result<T> {
    T::deserialize(config).map_err(|source| {
        archive::broken(path, "its configuration is not one of this program")
            .hint("load it with the version of mnist-swiglu that wrote it")
            .because(source)
    })
}

/// The checkpoint that `path`, a run's folder or a file, means.
pub fn checkpoint_file(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join(CHECKPOINT_FILE) } else { path.to_path_buf() };
    if file.is_file() {
        return Ok(file);
    }
    Err(if path.is_dir() {
        Error::new(Kind::Checkpoint, format!("{} holds no {CHECKPOINT_FILE}", path.display()))
            .hint("give the folder of a run that saved a checkpoint, or a .safetensors file")
    } else {
        Error::new(Kind::Checkpoint, format!("there is no {}", path.display()))
            .hint("give a run's folder (reports/runs/...) or a .safetensors file")
    })
}

/// The velocities that belong to the checkpoint `file` at `global_step`.
fn load_optimizer(file: &Path, name: &str, global_step: u64, weights: &Arrays) -> Result<Arrays> {
    let path = file.with_file_name(name);
    if !path.is_file() {
        return Err(archive::broken(file, &format!("its optimiser file {name} is missing beside it"))
            .hint("training cannot go on without it: copy both files; eval and predict need the checkpoint alone"));
    }
    let (archive, velocities) = Archive::read(&path)?;
    archive.require_own(&path)?;
    let step = archive.global_step(&path)?;
    if step != global_step {
        return Err(archive::broken(&path, &format!("it is of step {step}, its checkpoint of step {global_step}"))
            .hint("the two files are of different moments: copy the run's folder again, as a whole"));
    }
    let expected: Vec<_> = weights.iter().map(|(name, array)| (name.clone(), array.shape.clone())).collect();
    names::check(&velocities, &expected, &path)?;
    Ok(velocities)
}

fn optimizer_name(global_step: u64) -> String {
    format!("optimizer-{global_step}.safetensors")
}

/// Whether `name` is one that [`optimizer_name`] makes.
fn is_optimizer_name(name: &str) -> bool {
    name.strip_prefix("optimizer-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .is_some_and(|step| !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes the optimiser files that no checkpoint names any more.
fn remove_other_optimizers(dir: &Path, keep: Option<&str>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|source| Error::io("list", dir, source))? {
        let entry = entry.map_err(|source| Error::io("list", dir, source))?;
        let old = entry.file_name().to_str().is_some_and(|name| is_optimizer_name(name) && Some(name) != keep);
        if old {
            match fs::remove_file(entry.path()) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &entry.path(), source));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn refuse_non_finite(dir: &Path, arrays: &Arrays, what: &str) -> Result<()> {
    match names::first_non_finite(arrays) {
        Some((name, value)) => Err(Error::new(
            Kind::Diverged,
            format!(
                "no checkpoint saved in {}: {what} {name} hold {value}",
                dir.display()
            ),
        )
        .hint("training diverged: try a smaller --lr, a longer --warmup, or --clip-norm 1; an earlier checkpoint is untouched")),
        None => Ok(()),
    }
}
