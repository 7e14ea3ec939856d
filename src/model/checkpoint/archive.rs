//! One safetensors file: tensors, and metadata that says who wrote it, when in training, and what its bytes add up to.
//!
//! The format itself has no checksum, and a flipped bit of a weight is a weight: `sha256` in the metadata covers every
//! other entry of it and every tensor's name, shape and bytes.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    path::Path,
};

use safetensors::{Dtype, SafeTensors, View};
use sha2::{Digest, Sha256};

use super::{Array, Arrays, Position, is_optimizer_name, names};
use crate::{Error, Kind, Result, atomic};

/// Raised when an older program could not read the file correctly.
const FORMAT_VERSION: u32 = 1;
const PROGRAM: &str = "mnist-swiglu";

/// The metadata of a file.
pub(super) struct Archive {
    entries: BTreeMap<String, String>,
}

impl Archive {
    fn new() -> Self {
        let entries = [
            ("program", PROGRAM.to_owned()),
            ("program_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("format_version", FORMAT_VERSION.to_string()),
        ];
        Archive { entries: entries.map(|(key, value)| (key.to_owned(), value)).into() }
    }

    fn with(mut self, key: &str, value: String) -> Self {
        self.entries.insert(key.to_owned(), value);
        self
    }

    /// Metadata of the file with the weights.
    pub(super) fn checkpoint(config: &serde_json::Value, position: &Position, optimizer: Option<&str>) -> Result<Self> {
        let position = serde_json::to_string(position)
            .map_err(|source| Error::new(Kind::Checkpoint, "cannot write the position in training").because(source))?;
        let archive = Self::new().with("config", config.to_string()).with("position", position);
        Ok(match optimizer {
            Some(name) => archive.with("optimizer", name.to_owned()),
            None => archive,
        })
    }

    /// Metadata of the file with the velocities.
    pub(super) fn optimizer(global_step: u64) -> Self {
        Self::new().with("global_step", global_step.to_string())
    }

    /// Puts the file in place, whole or not at all.
    pub(super) fn write(self, path: &Path, arrays: &Arrays) -> Result<()> {
        names::check_lengths(arrays)?;
        let tensors: BTreeMap<&str, Bytes> =
            arrays.iter().map(|(name, array)| (name.as_str(), Bytes::new(array))).collect();
        let sum =
            digest(&self.entries, tensors.iter().map(|(name, tensor)| (*name, &tensor.shape[..], &tensor.bytes[..])));
        let metadata: HashMap<String, String> = self.with("sha256", sum).entries.into_iter().collect();
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|source| {
            Error::new(Kind::Checkpoint, format!("cannot lay out {}", path.display())).because(source)
        })?;
        atomic::write_atomic(path, |file| file.write_all(&bytes))
    }

