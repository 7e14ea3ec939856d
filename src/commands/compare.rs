//! `compare`: trains several implementations end to end from the same seed, an epoch of each in turn, and prints what each
//! costs and buys: times, accuracy, memory, launches.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{bench::FOLDER, interrupt, out, peers};
use crate::{
    Error, Kind, Result,
    cli::{CompareArgs, Preset},
    clock::process_began,
    data::{Dataset, Loading},
    device::{Device, cuda::tune::Chosen},
    measure::{
        memory::Watch,
        mistakes,
        peers::{self as scripts, Peer, PeerCase, Script},
        record::{Origin, Record, Training, Writer},
    },
    model::{Mlp, checkpoint::Checkpoint, checkpoint::Position, persistent::Steps, schedule::Schedule},
    report::{peer_table, training_table},
    swiglu::{self, Entry, reference::Dims},
    train::{
        config::{Config, NetworkConfig},
        footprint::Footprint,
        metrics::{Epoch, Event},
        observer::{Observer, Progress},
        trainer::{Splits, Trainer},
    },
};

/// The file of its records.
pub const FILE: &str = "compare.jsonl";

/// The scripts that measure peers on the same work.
const SCRIPTS: &[Script] = &[Script::TorchEpochs, Script::JaxEpochs];

/// One training among those compared.
pub(super) struct Runner {
    pub(super) entry: &'static Entry,
    pub(super) config: Config,
    pub(super) trainer: Trainer,
    pub(super) epochs: Vec<Epoch>,
    checkpoint: Option<Checkpoint>,
    peak_bytes: Option<u64>,
    /// Wall time so far: what all share before the first turn, its making, and its own turns.
    used: Duration,
    /// The same at the end of each epoch.
    elapsed: Vec<Duration>,
    /// On a GPU, once it is prepared: the tiles of the fused kernels.
    tiles: Vec<Chosen>,
}

/// Trains and compares.
///
/// # Errors
/// When the data is missing, training diverges, or the user stops it; what was measured stays.
pub fn run(args: CompareArgs) -> Result<()> {
    let started = process_began();
    let loading = Loading::start(&args.data); // beside the opening of the device
    let (device, chosen) = super::open_tuned(&args.device, args.tune)?;
    args.precision.check(&device)?;
    let entries = match args.swiglu.as_slice() {
        [] => swiglu::ALL.to_vec(),
        names => names.iter().map(|name| swiglu::find(name)).collect::<Result<_>>()?,
    };
    let wanted = peers::wanted(args.peers.as_deref(), "compare", SCRIPTS)?;
    let configurations = configurations(&args, &entries, &device)?;
    let dataset = loading.finish()?;
    let stop = interrupt::watch("stopping after this epoch; the epochs so far are kept")?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from(FOLDER));
    let mut writer = Writer::append(&folder, FILE, Origin::of(&device))?;
    if !args.json {
        out::print_line(&format!("device: {chosen}"))?;
    }

    let mut runners: Vec<Runner> = Vec::new();
    let epochs = args.epochs;
    let shared = started.elapsed();
    let bar = bar(u64::from(epochs) * configurations.len() as u64);
    'all: for epoch in 1..=epochs {
        for (index, (entry, config)) in configurations.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            // The first epoch of each comes with its making, so that the memory watched is its own.
            let watch = (epoch == 1).then(|| Watch::start(&device));
            if runners.len() == index {
                runners.push(Runner::new(config.clone(), entry, &device, &dataset, shared)?);
                let before = super::tune_time(&device);
                runners[index].prepare()?;
                bar.suspend(|| super::tell_tuning(&device, before));
            }
            let runner = &mut runners[index];
            runner.epoch(&bar)?;
            runner.peak_bytes = runner.peak_bytes.or_else(|| watch.and_then(|watch| watch.peak_bytes()));
        }
    }
    bar.finish_and_clear();

    let interleaved = runners.len();
    let mut trainings = Vec::new();
    for runner in runners {
        let training = runner.finish(&device, &dataset, interleaved)?;
        let line = writer.write(Record::Train(Box::new(training.clone())))?;
        if args.json {
            out::print_line(&line.to_json()?)?;
        }
        trainings.push(training);
    }
    let mut found = Ok(Vec::new());
    if let (Some(first), false) = (trainings.first(), wanted.is_empty()) {
        let frozen = [(true, "learn"), (false, "frozen")];
        let weights: Vec<&str> =
            frozen.iter().filter(|(learns, _)| trainings.iter().any(|t| t.trains_wf == *learns)).map(|w| w.1).collect();
        let (config, folder) = (&first.configuration, dataset.dir.display().to_string());
        let complete = |_, asked: &[Peer]| peer_arguments(&device, config, asked, &weights, &folder);
        let named = args.peers.as_ref().is_some_and(|named| !named.is_empty());
        found = peers::measure(SCRIPTS, &wanted, named, complete, (&mut writer, args.json, &stop));
    }
    if !args.json {
        let all: Vec<&Training> = trainings.iter().collect();
        let peers: Vec<&PeerCase> = found.iter().flatten().collect();
        for table in [training_table::table(&all)].into_iter().chain(peer_table::tables(&peers, &[], &all)) {
            out::print_line(&format!("\n{}", table.text().trim_end()))?;
        }
        out::print_line(&format!("\nrecords  {}", writer.path().display()))?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::new(Kind::Interrupted, "interrupted; the epochs so far are kept"));
    }
    found.map(|_| ())
}

