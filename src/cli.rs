//! Flags and help. The choices of `--swiglu` come from [`crate::swiglu::ALL`].

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};

use crate::swiglu;
use crate::{
    measure::{peers::Peer, timer::Cache, work},
    model::{persistent::Steps, schedule::Schedule},
    swiglu::{Gates, Precision},
};

/// Train MNIST from scratch and swap the SwiGLU layer to see what each implementation costs and buys.
///
/// The network: Linear 784 -> width, `depth` SwiGLU layers, Linear -> 10; softmax cross-entropy; SGD with momentum.
/// Everything runs on any CPU with nothing but this program, and on NVIDIA GPUs (--device cuda). The MNIST files stand in data/.
#[derive(Debug, Parser)]
#[command(name = "mnist-swiglu", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a classifier; writes a run folder with metrics, learning curves and a checkpoint
    Train(Box<TrainArgs>),
    /// Measure a checkpoint on the test images: accuracy, loss, confusion matrix, inference time
    Eval(EvalArgs),
    /// Tell which digit a picture shows
    Predict(PredictArgs),
    /// Check, fetch or show the data files
    Data(DataCommand),
    /// Show what this machine offers and what is missing
    Doctor(DoctorArgs),
    /// Check every SwiGLU implementation against the f64 reference on this machine
    Selftest(SelftestArgs),
    /// Measure the SwiGLU layer alone: each implementation and pass, checked, then timed beside its floor
    Bench(BenchArgs),
    /// Train several implementations from one seed, an epoch of each in turn, and compare what they cost and buy
    Compare(CompareArgs),
    /// A guided tour in under a minute: the layer, a live race, where the time goes, which one to use
    Demo(DemoArgs),
    /// Write a page with tables and advice from the records of bench and compare
    Report(ReportArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Where the data is.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// mnist, fashion, or a directory that holds the four IDX files (plain or .gz)
    #[arg(long, value_name = "NAME|DIR", default_value = "mnist")]
    pub dataset: String,
    /// Directory to look in first
    ///
    /// The order: this flag, the environment variable, ./data, data/ beside the executable, data/ in the source tree,
    /// the user's data directory. For --dataset fashion, a folder `fashion` inside each of them.
    #[arg(long, value_name = "DIR", env = "MNIST_SWIGLU_DATA")]
    pub data_dir: Option<PathBuf>,
}

/// Where the work is done.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// auto, cpu, cuda, or cuda:N
    ///
    /// auto takes the first NVIDIA GPU that can be used, else the CPU, and says which and why; cuda never falls back.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// CPU threads; the default is RAYON_NUM_THREADS, or every core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// Whether tiles are measured.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Device")]
pub struct TuneArgs {
    /// On a GPU: take the tiles that rules name for the fused kernels, instead of measuring which are fastest
    ///
    /// They are measured once for each kernel, shape and precision, in a second or two, before anything is timed, and remembered
    /// on disk (mnist-swiglu doctor shows where). A run that goes on keeps the tiles that it began with.
    #[arg(long)]
    pub no_autotune: bool,
}

fn swiglu_choices() -> PossibleValuesParser {
    PossibleValuesParser::new(
        swiglu::ALL
            .iter()
            .map(|entry| clap::builder::PossibleValue::new(entry.name).aliases(entry.aliases).help(entry.summary)),
    )
}

