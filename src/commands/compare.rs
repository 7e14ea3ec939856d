//! `compare`: trains several implementations end to end from the same seed, an epoch of each in turn, and prints what each
//! costs and buys: times, accuracy, memory, launches.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{bench::FOLDER, interrupt, out};
use crate::{
    Error, Kind, Result,
    cli::{CompareArgs, Preset},
    data::{self, Dataset},
    device::Device,
    measure::{
        memory::Watch,
        mistakes,
        record::{Origin, Record, Training, Writer},
    },
    model::{Mlp, checkpoint::Checkpoint, checkpoint::Position, schedule::Schedule},
    report::training_table,
    swiglu::{self, Entry},
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

/// One training among those compared.
struct Runner {
    entry: &'static Entry,
    config: Config,
    trainer: Trainer,
    epochs: Vec<Epoch>,
    checkpoint: Option<Checkpoint>,
    peak_bytes: Option<u64>,
    /// Wall time up to the end of each epoch: what all share before the first, and its own turns.
    elapsed: Vec<Duration>,
}

/// Trains and compares.
///
/// # Errors
/// When the data is missing, training diverges, or the user stops it; what was measured stays.
pub fn run(args: CompareArgs) -> Result<()> {
    let started = Instant::now();
    let (device, chosen) = Device::open(&args.device.device, args.device.threads.map(|n| n as usize))?;
    args.precision.check(&device)?;
    let entries = match args.swiglu.as_slice() {
        [] => swiglu::ALL.to_vec(),
        names => names.iter().map(|name| swiglu::find(name)).collect::<Result<_>>()?,
    };
    let dataset = data::load(&args.data)?;
    let stop = interrupt::watch("stopping after this epoch; the epochs so far are kept")?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from(FOLDER));
    let mut writer = Writer::append(&folder, FILE, Origin::of(&device))?;
    if !args.json {
        out::print_line(&format!("device: {chosen}"))?;
    }

    let mut runners: Vec<Runner> = Vec::new();
    let epochs = args.epochs;
    let shared = started.elapsed();
    let bar = bar(u64::from(epochs) * entries.len() as u64);
    'all: for epoch in 1..=epochs {
        for (index, &entry) in entries.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            // The first epoch of each comes with its making, so that the memory watched is its own.
            let turn = Instant::now();
            let watch = (epoch == 1).then(|| Watch::start(&device));
            if runners.len() == index {
                runners.push(Runner::new(configuration(&args, entry, &device), entry, &device, &dataset)?);
            }
            let runner = &mut runners[index];
            runner.epoch(&bar)?;
            let before = runner.elapsed.last().copied().unwrap_or(shared);
            runner.elapsed.push(before + turn.elapsed());
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
    if !args.json {
        let table = training_table::table(&trainings.iter().collect::<Vec<_>>());
        out::print_line(&format!("\n{}\nrecords  {}", table.text(), writer.path().display()))?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::new(Kind::Interrupted, "interrupted; the epochs so far are kept"));
    }
    Ok(())
}

impl Runner {
    fn new(config: Config, entry: &'static Entry, device: &Device, dataset: &Dataset) -> Result<Runner> {
        Footprint::check(&config, device)?;
        let model = Mlp::new(config.mlp(device)?, config.seed)?;
        let splits = Splits::new(device, dataset.clone(), 0, config.seed)?;
        let trainer = Trainer::new(config.clone(), model, splits, Position::default(), Vec::new(), Instant::now())?;
        Ok(Runner {
            entry,
            config,
            trainer,
            epochs: Vec::new(),
            checkpoint: None,
            peak_bytes: None,
            elapsed: Vec::new(),
        })
    }

    /// Trains one epoch: the loop is asked to stop when an epoch is over, and goes on there at the next call.
    fn epoch(&mut self, bar: &ProgressBar) -> Result<()> {
        let stop = AtomicBool::new(false);
        let mut watcher = UntilEpoch { stop: &stop, bar, name: self.entry.name, epochs: &mut self.epochs };
        let checkpoint = &mut self.checkpoint;
        let mut keep = |new: &Checkpoint| {
            *checkpoint = Some(new.clone());
            Ok(())
        };
        self.trainer.run(u64::MAX, 0, &mut watcher, &stop, &mut keep)?;
        bar.inc(1);
        Ok(())
    }

    /// What the training came to.
    fn finish(self, device: &Device, dataset: &Dataset, interleaved: usize) -> Result<Training> {
        let launches = |(own, library): (u32, u32)| own + library;
        let counts = &self.entry.launches;
        let (confusion, wrong) = match &self.checkpoint {
            Some(checkpoint) => {
                let mut model = Mlp::zeros(self.config.mlp(device)?)?;
                model.set_weights(&checkpoint.weights)?;
                device.install(|| mistakes::of(&mut model, &dataset.test))?
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
            configuration: self.config,
        })
    }
}

/// Sets a flag when an epoch is over.
struct UntilEpoch<'a> {
    stop: &'a AtomicBool,
    bar: &'a ProgressBar,
    name: &'static str,
    epochs: &'a mut Vec<Epoch>,
}

impl Observer for UntilEpoch<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::Epoch(epoch) = event {
            self.epochs.push(epoch.clone());
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

fn configuration(args: &CompareArgs, entry: &Entry, device: &Device) -> Config {
    let (width, batch) = match args.preset {
        Preset::Default => (512, 64),
        Preset::Seed => (2048, 64),
    };
    let width = args.width.unwrap_or(width) as usize;
    Config {
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
    }
}

fn bar(length: u64) -> ProgressBar {
    // Our own template: the default style is the fallback that the type asks for.
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} epochs  {eta} left  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style.progress_chars("=> "))
}
