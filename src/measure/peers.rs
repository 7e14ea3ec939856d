//! Peers: what others offer for the same work, measured in the same run by the scripts of `reports/peers/`, which this
//! program carries and runs with the user's Python. A script prints a JSON object a line; see its `common.py`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{timer::Cache, work::Pass};
use crate::{
    Error, Kind, Result,
    device::Device,
    swiglu::{Precision, reference::Dims},
};

/// Names the Python to use, where it is not `python3`.
pub const PYTHON: &str = "MNIST_SWIGLU_PYTHON";

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// PyTorch with Liger-Kernel's SwiGLU; eager PyTorch on a CPU
    Torch,
    /// PyTorch through torch.compile
    TorchCompile,
    /// bench: the packed product alone in PyTorch, without a gate
    Gemm,
    /// bench: QuACK's gated product for Hopper and Blackwell, bf16, the forward alone
    Quack,
    /// compare: JAX, an epoch as one scan
    Jax,
}

impl Peer {
    /// Its name in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Torch => "torch",
            Peer::TorchCompile => "torch-compile",
            Peer::Gemm => "gemm",
            Peer::Quack => "quack",
            Peer::Jax => "jax",
        }
    }
}

/// What was timed of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timed {
    /// An epoch of training the whole network.
    Epoch,
    /// A pass of the layer.
    #[serde(untagged)]
    Pass(Pass),
}

/// A peer's case, as its script prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerCase {
    /// Which one.
    pub peer: Peer,
    /// What tables call it: names with versions.
    pub name: String,
    /// Versions of the packages.
    pub versions: BTreeMap<String, Option<String>>,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The GPU's name, where it is one.
    pub gpu: Option<String>,
    /// The numbers of the products.
    pub precision: Precision,
    /// What was timed.
    pub pass: Timed,
    /// Images.
    #[serde(rename = "B")]
    pub batch: usize,
    /// Inputs.
    #[serde(rename = "D")]
    pub inputs: usize,
    /// Hidden.
    #[serde(rename = "H")]
    pub hidden: usize,
    /// What the caches hold when a call begins.
    pub cache: Cache,
    /// Median time; none of a case that failed its check.
    #[serde(default)]
    pub median_ms: Option<f64>,
    /// A tenth of the samples were faster.
    #[serde(default)]
    pub p10_ms: Option<f64>,
    /// A tenth of the samples were slower.
    #[serde(default)]
    pub p90_ms: Option<f64>,
    /// Samples: of calls, or of epochs.
    pub samples: usize,
    /// Relative Frobenius error against float64; none for epochs, and where it is not finite.
    pub rel_err: Option<f64>,
    /// The largest error that is right.
    pub bound: f64,
    /// Whether the error is within its bound.
    pub ok: bool,
    /// Whether the gradients of the layer's weights are made, and used in an epoch.
    pub trains_wf: bool,
    /// Seed of the operands.
    pub seed: u64,
    /// Of epochs: time of a pass over the test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infer_ms: Option<f64>,
    /// Of epochs: share of the test images that are classified right after the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

impl PeerCase {
    /// Whether the other is the same case, measured at another time.
    pub fn same(&self, other: &PeerCase) -> bool {
        let key = |c: &PeerCase| (c.name.clone(), c.device.clone(), c.gpu.clone(), c.precision, c.pass, c.trains_wf);
        key(self) == key(other)
            && (self.batch, self.inputs, self.hidden) == (other.batch, other.inputs, other.hidden)
            && self.cache == other.cache
    }
}

/// One line of a script.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Said {
    /// A case.
    Case(Box<PeerCase>),
    /// A package that is not there.
    Missing {
        /// Which.
        missing: String,
        /// What Python said.
        why: String,
    },
    /// A case that the peer does not have.
    Skipped {
        /// Which, and why.
        skipped: String,
    },
    /// A case, or a whole script, that went wrong.
    Failed {
        /// Which.
        failed: String,
        /// What Python said.
        why: String,
    },
}