/// A finite number in a range, for clap.
fn number(low: f32, high: f32, what: &'static str) -> impl Fn(&str) -> Result<f32, String> + Clone + Send + Sync {
    move |text| match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= low && value <= high => Ok(value),
        Ok(_) => Err(format!("must be {what}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Flags of `train`.
#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    /// The SwiGLU implementation
    ///
    /// All four run on the CPU and on NVIDIA GPUs, in Rust and CUDA C++; "python" and "triton" in two of the names say
    /// where the idea comes from: dWf by library products, or by a kernel of our own.
    #[arg(long, default_value = "fused-triton-grad", value_parser = swiglu_choices(), value_name = "NAME")]
    pub swiglu: String,
    /// Whether the fused forward keeps g and u for the backward
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub gates: Gates,
    /// Precision of the products; all but fp32 need an NVIDIA GPU
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub precision: Precision,
    /// How a GPU runs the steps
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub steps: Steps,

    /// Passes over the training images [default: 5]
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub epochs: Option<u32>,
    /// Images a step
    #[arg(long, default_value_t = 64, value_name = "N", help_heading = "Training", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub batch_size: u32,
    /// Peak learning rate
    #[arg(long, default_value_t = 0.0034, value_name = "X", help_heading = "Training", allow_negative_numbers = true, value_parser = number(0.0, 1e6, "a finite number, 0 or more"))]
    pub lr: f32,
    /// Momentum of SGD
    #[arg(long, default_value_t = 0.95, value_name = "X", help_heading = "Training", allow_negative_numbers = true, value_parser = number(0.0, 0.99999, "at least 0 and below 1"))]
    pub momentum: f32,
    /// Nesterov's momentum
    #[arg(long, help_heading = "Training")]
    pub nesterov: bool,
    /// L2 penalty added to each weight's gradient (biases are left alone)
    #[arg(long, default_value_t = 0.0005, value_name = "X", help_heading = "Training", allow_negative_numbers = true, value_parser = number(0.0, 1e6, "a finite number, 0 or more"))]
    pub weight_decay: f32,
    /// Schedule of the learning rate
    #[arg(long, value_enum, default_value_t, value_name = "NAME", help_heading = "Training")]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0 to --lr
    #[arg(long, default_value_t = 300, value_name = "STEPS", help_heading = "Training")]
    pub warmup: u32,
    /// For --schedule step: epochs between drops
    #[arg(long, default_value_t = 2, value_name = "EPOCHS", help_heading = "Training", value_parser = clap::value_parser!(u32).range(1..))]
    pub lr_step: u32,
    /// For --schedule step: factor of each drop
    #[arg(long, default_value_t = 0.1, value_name = "X", help_heading = "Training", allow_negative_numbers = true, value_parser = number(0.0, 1.0, "between 0 and 1"))]
    pub lr_gamma: f32,
    /// Scale the gradients so that their global norm is at most X
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true, value_parser = number(1e-12, 1e12, "a finite number above 0"))]
    pub clip_norm: Option<f32>,
    /// Seed of the weights, the order of the images and the validation split
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Training")]
    pub seed: u64,
    /// Training images held out for validation
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Training")]
    pub validation: u32,

    /// Outputs of the stem, and inputs of the first SwiGLU layer
    #[arg(long, default_value_t = 512, value_name = "D", help_heading = "Network", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub width: u32,
    /// Outputs of each SwiGLU layer; the default is --width
    #[arg(long, value_name = "H", help_heading = "Network", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hidden: Option<u32>,
    /// SwiGLU layers
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Network", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub depth: u32,

    /// Folder of the run; the default is a new one under reports/runs/
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Continue the run in DIR, with its configuration, exactly where it stopped
    ///
    /// Configuration flags cannot be given beside it; --epochs can, to train for longer with --schedule constant or step.
    #[arg(long, value_name = "DIR", help_heading = "Output", conflicts_with_all = ["swiglu", "gates", "precision", "steps",
        "batch_size", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup", "lr_step", "lr_gamma",
        "clip_norm", "seed", "validation", "width", "hidden", "depth", "out", "dataset", "dry_run"])]
    pub resume: Option<PathBuf>,
    /// Steps between checkpoints inside an epoch; 0 saves at the end of each epoch alone
    #[arg(long, default_value_t = 0, value_name = "STEPS", help_heading = "Output")]
    pub save_interval: u32,
    /// Steps between two reports of the loss
    #[arg(long, default_value_t = 100, value_name = "STEPS", help_heading = "Output", value_parser = clap::value_parser!(u32).range(1..))]
    pub log_interval: u32,
    /// One training step and one batch of inference; writes nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// One JSON object a line on standard output
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Only errors and the final table
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,

    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether tiles are measured.
    #[command(flatten)]
    pub tune: TuneArgs,
}

