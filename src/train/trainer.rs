//! The loop: epochs of steps, an evaluation and a checkpoint after each, from any position to the end or to a stop.

mod recorded;

use std::{
    borrow::Cow,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use serde::Serialize;

use super::{
    config::Config,
    metrics::{End, Epoch, Event, Start, Step},
    observer::{Observer, Progress},
};
use crate::{
    Error, Kind, Result,
    data::Dataset,
    device::{Device, Images, Rows, SgdStep, Tally},
    model::{
        Activations, Mlp,
        checkpoint::{Checkpoint, Position},
        schedule::LearningRate,
    },
    rng,
    swiglu::Pass,
};

pub use recorded::Ready;
use recorded::Recorded;

/// The images of a run, on its device.
#[derive(Debug)]
pub struct Splits {
    /// Trained on.
    pub train: Images,
    /// Held out of the training images, when that was asked for.
    pub valid: Option<Images>,
    /// The test images.
    pub test: Images,
}

impl Splits {
    /// Holds `valid` of the training images out, and puts everything on the device.
    ///
    /// # Errors
    /// When more is held out than there is.
    pub fn new(device: &Device, dataset: Dataset, valid: usize, seed: u64) -> Result<Splits> {
        let Dataset { train, test, .. } = dataset;
        let (train, held) = match valid {
            0 => (train, None),
            count => {
                let (train, held) = crate::data::hold_out(train, count, seed)?;
                (train, Some(device.images(Cow::Owned(held))?))
            }
        };
        let (train, test) = (device.images(Cow::Owned(train))?, device.images(Cow::Owned(test))?);
        Ok(Splits { train, valid: held, test })
    }

    /// All of `dataset` on the device, for one of several trainings.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn shared(device: &Device, dataset: &Dataset) -> Result<Splits> {
        let images = |split| device.images(Cow::Borrowed(split));
        Ok(Splits { train: images(&dataset.train)?, valid: None, test: images(&dataset.test)? })
    }
}

/// Somewhere that checkpoints go.
pub type Save<'a> = dyn FnMut(&Checkpoint) -> Result<()> + Send + 'a;

/// What a dry run came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DryRun {
    /// Mean loss of the first batch, before its step.
    pub loss: f64,
    /// Time of the step.
    pub step_ms: f64,
    /// Time of the forward pass over `infer_images` test images.
    pub infer_ms: f64,
    /// Images of the step.
    pub batch: usize,
    /// Images of the forward pass.
    pub infer_images: usize,
}

/// A run in progress.
pub struct Trainer {
    config: Config,
    model: Mlp,
    splits: Splits,
    schedule: LearningRate,
    position: Position,
    train_acts: Activations,
    eval_acts: Activations,
    /// On a GPU: the captured step and evaluations, once the run has begun.
    recorded: Option<Recorded>,
    /// Epochs done, those before a resume included.
    epochs: Vec<Epoch>,
    started: Instant,
}

impl Trainer {
    /// A run that begins at `position` with a model that is already there: `epochs` are those done before.
    ///
    /// # Errors
    /// When there is no memory for the buffers.
    pub fn new(
        config: Config,
        model: Mlp,
        splits: Splits,
        position: Position,
        epochs: Vec<Epoch>,
        started: Instant,
    ) -> Result<Trainer> {
        let batch = config.batch_size.min(splits.train.len());
        let schedule = LearningRate {
            lr: config.lr,
            schedule: config.schedule,
            warmup: config.warmup.into(),
            steps_per_epoch: splits.train.len().div_ceil(batch) as u64,
            epochs: config.epochs,
            drop_every: config.lr_step,
            gamma: config.lr_gamma,
        };
        let train_acts = model.activations(batch, Pass::Training)?;
        let eval_batch = model.device().evaluation_batch(splits.test.len());
        let eval_acts = model.activations(eval_batch, Pass::Inference)?;
        Ok(Trainer {
            config,
            model,
            splits,
            schedule,
            position,
            train_acts,
            eval_acts,
            recorded: None,
            epochs,
            started,
        })
    }

    /// The network.
    pub fn model(&self) -> &Mlp {
        &self.model
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.schedule.steps_per_epoch
    }

    /// The event that opens the run.
    pub fn start_event(&self) -> Event {
        let device = self.model.device();
        let ready = self.recorded.as_ref().map(|recorded| &recorded.ready);
        Event::Start(Box::new(Start {
            configuration: self.config.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.name(),
            device_name: device.model_name(),
            threads: device.threads().unwrap_or(0),
            parameters: self.model.parameters(),
            train_images: self.splits.train.len(),
            valid_images: self.splits.valid.as_ref().map_or(0, Images::len),
            test_images: self.splits.test.len(),
            steps_per_epoch: self.schedule.steps_per_epoch,
            compile_ms: ready.map(|ready| ready.compile.ms),
            capture_ms: ready.map(|ready| ready.capture_ms),
            launches: ready.and_then(|ready| ready.launches),
            tuning_ms: ready.map(|ready| ready.tuning.ms).filter(|&ms| ms > 0.0),
            resumed_at: (self.position != Position::default()).then_some((self.position.epoch, self.position.step)),
        }))
    }

