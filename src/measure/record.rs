//! The one serialisable record: what was measured, on what, from what. One JSON object a line; every table and chart can
//! be drawn again from such lines alone.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{peers::PeerCase, timer::Cache, work::Pass};
use crate::{
    Error, Kind, Result,
    device::{Device, cuda::driver::Driver, cuda::tune::Chosen},
    model::persistent::Steps,
    swiglu::{Gates, Precision},
    train::{config::Config, metrics::Epoch},
};

/// The version of the records that this program writes and reads.
pub const VERSION: u32 = 1;
/// The commit that this program was built from, with `-dirty` when its sources were changed since; `unknown` without git.
pub const COMMIT: &str = env!("MNIST_SWIGLU_COMMIT");

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the processor or GPU.
    pub model: String,
    /// `linux x86_64` and the like.
    pub system: String,
    /// CPU threads.
    pub threads: usize,
    /// Version of the GPU's driver, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Version of this program.
    pub version: String,
    /// The commit it was built from, or `unknown`.
    pub commit: String,
    /// When the run began, UTC.
    pub time: String,
}

impl Origin {
    /// This machine, now.
    pub fn of(device: &Device) -> Origin {
        Origin {
            model: device.model_name().unwrap_or_else(|| "unknown processor".into()),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: device.threads().unwrap_or(0),
            driver: match device {
                Device::Cpu(_) => None,
                Device::Cuda(_) => Driver::start()
                    .and_then(|driver| driver.cuda_version())
                    .ok()
                    .map(|(major, minor)| format!("CUDA {major}.{minor}")),
            },
            version: env!("CARGO_PKG_VERSION").into(),
            commit: COMMIT.into(),
            time: crate::clock::rfc3339(std::time::SystemTime::now()),
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`].
    pub version: u32,
    /// What was measured.
    #[serde(flatten)]
    pub record: Record,
    /// On what.
    pub origin: Origin,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "bench", rename_all = "kebab-case")]
pub enum Record {
    /// What the device can do at best.
    Peaks(Peaks),
    /// A pass of the layer.
    Swiglu(Box<Case>),
    /// An end-to-end training.
    Train(Box<Training>),
    /// A peer, on the same work.
    Peer(Box<PeerCase>),
}

/// What the device can do at best in one precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peaks {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The numbers of the products.
    pub precision: Precision,
    /// The fastest arithmetic seen, in TFLOP/s.
    pub tflops: f64,
    /// Memory read, in GB/s, of buffers larger than any cache.
    pub memory_gbytes_per_s: f64,
    /// The same of buffers that fit the caches.
    pub cache_gbytes_per_s: f64,
}

/// A pass of the layer in one implementation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name of the implementation.
    pub swiglu: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The GPU's name, where it is one.
    pub gpu: Option<String>,
    /// The numbers of the products.
    pub precision: Precision,
    /// What was done.
    pub pass: Pass,
    /// Whether g and u were kept.
    pub gates: Gates,
    /// Images.
    #[serde(rename = "B")]
    pub batch: usize,
    /// Inputs.
    #[serde(rename = "D")]
    pub inputs: usize,
    /// Hidden.
    #[serde(rename = "H")]
    pub hidden: usize,
    /// Whether the caches were flushed before each call.
    pub cache: Cache,
    /// Median time; none of a case that failed its check.
    pub median_ms: Option<f64>,
    /// A tenth of the calls were faster.
    pub p10_ms: Option<f64>,
    /// A tenth of the calls were slower.
    pub p90_ms: Option<f64>,
    /// Calls timed.
    pub samples: usize,
    /// Work that the pass cannot do without, by the median time.
    pub tflops: Option<f64>,
    /// Traffic that the pass cannot do without, by the median time.
    pub gbytes_per_s: Option<f64>,
    /// The least time that the pass can take on this device.
    pub floor_ms: f64,
    /// Relative Frobenius error against the f64 reference; none when it is not finite.
    pub rel_err: Option<f64>,
    /// The largest error that is right.
    pub bound: f64,
    /// Whether the error is within its bound.
    pub ok: bool,
    /// Launches of own kernels and library products.
    pub launches: u32,
    /// Bytes kept from the forward for the backward.
    pub saved_bytes: usize,
    /// Whether the implementation trains the layer's weights.
    pub trains_wf: bool,
    /// Seed of the operands.
    pub seed: u64,
    /// On a GPU: the tiles of its own kernels, whatever the pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiles: Vec<Chosen>,
}

/// An end-to-end training of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Everything that decides the losses.
    pub configuration: Config,
    /// The epochs.
    pub epochs: Vec<Epoch>,
    /// Whether the layer's weights learn.
    pub trains_wf: bool,
    /// Launches of the layers in a step.
    pub launches: u32,
    /// Growth of the process's peak memory by this training, data set included; none where the system does not tell.
    pub peak_bytes: Option<u64>,
    /// Rows are labels, columns what the network said.
    pub confusion: Vec<Vec<u64>>,
    /// Some of the test images that it gets wrong, the surest first.
    pub wrong: Vec<Wrong>,
    /// How many trainings were run beside this one, an epoch of each in turn.
    pub interleaved: usize,
    /// At the end of each epoch: wall time since the process began, its loading and compiling included, the turns of other
    /// trainings taken out. Empty in records that do not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elapsed_ms: Vec<f64>,
    /// On a GPU: the tiles of the fused kernels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiles: Vec<Chosen>,
}

impl Training {
    /// The implementation, and how its steps were run where that is not by launches.
    pub fn name(&self) -> String {
        let Config { swiglu, steps, .. } = &self.configuration;
        if *steps == Steps::Persistent { format!("{swiglu}, {}", steps.name()) } else { swiglu.clone() }
    }
}

/// A test image that the network gets wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wrong {
    /// Its index in the test set.
    pub index: usize,
    /// What it is.
    pub label: u8,
    /// What the network said.
    pub said: u8,
    /// With which probability.
    pub probability: f64,
    /// 784 pixels, two hexadecimal digits each.
    pub pixels: String,
}

impl Line {
    /// The record as a line, without its end.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::new(Kind::Io, "cannot write a record as JSON").because(e))
    }
}

/// A file that records are appended to, each flushed as it comes.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    origin: Origin,
}

impl Writer {
    /// Appends to the file `name` in `folder`; both are made when they are not there.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn append(folder: &Path, name: &str, origin: Origin) -> Result<Writer> {
        let hint = "give a folder that you may write to with --out";
        fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, e).hint(hint))?;
        let path = folder.join(name);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io("open the records", &path, e).hint(hint))?;
        // What a killed process left of a line must not swallow the next one.
        let torn = fs::read(&path).is_ok_and(|bytes| bytes.last().is_some_and(|&byte| byte != b'\n'));
        if torn {
            file.write_all(b"\n").map_err(|e| Error::io("write the records", &path, e))?;
        }
        Ok(Writer { path, file, origin })
    }

    /// Appends a record; returns its line.
    ///
    /// # Errors
    /// When the disk is full, for instance.
    pub fn write(&mut self, record: Record) -> Result<Line> {
        let line = Line { version: VERSION, record, origin: self.origin.clone() };
        let text = line.to_json()? + "\n";
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io("write the records", &self.path, e))?;
        Ok(line)
    }

    /// Where it writes.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Records that were read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// In the order of the files.
    pub lines: Vec<Line>,
    /// Lines that are no records: half-written, or edited.
    pub skipped: usize,
    /// Records of a kind that this program does not know.
    pub unknown: usize,
    /// Records that a program with another [`VERSION`] wrote, by file.
    pub other_versions: Vec<OtherVersion>,
}

/// Records in a file that a program with another version wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherVersion {
    /// The file.
    pub file: PathBuf,
    /// Its records' version.
    pub version: u32,
    /// How many.
    pub lines: usize,
}

impl Records {
    /// What was left out and why, a sentence each; nothing when everything was read.
    pub fn left_out(&self) -> Vec<String> {
        let mut said: Vec<String> = self
            .other_versions
            .iter()
            .map(|OtherVersion { file, version, lines }| {
                let (is, does) = if *version < VERSION { ("an older", "measure again") } else { ("a newer", "update") };
                let file = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
                format!(
                    "{file}: {} of version {version}, from {is} program, left out (this one reads {VERSION}: {does})",
                    counted(*lines, "record")
                )
            })
            .collect();
        if self.unknown > 0 {
            said.push(format!(
                "{} of a kind that this program does not know, left out",
                counted(self.unknown, "record")
            ));
        }
        if self.skipped > 0 {
            said.push(format!("{} half-written or edited, skipped", counted(self.skipped, "line")));
        }
        said
    }
}

/// `1 line`, `2 lines`.
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Reads the records in `paths`: files, or folders whose .jsonl files are read. Lines that cannot be read are counted; the
/// files are left as they are.
///
/// # Errors
/// When no record can be read.
pub fn read(paths: &[PathBuf]) -> Result<Records> {
    let mut records = Records::default();
    for path in paths {
        for file in files(path)? {
            let bytes = fs::read(&file).map_err(|e| {
                Error::io("read the records", &file, e).hint("give files of records, or folders that hold them")
            })?;
            parse(&String::from_utf8_lossy(&bytes), &file, &mut records);
        }
    }
    if records.lines.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let why: String = records.left_out().iter().map(|why| format!("; {why}")).collect();
        return Err(Error::new(Kind::Data, format!("there are no records in {}{why}", names.join(", "))).hint(
            match records.other_versions.iter().any(|other| other.version > VERSION) {
                true => "a newer mnist-swiglu wrote them: update this one",
                false => "measure first: mnist-swiglu bench --out DIR, mnist-swiglu compare --out DIR",
            },
        ));
    }
    Ok(records)
}

/// The files that `path` stands for, sorted.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|e| Error::io("list", path, e))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    files.sort();
    Ok(files)
}

fn parse(text: &str, file: &Path, into: &mut Records) {
    #[derive(Deserialize)]
    struct Probe {
        version: u32,
        bench: String,
    }
    for text in text.lines().filter(|line| !line.trim().is_empty()) {
        let probe = serde_json::from_str::<Probe>(text);
        match (serde_json::from_str::<Line>(text), probe) {
            (_, Ok(Probe { version, .. })) if version != VERSION => {
                match into.other_versions.iter_mut().find(|other| other.file == file && other.version == version) {
                    Some(other) => other.lines += 1,
                    None => into.other_versions.push(OtherVersion { file: file.into(), version, lines: 1 }),
                }
            }
            (Ok(line), _) => into.lines.push(line),
            (_, Ok(Probe { bench, .. })) if is_unknown(text, &bench) => into.unknown += 1,
            _ => into.skipped += 1,
        }
    }
}

/// Whether `text` is a record of a kind that is not in [`Record`]. The list is serde's own: it names what it does not find.
fn is_unknown(text: &str, kind: &str) -> bool {
    serde_json::from_str::<Record>(text).is_err_and(|error| error.to_string().contains(&format!("variant `{kind}`")))
}

#[cfg(test)]
mod tests;