/// Flags of `eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// A run's folder, or a checkpoint (.safetensors)
    #[arg(value_name = "RUN|FILE")]
    pub checkpoint: PathBuf,
    /// Run the layer with this implementation; the default is the one that trained it
    #[arg(long, value_parser = swiglu_choices(), value_name = "NAME")]
    pub swiglu: Option<String>,
    /// Precision of the products; the default is the one that it was trained in, or fp32 where the device lacks that
    #[arg(long, value_enum, value_name = "NAME")]
    pub precision: Option<Precision>,
    /// Images a forward pass
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub batch_size: u32,
    /// Passes over the test images; the median time is shown
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Flags of `predict`.
#[derive(Clone, Debug, Args)]
pub struct PredictArgs {
    /// A run's folder, or a checkpoint (.safetensors); the default is the newest run under reports/runs/
    #[arg(long, short, value_name = "RUN|FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Pictures of one digit each: PNG, JPEG or PGM, any size, dark on light or light on dark
    #[arg(value_name = "PICTURE", required_unless_present = "index")]
    pub pictures: Vec<PathBuf>,
    /// Precision of the products; the default is the one that it was trained in, or fp32 where the device lacks that
    #[arg(long, value_enum, value_name = "NAME")]
    pub precision: Option<Precision>,
    /// Take test image N of the data set instead (may be given several times)
    #[arg(long, value_name = "N", action = ArgAction::Append)]
    pub index: Vec<u32>,
    /// Treat pictures as light on dark (yes), dark on light (no), or look at them (auto)
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub light_on_dark: Polarity,
    /// One JSON object a picture on standard output
    #[arg(long)]
    pub json: bool,
    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Whether the ink of a picture is light or dark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Polarity {
    /// Looks at the border of the picture
    #[default]
    Auto,
    /// Light ink on a dark ground, as MNIST's
    Yes,
    /// Dark ink on a light ground, as on paper
    No,
}

/// `data` and its subcommands.
#[derive(Clone, Debug, Args)]
pub struct DataCommand {
    /// What to do with the data.
    #[command(subcommand)]
    pub action: DataAction,
}

/// The subcommands of `data`.
#[derive(Clone, Debug, Subcommand)]
pub enum DataAction {
    /// Find the files, check format, counts and checksums
    Verify {
        /// One JSON object on standard output
        #[arg(long)]
        json: bool,
        /// Where the data is.
        #[command(flatten)]
        data: DataArgs,
    },
    /// Download a data set, check it and put it in place
    ///
    /// What is there and right is kept; a download that broke off is taken up again. A mirror in the environment variable
    /// MNIST_SWIGLU_MIRROR (a URL to which the names of the .gz files are appended) is asked before the known ones;
    /// proxies come from ALL_PROXY, HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
    Fetch {
        /// The data set
        #[arg(value_parser = ["mnist", "fashion"])]
        name: String,
        /// Directory to put the files in; the default is the user's data directory
        /// (for fashion: its folder `fashion`)
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        /// Download again what is there already
        #[arg(long)]
        force: bool,
    },
}

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Flags of `selftest`.
#[derive(Clone, Debug, Args)]
pub struct SelftestArgs {
    /// Check this implementation alone (may be given several times)
    #[arg(long, value_parser = swiglu_choices(), value_name = "NAME", action = ArgAction::Append)]
    pub swiglu: Vec<String>,
    /// Check this precision alone (may be given several times); the default is all that the device has
    #[arg(long, value_enum, value_name = "NAME", action = ArgAction::Append)]
    pub precision: Vec<Precision>,
    /// Check the layer at the shape batch,inputs,hidden alone (may be given several times), such as 127,129,65
    ///
    /// Without it the layer is checked at many shapes, and whole steps of training after that.
    #[arg(long, value_name = "B,D,H", action = ArgAction::Append)]
    pub shape: Vec<String>,
    /// Seed of the random operands
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// One JSON object a check on standard output
    #[arg(long)]
    pub json: bool,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether tiles are measured.
    #[command(flatten)]
    pub tune: TuneArgs,
}

/// Flags of `completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Flags of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Batch sizes [default: 64,512 on a CPU; 64,256,1024 on a GPU]
    #[arg(long, value_name = "B,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub batch: Vec<u32>,
    /// Inputs of the layer [default: 512,1024 on a CPU; 2048,4096 on a GPU]
    #[arg(long, value_name = "D,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub dim: Vec<u32>,
    /// Outputs of the layer; the default is the inputs
    #[arg(long, value_name = "H,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hidden: Vec<u32>,
    /// Precisions of the products; the default is all that the device has
    #[arg(long, value_enum, value_name = "NAME,..", value_delimiter = ',')]
    pub precision: Vec<Precision>,
    /// Passes; the default is all
    #[arg(long, value_enum, value_name = "NAME,..", value_delimiter = ',')]
    pub pass: Vec<work::Pass>,
    /// Implementations; the default is all
    #[arg(long, value_parser = swiglu_choices(), value_name = "NAME,..", value_delimiter = ',')]
    pub swiglu: Vec<String>,
    /// Whether g and u are kept for the backward; the default is both ways
    #[arg(long, value_enum, value_name = "MODE,..", value_delimiter = ',')]
    pub gates: Vec<Gates>,
    /// What the caches hold when a call begins; the default is both
    #[arg(long, value_enum, value_name = "STATE,..", value_delimiter = ',')]
    pub cache: Vec<Cache>,
    /// Seed of the random operands
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Measure peers on the same work after our own cases: all that are installed, or those named
    ///
    /// PyTorch with Liger-Kernel, torch.compile, the bare product and QuACK, with python3, or what the environment variable
    /// MNIST_SWIGLU_PYTHON names. What is not installed is left out, unless it was named. Nothing is downloaded.
    #[arg(long, value_enum, num_args = 0.., value_name = "NAME,..", value_delimiter = ',')]
    pub peers: Option<Vec<Peer>>,
    /// Folder of the records (bench.jsonl, appended to) [default: reports/measured]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The records on standard output, one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether tiles are measured.
    #[command(flatten)]
    pub tune: TuneArgs,
}