/// What a script needs to train the same network for as long.
fn peer_arguments(
    device: &Device,
    config: &Config,
    asked: &[Peer],
    weights: &[&str],
    folder: &str,
) -> Vec<(&'static str, String)> {
    let NetworkConfig { width, hidden, .. } = config.network;
    let dims = Dims { batch: config.batch_size, inputs: width, hidden };
    let mut arguments = scripts::arguments(device, &[dims], &[config.precision], asked, config.seed);
    arguments.extend([
        ("--data", folder.to_owned()),
        ("--epochs", config.epochs.to_string()),
        ("--weights", weights.join(",")),
        ("--lr", config.lr.to_string()),
        ("--momentum", config.momentum.to_string()),
        ("--weight-decay", config.weight_decay.to_string()),
    ]);
    arguments
}

impl Runner {
    /// A training at its beginning. `shared` is the wall time that all of them share before it.
    pub(super) fn new(
        config: Config,
        entry: &'static Entry,
        device: &Device,
        dataset: &Dataset,
        shared: Duration,
    ) -> Result<Runner> {
        let begin = Instant::now();
        Footprint::check(&config, device)?;
        let model = Mlp::new(config.mlp(device)?, config.seed)?;
        let splits = Splits::shared(device, dataset)?;
        let trainer = Trainer::new(config.clone(), model, splits, Position::default(), Vec::new(), Instant::now())?;
        Ok(Runner {
            entry,
            config,
            trainer,
            epochs: Vec::new(),
            checkpoint: None,
            peak_bytes: None,
            used: shared + begin.elapsed(),
            elapsed: Vec::new(),
            tiles: Vec::new(),
        })
    }

    /// Compiles and captures what a GPU needs, before the first step asks for it. Finding the fastest tiles, which only a first
    /// start does, is no part of the time used.
    pub(super) fn prepare(&mut self) -> Result<()> {
        let begin = Instant::now();
        let Some(ready) = self.trainer.prepare()? else { return Ok(()) };
        self.used += begin.elapsed().saturating_sub(Duration::from_secs_f64(ready.tuning.ms / 1e3));
        self.tiles = ready.tiles;
        Ok(())
    }

    /// Trains one epoch: the loop is asked to stop when an epoch is over, and goes on there at the next call.
    fn epoch(&mut self, bar: &ProgressBar) -> Result<()> {
        let stop = AtomicBool::new(false);
        let mut watcher = UntilEpoch { stop: &stop, bar, name: self.entry.name };
        self.go_on(&mut watcher, &stop)?;
        bar.inc(1);
        Ok(())
    }

    /// Trains from where it is until `stop` is set, at the latest by the end of an epoch, or the last epoch is over.
    pub(super) fn go_on(&mut self, watcher: &mut (dyn Observer + Send), stop: &AtomicBool) -> Result<()> {
        let begin = Instant::now();
        let checkpoint = &mut self.checkpoint;
        let mut keep = |new: &Checkpoint| {
            *checkpoint = Some(new.clone());
            Ok(())
        };
        self.trainer.run(u64::MAX, 0, &mut (Epochs(&mut self.epochs), watcher), stop, &mut keep)?;
        self.used += begin.elapsed();
        self.elapsed.resize(self.epochs.len(), self.used);
        Ok(())
    }