    /// Trains to the end of the last epoch, or until `stop` is set: then the step in hand is finished, a checkpoint
    /// saved, and the end event says `interrupted`.
    ///
    /// # Errors
    /// When the loss is no longer finite (nothing is saved over the last good checkpoint), a device fails, or an
    /// observer or `save` does.
    pub fn run(
        &mut self,
        log_interval: u64,
        save_interval: u64,
        observer: &mut (dyn Observer + Send),
        stop: &AtomicBool,
        save: &mut Save<'_>,
    ) -> Result<End> {
        self.prepare()?;
        observer.on_event(&self.start_event())?;
        let mut interrupted = stop.load(Ordering::Relaxed);
        while self.position.epoch < self.config.epochs && !interrupted {
            interrupted = match self.recorded.take() {
                None => self.epoch(log_interval, save_interval, observer, stop, save)?,
                Some(mut recorded) => {
                    let intervals = (log_interval, save_interval);
                    let outcome = self.replay_epoch(&mut recorded, intervals, observer, stop, save);
                    self.recorded = Some(recorded);
                    outcome?
                }
            };
            if interrupted {
                save(&self.checkpoint()?)?;
                break;
            }
            let epoch = self.finish_epoch()?;
            observer.on_event(&Event::Epoch(epoch.clone()))?;
            self.epochs.push(epoch);
            save(&self.checkpoint()?)?;
            interrupted = stop.load(Ordering::Relaxed) && self.position.epoch < self.config.epochs;
        }
        let end = End::of(&self.epochs, self.started.elapsed().as_secs_f64() * 1e3, interrupted);
        observer.on_event(&Event::End(end.clone()))?;
        Ok(end)
    }

    /// On a GPU: compiles the kernels and captures the step, so that no epoch pays for it. [`Trainer::run`] does so itself;
    /// whoever wants to tell how long it took asks before.
    ///
    /// # Errors
    /// When a kernel does not compile, or memory is short.
    pub fn prepare(&mut self) -> Result<Option<Ready>> {
        if let Device::Cuda(cuda) = self.model.device().clone()
            && self.recorded.is_none()
        {
            let acts = (&mut self.train_acts, &mut self.eval_acts);
            let recorded = Recorded::new(&cuda, &self.config, &mut self.model, &self.splits, acts)?;
            self.config.tiles.extend(recorded.ready.tiles.iter().map(|one| (one.problem.clone(), one.tile.clone())));
            self.recorded = Some(recorded);
        }
        Ok(self.recorded.as_ref().map(|recorded| recorded.ready.clone()))
    }

    /// What the run is, with the tiles that it was given.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One step of training and one batch of inference, to see that everything fits; the run's folder is not touched.
    ///
    /// # Errors
    /// When the loss is not finite, or the device fails.
    pub fn dry_run(&mut self) -> Result<DryRun> {
        self.prepare()?; // what is compiled for the first step is no part of its time
        let batch = self.config.batch_size.min(self.splits.train.len());
        let order = rng::permutation(self.config.seed, 1, self.splits.train.len());
        let begin = Instant::now();
        let tally = self.step(&order[..batch], self.schedule.at(0))?;
        let step_ms = begin.elapsed().as_secs_f64() * 1e3;
        if !tally.loss_sum.is_finite() {
            return Err(self.diverged(1, self.schedule.at(0), tally.mean_loss() as f32));
        }
        let count = self.model.device().evaluation_batch(self.splits.test.len()) as u32;
        let rows: Vec<u32> = (0..count).collect();
        let begin = Instant::now();
        self.model.evaluate_batch(
            &self.splits.test,
            Rows::Listed(&rows),
            &mut self.eval_acts,
            &mut Tally::default(),
        )?;
        let infer_ms = begin.elapsed().as_secs_f64() * 1e3;
        Ok(DryRun { loss: tally.mean_loss(), step_ms, infer_ms, batch, infer_images: count as usize })
    }

    /// The steps that are left of an epoch. True when it was stopped before its end.
    fn epoch(
        &mut self,
        log_interval: u64,
        save_interval: u64,
        observer: &mut (dyn Observer + Send),
        stop: &AtomicBool,
        save: &mut Save<'_>,
    ) -> Result<bool> {
        let epoch = self.position.epoch + 1;
        let batch = self.config.batch_size.min(self.splits.train.len());
        let order = rng::permutation(self.config.seed, epoch, self.splits.train.len());
        let steps = self.schedule.steps_per_epoch;
        for rows in order.chunks(batch).skip(self.position.step as usize) {
            let lr = self.schedule.at(self.position.global_step);
            let begin = Instant::now();
            let tally = self.step(rows, lr)?;
            self.position.train_ms += begin.elapsed().as_secs_f64() * 1e3;

            let loss = (tally.loss_sum / tally.count as f64) as f32;
            self.note_step(&tally, loss, lr, log_interval, observer)?;
            self.show_progress(loss, observer);
            let done = self.position.step;
            if done < steps && stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            if save_interval > 0 && done < steps && done.is_multiple_of(save_interval) {
                save(&self.checkpoint()?)?;
            }
        }
        Ok(false)
    }

