//! Epochs on a GPU: the step is captured once and replayed, and the host only reads along.
//!
//! Nothing is allocated inside an epoch, and nobody waits for a single step: replays are put on the stream a block ahead of
//! the block whose losses are read. Times are device time, between marks in the stream; compilation and capture come before
//! the first epoch and are told apart from it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{Save, Splits, Trainer};
use crate::{
    Result,
    device::{
        Images, Rows, SgdStep, Tally,
        cuda::{
            Cuda,
            context::Pinned,
            event::Event as Mark,
            graph::Graph,
            log::Log,
            modules::CompileTime,
            tune::{Chosen, TuneTime},
        },
    },
    model::{
        Activations, Mlp,
        persistent::{Persistent, Steps},
        recorded::{self, Evaluation},
    },
    rng,
    train::{config::Config, observer::Observer},
};

/// Steps of one graph: a replay costs the host as much as a launch or two, whatever is in it.
const BURST: usize = 16;
/// Steps between two looks at the losses; more where a launch takes many, which begins and ends with all weights.
const BLOCK: usize = 64;
const PERSISTENT_BLOCK: usize = 512;

/// A run's captured work.
pub(super) struct Recorded {
    cuda: Cuda,
    log: Arc<Log>,
    training: Training,
    batch: usize,
    losses: Pinned,
    hits: Pinned,
    test: Evaluation,
    valid: Option<Evaluation>,
    /// What was made ready before the first step.
    pub(super) ready: Ready,
}

/// How steps are put on the stream.
enum Training {
    /// Graphs of [`BURST`] steps of a full batch, of one step of it, and of one of what is left at an epoch's end.
    Launches { burst: Graph, single: Graph, last: Option<Graph> },
    /// Launches of many steps.
    Persistent(Persistent),
}

/// What preparing a run took.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Compiling and loading kernels.
    pub compile: CompileTime,
    /// Capturing the step and the evaluations, in ms.
    pub capture_ms: f64,
    /// Launches of one step; none where one launch takes many steps.
    pub launches: Option<usize>,
    /// Finding the fastest tiles of the step's kernels, which comes before compiling.
    pub tuning: TuneTime,
    /// Those tiles; none where one launch takes many steps, nor are evaluations tuned: they come once an epoch.
    pub tiles: Vec<Chosen>,
}

impl Recorded {
    /// Compiles what the run needs on all cores, and captures its step and its evaluations.
    pub(super) fn new(
        cuda: &Cuda,
        config: &Config,
        model: &mut Mlp,
        splits: &Splits,
        (train_acts, eval_acts): (&mut Activations, &mut Activations),
    ) -> Result<Recorded> {
        let images = &splits.train;
        let batch = config.batch_size.min(images.len());
        let (steps, rest) = (images.len().div_ceil(batch), images.len() % batch);
        let eval_batch = model.device().evaluation_batch(splits.test.len());
        let sgd = SgdStep {
            lr: 0.0, // read from the log
            momentum: config.momentum,
            weight_decay: config.weight_decay,
            nesterov: config.nesterov,
            scale: 1.0,
            device_scale: false,
        };
        let mut step = |model: &mut Mlp, rows: Rows<'_>, another: bool| -> Result<()> {
            model.device().gather(images, rows, &mut train_acts.batch)?;
            model.step_before(train_acts, &sgd, config.clip_norm, another).map(|_| ())
        };
        let size = (images.len(), batch, steps);
        let persistent = config.steps == Steps::Persistent;
        let log = Arc::new(match persistent {
            true => Log::new(cuda.context(), steps, images.len())?, // the kernel gathers its images itself
            false => recorded::training_log(cuda, config.network.width, size, config.clip_norm.is_some())?,
        });
        let last_rows = Rows::At { first: images.len() - rest, count: rest };

        cuda.pin_tiles(&config.tiles);
        let before = cuda.tune_time();
        let tiles = match persistent {
            true => Vec::new(),
            false => cuda.tune(|| step(model, Rows::Next(batch), false))?,
        };
        let tuning = cuda.tune_time().since(before);
        cuda.prepare(|| {
            if !persistent {
                model.device().lay_out(&log, images)?;
                step(model, Rows::Next(batch), false)?;
                if rest > 0 {
                    step(model, last_rows, false)?;
                }
            }
            for split in [Some(&splits.test), splits.valid.as_ref()].into_iter().flatten() {
                recorded::evaluate(model, split, eval_acts, eval_batch)?;
            }
            Ok(())
        })?;

