//! `train`: a new run, or one that goes on. Reads the data, makes or loads the network, trains, and leaves a run's folder
//! with configuration, metrics, checkpoint and chart.

use std::{
    fs::File,
    io::{Stderr, Stdout},
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use super::{interrupt, train_output::TrainOutput};
use crate::{
    Error, Kind, Result,
    cli::{TrainArgs, TuneArgs},
    clock::process_began,
    data::{self, Loading},
    device::Device,
    model::{
        Mlp,
        checkpoint::{self, Checkpoint, Position, names},
        persistent::Steps,
        schedule::Schedule,
    },
    report::curves,
    swiglu,
    train::{
        config::{Config, NetworkConfig},
        footprint::Footprint,
        metrics::{Epoch, Event},
        observer::Observer,
        run_dir::RunDir,
        trainer::{Ready, Splits, Trainer},
    },
};

/// Epochs of a run that says nothing of them.
const EPOCHS: u32 = 5;

/// Trains.
///
/// # Errors
/// When something asked for is not there, training diverges, or the user stops it ([`Kind::Interrupted`]).
pub fn run(args: TrainArgs) -> Result<()> {
    process_began(); // asked for now, where the system does not tell
    match &args.resume {
        Some(dir) => resume(&args, dir),
        None => begin(&args),
    }
}

/// What every run of this process has.
struct Session {
    device: Device,
    output: TrainOutput<Stdout, Stderr>,
    stop: Arc<AtomicBool>,
    /// When its device was open.
    opened: Instant,
}

fn open(args: &TrainArgs) -> Result<Session> {
    // A run that goes on keeps its tiles, and a step alone is not worth the measuring.
    let tune = TuneArgs { no_autotune: args.tune.no_autotune || args.dry_run || args.resume.is_some() };
    let (device, chosen) = super::open_tuned(&args.device, tune)?;
    let opened = Instant::now();
    let mut output = TrainOutput::new(args.quiet, args.json);
    output.on_message(&format!("device: {chosen}"));
    let stop = interrupt::watch("stopping after this step and saving")?;
    Ok(Session { device, output, stop, opened })
}

/// A new run.
fn begin(args: &TrainArgs) -> Result<()> {
    // Its data are read beside the opening of the device and the drawing of the weights.
    let loading = Loading::start(&args.data);
    let mut session = open(args)?;
    let Session { device, output, .. } = &mut session;
    let mut config = configuration(args, device);
    let network = config.mlp(device)?;
    config.precision.check(device)?;
    config.steps = args.steps.resolve(device, &network, config.batch_size, config.clip_norm.is_some())?;
    if args.dry_run {
        config.steps = Steps::Launches; // a step alone
    }
    Footprint::check(&config, device)?;
    let model = Mlp::new(network, config.seed)?;
    let dataset = loading.finish()?;
    let splits = Splits::new(device, dataset, config.validation, config.seed)?;
    if !model.entry().trains_weight {
        output.on_message(&format!(
            "{}: the SwiGLU weights keep their initial values, stem and head learn",
            config.swiglu
        ));
    }
    if config.clip_norm.is_some() {
        output.on_message("--clip-norm: gradients are kept until their norm is known, so SGD is not fused into the kernels that make them");
    }
    let mut trainer = Trainer::new(config.clone(), model, splits, Position::default(), Vec::new(), process_began())?;
    if args.dry_run {
        let outcome = trainer.dry_run()?;
        return output.dry_run(&trainer.start_event(), &outcome);
    }
    prepare(&mut session, &mut trainer)?;
    let run = RunDir::create(args.out.clone(), &config.swiglu, &config.device)?;
    run.write_config(trainer.config())?;
    let metrics = run.new_metrics()?;
    finish(args, run, metrics, trainer, session)
}

/// A run that goes on.
fn resume(args: &TrainArgs, dir: &Path) -> Result<()> {
    let mut session = open(args)?;
    let Session { device, output, .. } = &mut session;
    let run = RunDir::open(dir)?;
    let Checkpoint { config, position, weights, velocities } = run.load()?;
    let path = run.checkpoint_path();
    let mut config: Config = checkpoint::parse_config(&config, &path)?;
    if let Some(epochs) = args.epochs.filter(|&epochs| epochs != config.epochs) {
        if matches!(config.schedule, Schedule::Cosine | Schedule::FlatCosine) {
            return Err(Error::usage(format!(
                "--epochs {epochs}: the cosine schedule of {} was laid out for {} epochs",
                dir.display(),
                config.epochs
            ))
            .hint("leave --epochs out; only runs with --schedule constant or step can be made longer"));
        }
        config.epochs = epochs;
    }
    if position.epoch >= config.epochs {
        return Err(Error::usage(format!("{} has all of its {} epochs", dir.display(), config.epochs)).hint(
            "nothing is left to train; start a new run, or give more --epochs to one with --schedule constant or step",
        ));
    }
    if config.precision.check(device).is_err() {
        return Err(Error::usage(format!(
            "{} was trained in {}, which {} does not compute",
            dir.display(),
            config.precision.name(),
            device.name()
        ))
        .hint(
            "go on with --device cuda on a machine with an NVIDIA GPU; eval and predict run its network here in fp32",
        ));
    }
    let NetworkConfig { width, hidden, depth } = config.network;
    names::check(&weights, &names::expected(width, hidden, depth), &path)?;
    let network = config.mlp(device)?;
    if let Err(error) = config.steps.resolve(device, &network, config.batch_size, config.clip_norm.is_some()) {
        output.on_message(&format!("{error}: going on with launches, whose losses differ by rounding"));
        config.steps = Steps::Launches;
    }
    let mut model = Mlp::zeros(network)?;
    model.set_weights(&weights)?;
    if let Some(velocities) = &velocities {
        model.set_velocities(velocities)?;
    }
    let dataset = data::load_from(&config.dataset, args.data.data_dir.as_deref())?;
    let splits = Splits::new(device, dataset, config.validation, config.seed)?;
    let metrics = run.resume_metrics(&position)?;
    if metrics.dropped() + metrics.skipped() > 0 {
        output.on_message(&format!(
            "metrics: {} events after the checkpoint are made again, {} half-written lines dropped",
            metrics.dropped(),
            metrics.skipped()
        ));
    }
    output.on_message(&format!("resuming {} after epoch {}, step {}", dir.display(), position.epoch, position.step));
    let epochs = epochs_of(metrics.events());
    let mut trainer = Trainer::new(config, model, splits, position, epochs, process_began())?;
    prepare(&mut session, &mut trainer)?;
    finish(args, run, metrics, trainer, session)
}

/// On a GPU, what comes before the first epoch and is no part of it: compiled kernels and the captured step.
fn prepare(session: &mut Session, trainer: &mut Trainer) -> Result<()> {
    let Session { device, output, opened, .. } = session;
    let before = super::tune_time(device);
    let Some(ready) = trainer.prepare()? else { return Ok(()) };
    if let Some(tuned) = super::tuned_since(device, before) {
        output.on_message(&tuned);
    }
    let Ready { compile, capture_ms, launches, .. } = ready;
    let step = match launches {
        Some(launches) => format!("a graph of {launches} launches a step"),
        None => "a launch of hundreds of steps".into(),
    };
    let since_start = |moment: Instant| moment.duration_since(process_began()).as_secs_f64() * 1e3;
    output.on_message(&format!(
        "{} kernels ready in {:.0} ms ({} compiled, {} from the cache); {step} ready in {capture_ms:.0} ms; \
         the process began {:.0} ms ago and had its device open after {:.0}",
        compile.modules,
        compile.ms,
        compile.compiled,
        compile.modules - compile.compiled,
        since_start(Instant::now()),
        since_start(*opened),
    ));
    if let Device::Cuda(cuda) = device {
        while let Some(warning) = cuda.take_warning() {
            output.on_message(&format!("warning: {}", super::in_full(&warning)));
        }
    }
    Ok(())
}

/// The run itself, and what it leaves behind.
fn finish(
    args: &TrainArgs,
    run: RunDir,
    mut metrics: crate::train::metrics_log::MetricsLog,
    mut trainer: Trainer,
    session: Session,
) -> Result<()> {
    let Session { mut output, stop, .. } = session;
    let metrics_path = run.metrics_path();
    let mut save = |checkpoint: &Checkpoint| {
        // The metrics must not be older than the checkpoint that comes after them.
        File::open(&metrics_path)
            .and_then(|file| file.sync_data())
            .map_err(|e| Error::io("flush", &metrics_path, e))?;
        run.save(checkpoint)
    };
    let result = {
        let mut observer = (&mut metrics, &mut output);
        trainer.run(args.log_interval.into(), args.save_interval.into(), &mut observer, &stop, &mut save)
    };
    // The chart shows what there is, also of a run that was stopped or diverged.
    let drawn = curves::write(run.path(), &[curves::Run::new(None, metrics.events())]);
    let saved = run.checkpoint_path();
    let saved = saved.is_file().then_some(saved.as_path());
    let chart = drawn.as_ref().ok().map(|[svg, _]| svg.as_path());
    let epochs = epochs_of(metrics.events());
    output.finish(&epochs, run.path(), saved, chart)?;
    let end = result?;
    drawn?;
    if end.interrupted {
        return Err(Error::new(Kind::Interrupted, "interrupted; the run is saved")
            .hint(format!("go on with: mnist-swiglu train --resume {}", run.path().display())));
    }
    Ok(())
}

fn epochs_of(events: &[Event]) -> Vec<Epoch> {
    events.iter().filter_map(|event| if let Event::Epoch(epoch) = event { Some(epoch.clone()) } else { None }).collect()
}

fn configuration(args: &TrainArgs, device: &Device) -> Config {
    Config {
        swiglu: swiglu::find(&args.swiglu).map_or(args.swiglu.clone(), |entry| entry.name.into()),
        gates: args.gates,
        precision: args.precision,
        device: device.name(),
        dataset: data_name(&args.data.dataset),
        network: NetworkConfig {
            width: args.width as usize,
            hidden: args.hidden.unwrap_or(args.width) as usize,
            depth: args.depth as usize,
        },
        epochs: args.epochs.unwrap_or(EPOCHS),
        batch_size: args.batch_size as usize,
        lr: args.lr,
        momentum: args.momentum,
        nesterov: args.nesterov,
        weight_decay: args.weight_decay,
        schedule: args.schedule,
        warmup: args.warmup,
        lr_step: args.lr_step,
        lr_gamma: args.lr_gamma,
        clip_norm: args.clip_norm,
        seed: args.seed,
        validation: args.validation as usize,
        steps: args.steps,
        tiles: std::collections::BTreeMap::new(),
    }
}

/// A directory is kept with its whole path, so that a resume from elsewhere finds it.
fn data_name(name: &str) -> String {
    match Path::new(name).canonicalize() {
        Ok(path) if path.is_dir() && name.contains(std::path::MAIN_SEPARATOR) => path.display().to_string(),
        _ => name.into(),
    }
}