impl Said {
    /// A line for people; none for a case.
    pub fn note(&self) -> Option<String> {
        match self {
            Said::Case(_) => None,
            Said::Missing { missing, why } => Some(format!("peers: {missing} is not there, so it is left out ({why})")),
            Said::Skipped { skipped } => Some(format!("peers: {skipped}")),
            Said::Failed { failed, why } => Some(format!("peers: {failed} went wrong ({why})")),
        }
    }
}

/// A script of `reports/peers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Passes of the layer in PyTorch.
    TorchLayer,
    /// Epochs in PyTorch.
    TorchEpochs,
    /// Epochs in JAX.
    JaxEpochs,
}

/// What scripts import.
const COMMON: (&str, &str) = ("common.py", include_str!("../../reports/peers/common.py"));

impl Script {
    /// The peers that it measures.
    pub fn peers(self) -> &'static [Peer] {
        match self {
            Script::TorchLayer => &[Peer::Torch, Peer::TorchCompile, Peer::Gemm, Peer::Quack],
            Script::TorchEpochs => &[Peer::Torch, Peer::TorchCompile],
            Script::JaxEpochs => &[Peer::Jax],
        }
    }

    fn file(self) -> (&'static str, &'static str) {
        match self {
            Script::TorchLayer => ("torch_layer.py", include_str!("../../reports/peers/torch_layer.py")),
            Script::TorchEpochs => ("torch_epochs.py", include_str!("../../reports/peers/torch_epochs.py")),
            Script::JaxEpochs => ("jax_epochs.py", include_str!("../../reports/peers/jax_epochs.py")),
        }
    }
}

/// The arguments that every script has: where, at which shapes, in which precisions.
pub fn arguments(
    device: &Device,
    shapes: &[Dims],
    precisions: &[Precision],
    peers: &[Peer],
    seed: u64,
) -> Vec<(&'static str, String)> {
    let joined = |parts: Vec<String>| parts.join(",");
    let mut found = vec![
        ("--device", device.name()),
        ("--threads", device.threads().unwrap_or(0).to_string()),
        ("--precision", joined(precisions.iter().map(|p| format!("{}={:e}", p.name(), p.bound())).collect())),
        ("--peer", joined(peers.iter().map(|peer| peer.name().into()).collect())),
        ("--seed", seed.to_string()),
    ];
    found.extend(shapes.iter().map(|dims| ("--shape", format!("{},{},{}", dims.batch, dims.inputs, dims.hidden))));
    found
}

/// Runs a script to its end, or until `stop` is set, and tells of each line as it comes. A Python that is not there, or a
/// script that fails, is told of in the same way.
///
/// # Errors
/// When the script cannot be put into a temporary folder, or `tell` fails.
pub fn run(
    script: Script,
    arguments: &[(&str, String)],
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Said) -> Result<()>,
) -> Result<()> {
    let python = std::env::var_os(PYTHON).filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into());
    let folder = Folder::with(&[COMMON, script.file()])?;
    let mut command = Command::new(&python);
    command.arg(folder.0.join(script.file().0));
    for (flag, value) in arguments {
        command.args([*flag, value]);
    }
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => Running(child),
        Err(error) => {
            let (missing, why) = (python.to_string_lossy().into_owned(), error.to_string());
            return tell(Said::Missing { missing, why });
        }
    };
    let lines = lines_of(child.0.stdout.take());
    let complaints = lines_of(child.0.stderr.take());
    let mut last = String::new();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(()); // `child` is ended when it is dropped
        }
        // Both are read, so that neither fills its pipe and halts the script.
        last = complaints.try_iter().filter(|line| !line.trim().is_empty()).last().unwrap_or(last);
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                // What is no record is a package talking to itself.
                if let Ok(said) = serde_json::from_str(&line) {
                    tell(said)?;
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.0.wait().map_err(|e| Error::new(Kind::Io, "cannot wait for a peer's script").because(e))?;
    if !status.success() && !stop.load(Ordering::Relaxed) {
        last = complaints.iter().filter(|line| !line.trim().is_empty()).last().unwrap_or(last);
        let why = if last.is_empty() { status.to_string() } else { last };
        tell(Said::Failed { failed: script.file().0.into(), why })?;
    }
    Ok(())
}