    /// What the training came to.
    pub(super) fn finish(self, device: &Device, dataset: &Dataset, interleaved: usize) -> Result<Training> {
        let launches = |(own, library): (u32, u32)| own + library;
        let counts = &self.entry.launches;
        let (confusion, wrong) = match &self.checkpoint {
            Some(checkpoint) => {
                let mut model = Mlp::zeros(self.config.mlp(device)?)?;
                model.set_weights(&checkpoint.weights)?;
                mistakes::of(&mut model, &dataset.test)?
            }
            None => Default::default(),
        };
        Ok(Training {
            epochs: self.epochs,
            trains_wf: self.entry.trains_weight,
            launches: self.config.network.depth as u32
                * (launches(counts.forward) + launches(counts.backward_dx) + launches(counts.backward_dwf)),
            peak_bytes: self.peak_bytes,
            confusion,
            wrong,
            interleaved,
            elapsed_ms: self.elapsed.iter().map(|elapsed| elapsed.as_secs_f64() * 1e3).collect(),
            tiles: self.tiles,
            configuration: self.config,
        })
    }
}

/// Keeps the epochs.
struct Epochs<'a>(&'a mut Vec<Epoch>);

impl Observer for Epochs<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::Epoch(epoch) = event {
            self.0.push(epoch.clone());
        }
        Ok(())
    }
}

/// Sets a flag when an epoch is over.
struct UntilEpoch<'a> {
    stop: &'a AtomicBool,
    bar: &'a ProgressBar,
    name: &'static str,
}

impl Observer for UntilEpoch<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::Epoch(_) = event {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn on_progress(&mut self, progress: &Progress) {
        if progress.step.is_multiple_of(64) {
            let share = 100 * progress.step / progress.steps.max(1);
            self.bar.set_message(format!("{}, epoch {}: {share} %", self.name, progress.epoch));
        }
    }
}

/// What is trained: each implementation in each way of running steps that was asked for and is not the same for it.
fn configurations(
    args: &CompareArgs,
    entries: &[&'static Entry],
    device: &Device,
) -> Result<Vec<(&'static Entry, Config)>> {
    let mut all: Vec<(&'static Entry, Config)> = Vec::new();
    for &entry in entries {
        for &steps in &args.steps {
            // What cannot be persistent is trained by launches beside what can, unless nothing else was asked for.
            let steps = if steps == Steps::Persistent && entries.len() > 1 { Steps::Auto } else { steps };
            let config = configuration(args, entry, device, steps)?;
            if !all.iter().any(|(_, other)| *other == config) {
                all.push((entry, config));
            }
        }
    }
    Ok(all)
}

pub(super) fn configuration(args: &CompareArgs, entry: &Entry, device: &Device, steps: Steps) -> Result<Config> {
    let (width, batch) = match args.preset {
        Preset::Default => (512, 64),
        Preset::Seed => (2048, 64),
    };
    let width = args.width.unwrap_or(width) as usize;
    let mut config = Config {
        swiglu: entry.name.into(),
        gates: args.gates,
        precision: args.precision,
        device: device.name(),
        dataset: args.data.dataset.clone(),
        network: NetworkConfig { width, hidden: args.hidden.map_or(width, |hidden| hidden as usize), depth: 1 },
        epochs: args.epochs,
        batch_size: args.batch_size.unwrap_or(batch) as usize,
        // The defaults of `train`.
        lr: 0.0034,
        momentum: 0.95,
        nesterov: false,
        weight_decay: 0.0005,
        schedule: Schedule::default(),
        warmup: 300,
        lr_step: 2,
        lr_gamma: 0.1,
        clip_norm: None,
        seed: args.seed,
        validation: 0,
        steps,
        tiles: std::collections::BTreeMap::new(),
    };
    config.steps = steps.resolve(device, &config.mlp(device)?, config.batch_size, false)?;
    Ok(config)
}

fn bar(length: u64) -> ProgressBar {
    // Our own template: the default style is the fallback that the type asks for.
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} epochs  {eta} left  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style.progress_chars("=> "))
}