    /// Reads a file of this program or of another one, and checks what it says of itself.
    pub(super) fn read(path: &Path) -> Result<(Self, Arrays)> {
        let bytes = fs::read(path).map_err(|source| {
            broken(path, "it cannot be read")
                .hint("check that the file is there and that you may read it")
                .because(source)
        })?;
        let damaged = |source| {
            broken(path, "it is not a whole safetensors file (cut short, damaged, or of another format)")
                .hint("copy it again, or use an earlier checkpoint; .pt files must be converted to .safetensors first")
                .because(source)
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let archive =
            Archive { entries: header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect() };
        if archive.is_own() {
            archive.check_version(path)?;
        }
        let tensors: BTreeMap<String, _> =
            SafeTensors::deserialize(&bytes).map_err(damaged)?.tensors().into_iter().collect();
        if archive.is_own() {
            let sum = digest(
                &archive.entries,
                tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape(), tensor.data())),
            );
            if archive.entries.get("sha256") != Some(&sum) {
                return Err(broken(path, "its contents do not match its checksum: it was damaged or edited")
                    .hint("copy it again, or use an earlier checkpoint"));
            }
        }
        let mut arrays = Arrays::new();
        for (name, tensor) in tensors {
            if tensor.dtype() != Dtype::F32 {
                return Err(broken(path, &format!("{name} is of type {}, not F32", tensor.dtype()))
                    .hint("convert the weights to 32-bit floats before saving them"));
            }
            let data = tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
            let shape = tensor.shape().to_vec();
            arrays.insert(name, Array { shape, data });
        }
        if let Some((name, value)) = names::first_non_finite(&arrays) {
            return Err(broken(path, &format!("{name} holds {value}"))
                .hint("the run that wrote it diverged: train again with a smaller --lr or with --clip-norm 1"));
        }
        Ok((archive, arrays))
    }

    /// Whether this program wrote the file. One entry is enough: damage to the other must not make it a stranger's.
    pub(super) fn is_own(&self) -> bool {
        self.entries.get("program").is_some_and(|name| name == PROGRAM) || self.entries.contains_key("sha256")
    }

    /// Refuses files of other programs.
    pub(super) fn require_own(&self, path: &Path) -> Result<()> {
        if self.is_own() {
            return Ok(());
        }
        Err(broken(path, "it says nothing about a run: another program wrote it")
            .hint("training can go on from this program's checkpoints alone; eval and predict read the weights of other programs too"))
    }

    fn check_version(&self, path: &Path) -> Result<()> {
        match self.entries.get("format_version").map(|text| text.parse::<u32>()) {
            Some(Ok(version)) if version <= FORMAT_VERSION => Ok(()),
            Some(Ok(version)) => Err(broken(
                path,
                &format!(
                    "it is of format {version}, written by {PROGRAM} {}; this is {PROGRAM} {}, which reads formats up to {FORMAT_VERSION}",
                    self.entries.get("program_version").map_or("?", String::as_str),
                    env!("CARGO_PKG_VERSION"),
                ),
            )
            .hint("use the newer version of mnist-swiglu")),
            _ => Err(damaged_entry(path, "format_version")),
        }
    }

    pub(super) fn config(&self, path: &Path) -> Result<serde_json::Value> {
        self.json("config", path)
    }

    pub(super) fn position(&self, path: &Path) -> Result<Position> {
        self.json("position", path)
    }

    pub(super) fn global_step(&self, path: &Path) -> Result<u64> {
        self.json("global_step", path)
    }

    /// The name of the optimiser's file: a bare name, so that a crafted checkpoint cannot point elsewhere.
    pub(super) fn optimizer_name(&self, path: &Path) -> Result<Option<String>> {
        match self.entries.get("optimizer") {
            Some(name) if !is_optimizer_name(name) => Err(damaged_entry(path, "optimizer")),
            name => Ok(name.cloned()),
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, key: &str, path: &Path) -> Result<T> {
        let text = self.entries.get(key).ok_or_else(|| damaged_entry(path, key))?;
        serde_json::from_str(text).map_err(|source| damaged_entry(path, key).because(source))
    }
}

/// The error for a file that cannot be used.
pub(super) fn broken(path: &Path, what: &str) -> Error {
    Error::new(Kind::Checkpoint, format!("cannot load {}: {what}", path.display()))
}

fn damaged_entry(path: &Path, key: &str) -> Error {
    broken(path, &format!("its metadata entry {key} is missing or damaged"))
        .hint("copy the file again, or use an earlier checkpoint")
}

/// SHA-256 over the metadata but its own entry, and over the tensors, each in the order of names.
fn digest<'a>(
    entries: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    // Lengths go in first, so that no two different files feed the same bytes.
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (key, value) in entries.iter().filter(|(key, _)| *key != "sha256") {
        part(key.as_bytes());
        part(value.as_bytes());
    }
    for (name, shape, data) in tensors {
        part(name.as_bytes());
        for size in shape {
            part(&(*size as u64).to_le_bytes());
        }
        part(data);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tensor as the bytes of the file.
struct Bytes {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Bytes {
    fn new(array: &Array) -> Self {
        Bytes { shape: array.shape.clone(), bytes: array.data.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