/// The lines that come through a pipe, read by a thread of their own.
fn lines_of(pipe: Option<impl io::Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    if let Some(pipe) = pipe {
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(io::Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receive
}

/// A script that is ended with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A temporary folder of our own.
struct Folder(PathBuf);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Result<Folder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mnist-swiglu-peers-{}-{number}", std::process::id()));
        let failed = |path: &Path, e| Error::io("write a peer's script to", path, e).hint("is TMPDIR writable?");
        // A folder that is there already is somebody else's.
        fs::create_dir(&path).map_err(|e| failed(&path, e))?;
        let folder = Folder(path);
        for (name, text) in files {
            let path = folder.0.join(name);
            fs::write(&path, text).map_err(|e| failed(&path, e))?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a temporary folder does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"peer": "torch", "name": "PyTorch 2.11.0", "versions": {"torch": "2.11.0", "cuda": null},
        "device": "cpu", "gpu": null, "precision": "fp32", "B": 64, "D": 256, "H": 96, "cache": "warm", "rel_err": 4.5e-07,
        "bound": 3e-06, "ok": true, "trains_wf": true, "seed": 1, "pass": "step", "median_ms": 0.5, "p10_ms": 0.4,
        "p90_ms": 0.6, "samples": 48}"#;

    #[test]
    fn every_kind_of_line_is_understood() {
        let Said::Case(case) = serde_json::from_str(LINE).unwrap() else { panic!("no case") };
        assert_eq!((case.peer, case.pass, case.median_ms), (Peer::Torch, Timed::Pass(Pass::Step), Some(0.5)));
        let epoch = LINE.replace(r#""pass": "step""#, r#""pass": "epoch""#);
        let Said::Case(epoch) = serde_json::from_str(&epoch).unwrap() else { panic!("no case") };
        assert_eq!(epoch.pass, Timed::Epoch);
        // A wrong case comes without times.
        let wrong = LINE.split(r#", "median_ms""#).next().unwrap().to_owned() + r#", "samples": 0}"#;
        let Said::Case(wrong) = serde_json::from_str(&wrong).unwrap() else { panic!("no case") };
        assert_eq!((wrong.median_ms, wrong.samples), (None, 0));
        for (line, word) in [
            (r#"{"missing": "torch", "why": "No module named 'torch'"}"#, "No module named"),
            (r#"{"skipped": "PyTorch has no products called x"}"#, "called x"),
            (r#"{"failed": "torch, step", "why": "out of memory"}"#, "out of memory"),
        ] {
            let note = serde_json::from_str::<Said>(line).unwrap().note().unwrap();
            assert!(note.contains(word) && !note.contains('\n'), "{note}");
        }
    }

    #[test]
    fn a_case_comes_back_from_its_record() {
        use super::super::record::Record;
        let Said::Case(case) = serde_json::from_str(LINE).unwrap() else { panic!("no case") };
        let text = serde_json::to_string(&Record::Peer(case.clone())).unwrap();
        assert!(text.starts_with(r#"{"bench":"peer","peer":"torch","name":"PyTorch 2.11.0","#), "{text}");
        assert!(text.contains(r#""pass":"step""#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), Record::Peer(case));
    }

    #[test]
    fn the_scripts_parse_their_arguments_and_agree_with_this_file() {
        for script in [Script::TorchLayer, Script::TorchEpochs, Script::JaxEpochs] {
            let (name, text) = script.file();
            for peer in script.peers() {
                assert!(text.contains(&format!("\"{}\"", peer.name())), "{name}: {}", peer.name());
            }
        }
        let device = Device::open("cpu", Some(2)).unwrap().0;
        let dims = Dims { batch: 3, inputs: 5, hidden: 7 };
        for (flag, _) in arguments(&device, &[dims], Precision::ALL, &[Peer::Torch], 1) {
            assert!(COMMON.1.contains(&format!("\"{flag}\"")), "{flag}");
        }
    }
}