    /// What a step came to, into the position and the metrics.
    fn note_step(
        &mut self,
        tally: &Tally,
        loss: f32,
        lr: f32,
        log_interval: u64,
        observer: &mut (dyn Observer + Send),
    ) -> Result<()> {
        let epoch = self.position.epoch + 1;
        if !loss.is_finite() {
            return Err(self.diverged(epoch, lr, loss));
        }
        let position = &mut self.position;
        position.step += 1;
        position.global_step += 1;
        position.loss_sum += tally.loss_sum;
        position.images_seen += tally.count;
        let done = position.step;
        if done.is_multiple_of(log_interval) || done == self.schedule.steps_per_epoch {
            observer.on_event(&Event::Step(Step { epoch, step: done, loss, lr }))?;
        }
        Ok(())
    }

    /// Where the epoch is, for a progress bar.
    fn show_progress(&self, loss: f32, observer: &mut (dyn Observer + Send)) {
        observer.on_progress(&Progress {
            epoch: self.position.epoch + 1,
            epochs: self.config.epochs,
            step: self.position.step,
            steps: self.schedule.steps_per_epoch,
            images: self.position.images_seen,
            train_ms: self.position.train_ms,
            loss: Some(loss),
        });
    }

    /// One step of training on the images `rows`.
    fn step(&mut self, rows: &[u32], lr: f32) -> Result<Tally> {
        let Config { momentum, weight_decay, nesterov, clip_norm, .. } = self.config;
        let sgd = SgdStep { lr, momentum, weight_decay, nesterov, scale: 1.0, device_scale: false };
        self.model.device().gather(&self.splits.train, Rows::Listed(rows), &mut self.train_acts.batch)?;
        Ok(self.model.step(&mut self.train_acts, &sgd, clip_norm)?.tally)
    }

    /// Evaluates the network after an epoch, and moves to the beginning of the next.
    fn finish_epoch(&mut self) -> Result<Epoch> {
        let Position { epoch, global_step, loss_sum, images_seen, train_ms, .. } = self.position;
        let ((test, infer_ms), valid) = match &self.recorded {
            Some(recorded) => recorded.evaluate()?,
            None => {
                let batch = self.model.device().evaluation_batch(self.splits.test.len());
                let valid = match &self.splits.valid {
                    Some(images) => Some(self.model.evaluate(images, batch, &mut self.eval_acts)?),
                    None => None,
                };
                let begin = Instant::now();
                let test = self.model.evaluate(&self.splits.test, batch, &mut self.eval_acts)?;
                ((test, begin.elapsed().as_secs_f64() * 1e3), valid)
            }
        };
        self.position = Position { epoch: epoch + 1, global_step, ..Position::default() };
        Ok(Epoch {
            epoch: epoch + 1,
            swiglu: self.config.swiglu.clone(),
            device: self.model.device().name(),
            precision: self.config.precision.name().into(),
            train_loss: loss_sum / images_seen as f64,
            test_loss: test.mean_loss(),
            test_accuracy: test.accuracy(),
            train_ms,
            infer_ms,
            images_per_s: images_seen as f64 / train_ms * 1e3,
            valid_loss: valid.map(|tally| tally.mean_loss()),
            valid_accuracy: valid.map(|tally| tally.accuracy()),
            lr: Some(self.schedule.at(global_step.saturating_sub(1))),
        })
    }

    /// Everything that training needs to go on from here.
    fn checkpoint(&self) -> Result<Checkpoint> {
        let config = serde_json::to_value(&self.config)
            .map_err(|e| Error::new(Kind::Checkpoint, "cannot write the configuration as JSON").because(e))?;
        let velocities = if self.config.momentum > 0.0 { Some(self.model.velocities()?) } else { None };
        Ok(Checkpoint { config, position: self.position, weights: self.model.weights()?, velocities })
    }

    fn diverged(&self, epoch: u32, lr: f32, loss: f32) -> Error {
        let step = self.position.step + 1;
        Error::new(
            Kind::Diverged,
            format!("training diverged: the loss is {loss} at step {step} of epoch {epoch}, with learning rate {lr}"),
        )
        .hint("try a smaller --lr, a longer --warmup, or --clip-norm 1; the last checkpoint, if there is one, is good")
    }
}