/// Shapes of the network that `compare` trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// D = H = 512, batch 64
    #[default]
    Default,
    /// The large one: D = H = 2048, batch 64
    Seed,
}

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Implementations; the default is all
    #[arg(long, value_parser = swiglu_choices(), value_name = "NAME,..", value_delimiter = ',')]
    pub swiglu: Vec<String>,
    /// Shapes of the network
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub preset: Preset,
    /// Outputs of the stem, and inputs of the layer; the default is the preset's
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub width: Option<u32>,
    /// Outputs of the layer; the default is --width
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hidden: Option<u32>,
    /// Images a step; the default is the preset's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub batch_size: Option<u32>,
    /// Passes over the training images
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub epochs: u32,
    /// Whether the fused forward keeps g and u for the backward
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub gates: Gates,
    /// Precision of the products
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub precision: Precision,
    /// How a GPU runs the steps; with two, what can be run in both ways is trained in both
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW,..", value_delimiter = ',')]
    pub steps: Vec<Steps>,
    /// Seed of weights and order
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Measure epochs of peers after our own: all that are installed, or those named
    ///
    /// PyTorch with Liger-Kernel, torch.compile, and JAX, with python3, or what the environment variable
    /// MNIST_SWIGLU_PYTHON names. What is not installed is left out, unless it was named. Nothing is downloaded.
    #[arg(long, value_enum, num_args = 0.., value_name = "NAME,..", value_delimiter = ',')]
    pub peers: Option<Vec<Peer>>,
    /// Folder of the records (compare.jsonl, appended to) [default: reports/measured]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The records on standard output, one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether tiles are measured.
    #[command(flatten)]
    pub tune: TuneArgs,
}

/// Flags of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Wait for Enter between chapters, for a lecture
    #[arg(long)]
    pub pause: bool,
    /// Begin with chapter N: 1 the layer, 2 ways to run it, 3 the race, 4 frozen weights, 5 where the time goes,
    /// 6 which one to use, 7 the report
    ///
    /// What it shows is measured first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub chapter: u32,
    /// Folder of the report at the end, absent or empty; the default is a new one under reports/measured/
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// D and H, the layer's inputs and outputs [default: 256 on a CPU; 2048 on a GPU]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub width: Option<u32>,
    /// Passes over the training images in the race
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub epochs: u32,
    /// Precision of the products
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub precision: Precision,
    /// Seed of weights, order and operands
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Where the data is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the work is done.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Files of records, or folders of .jsonl files [default: reports/measured]
    #[arg(value_name = "FILE|DIR")]
    pub records: Vec<PathBuf>,
    /// Folder of the report
    #[arg(long, value_name = "DIR", default_value = "reports/measured/report")]
    pub out: PathBuf,
}