        let begin = Instant::now();
        let (training, launches) = if persistent {
            (Training::Persistent(Persistent::new(cuda, model, images, (&log, &sgd, batch))?), None)
        } else {
            let single = cuda.record(&log, || step(model, Rows::Next(batch), false))?;
            let burst = (1..=BURST).map(|nth| nth < BURST); // whether another comes after it
            let burst = cuda
                .record(&log, || burst.into_iter().try_for_each(|another| step(model, Rows::Next(batch), another)))?;
            let last = if rest > 0 { Some(cuda.record(&log, || step(model, last_rows, false))?) } else { None };
            let launches = single.nodes();
            (Training::Launches { burst, single, last }, Some(launches))
        };
        let mut evaluation = |images: &Images| Evaluation::new(cuda, model, images, eval_acts, eval_batch);
        let test = evaluation(&splits.test)?;
        let valid = splits.valid.as_ref().map(evaluation).transpose()?;
        let ready = Ready {
            compile: cuda.compile_time(),
            capture_ms: begin.elapsed().as_secs_f64() * 1e3,
            launches,
            tuning,
            tiles,
        };
        let (losses, hits) = (Pinned::new(cuda.context(), steps)?, Pinned::new(cuda.context(), steps)?);
        Ok(Recorded { cuda: cuda.clone(), log, training, batch, losses, hits, test, valid, ready })
    }

    /// Puts steps `first .. end` of `steps` on the stream.
    fn replay(&self, first: usize, end: usize, steps: usize) -> Result<()> {
        let (burst, single, last) = match &self.training {
            Training::Persistent(persistent) => return persistent.run(end - first),
            Training::Launches { burst, single, last } => (burst, single, last),
        };
        let mut at = first;
        while at < end {
            let full = end.min(if last.is_some() { steps - 1 } else { steps });
            let (graph, count) = match last {
                _ if at + BURST <= full => (burst, BURST),
                Some(last) if at == steps - 1 => (last, 1),
                _ => (single, 1),
            };
            graph.replay()?;
            at += count;
        }
        Ok(())
    }

    /// Steps between two looks at the losses.
    fn block(&self) -> usize {
        match self.training {
            Training::Launches { .. } => BLOCK,
            Training::Persistent(_) => PERSISTENT_BLOCK,
        }
    }

    /// Loss and hits over the test images with the device time in ms, and over those held out.
    pub(super) fn evaluate(&self) -> Result<((Tally, f64), Option<Tally>)> {
        let valid = self.valid.as_ref().map(|valid| valid.run()).transpose()?;
        Ok((self.test.run()?, valid.map(|(tally, _)| tally)))
    }
}

/// Steps on the stream whose losses are on their way.
struct Block {
    first: usize,
    end: usize,
    /// Where the device time of these steps begins.
    begin: Arc<Mark>,
    /// Where their losses have arrived in main memory.
    done: Arc<Mark>,
}

impl Trainer {
    /// The steps that are left of an epoch, replayed. True when it was stopped before its end.
    pub(super) fn replay_epoch(
        &mut self,
        recorded: &mut Recorded,
        (log_interval, save_interval): (u64, u64),
        observer: &mut (dyn Observer + Send),
        stop: &AtomicBool,
        save: &mut Save<'_>,
    ) -> Result<bool> {
        let steps = self.schedule.steps_per_epoch as usize;
        let first = self.position.step as usize;
        let order = rng::permutation(self.config.seed, self.position.epoch + 1, self.splits.train.len());
        let start = self.position.global_step - self.position.step;
        let rates: Vec<f32> = (0..steps).map(|step| self.schedule.at(start + step as u64)).collect();
        recorded.log.begin(first, &order, &rates)?;
        let mut opened = Some(Arc::new(recorded.cuda.event()?));
        self.model.device().lay_out(&recorded.log, &self.splits.train)?;

        // Where the host must come to rest: at an epoch's end, or for a checkpoint.
        let rest_after = |step: usize| match save_interval as usize {
            0 => steps,
            every => ((step / every + 1) * every).min(steps),
        };
        let (mut queued, mut limit) = (first, rest_after(first));
        let mut blocks: VecDeque<Block> = VecDeque::new();
        loop {
            // One block runs while the losses of the one before it are read.
            while queued < limit && blocks.len() < 2 && !stop.load(Ordering::Relaxed) {
                let end = (queued + recorded.block()).min(limit);
                let begin = match (opened.take(), blocks.back()) {
                    (Some(opened), _) => opened, // laying the images out is a part of the epoch
                    (None, Some(before)) => before.done.clone(),
                    (None, None) => Arc::new(recorded.cuda.event()?),
                };
                recorded.replay(queued, end, steps)?;
                recorded.losses.fetch(recorded.log.losses(), queued, end - queued)?;
                recorded.hits.fetch(recorded.log.hits(), queued, end - queued)?;
                blocks.push_back(Block { first: queued, end, begin, done: Arc::new(recorded.cuda.event()?) });
                queued = end;
            }
            let Some(block) = blocks.pop_front() else { break };
            block.done.synchronize()?;
            self.position.train_ms += block.done.since(&block.begin)?;
            self.read_block(recorded, &block, &rates, log_interval, observer)?;
            if block.end == limit && limit < steps {
                save(&self.checkpoint()?)?;
                limit = rest_after(limit);
            }
        }
        Ok((self.position.step as usize) < steps)
    }

    /// Losses and hits of a block that is done, into the position, the metrics and the progress bar.
    fn read_block(
        &mut self,
        recorded: &Recorded,
        block: &Block,
        rates: &[f32],
        log_interval: u64,
        observer: &mut (dyn Observer + Send),
    ) -> Result<()> {
        let images = self.splits.train.len();
        let count = block.end - block.first;
        let losses = recorded.losses.words(block.first, count).into_iter().map(f32::from_bits);
        let hits = recorded.hits.words(block.first, count);
        let mut last = None;
        for ((loss, hits), step) in losses.zip(hits).zip(block.first..) {
            let mut tally = Tally::default();
            tally.add(loss, hits, recorded.batch.min(images - step * recorded.batch));
            self.note_step(&tally, loss, rates[step], log_interval, observer)?;
            last = Some(loss);
        }
        if let Some(loss) = last {
            self.show_progress(loss, observer);
        }
        Ok(())
    }
}
