//! Short runs of the trainer on small images, for tests on any device.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use mnist_swiglu::{
    Error, Result,
    data::{Dataset, Split},
    device::Device,
    model::{
        Mlp,
        checkpoint::{Arrays, Checkpoint, Position},
        schedule::Schedule,
    },
    rng::{Purpose, stream},
    swiglu::{self, Gates, Precision},
    train::{
        config::{Config, NetworkConfig},
        metrics::{Epoch, Event},
        observer::{Observer, Progress},
        trainer::{Splits, Trainer},
    },
};

/// Images of ten blurred bars, a little noisy: easy to learn, quick to make.
pub fn images(count: usize, seed: u32) -> Split {
    use rand::RngExt;
    let mut rng = stream(9, Purpose::Operand(seed));
    let labels: Vec<u8> = (0..count).map(|_| rng.random_range(0..10)).collect();
    let pixel = |label: u8, i: usize, noise: u8| {
        let distance = (i % 28).abs_diff(usize::from(label) * 2 + 4);
        [220_u8, 120, 30].get(distance).copied().unwrap_or(0).saturating_add(noise)
    };
    let images =
        labels.iter().flat_map(|&label| (0..784).map(|i| pixel(label, i, rng.random_range(0..30))).collect::<Vec<_>>());
    Split { images: images.collect(), labels: labels.clone() }
}

pub fn config(swiglu: &str) -> Config {
    Config {
        swiglu: swiglu.into(),
        gates: Gates::Auto,
        precision: Precision::Fp32,
        device: "cpu".into(),
        dataset: "bars".into(),
        network: NetworkConfig { width: 48, hidden: 40, depth: 2 },
        epochs: 2,
        batch_size: 32,
        lr: 0.05,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1e-4,
        schedule: Schedule::Cosine,
        warmup: 5,
        lr_step: 1,
        lr_gamma: 0.5,
        clip_norm: None,
        seed: 3,
        validation: 100,
        steps: mnist_swiglu::model::persistent::Steps::Launches,
        tiles: std::collections::BTreeMap::new(),
    }
}

/// Stops after a number of steps, as Ctrl-C does; collects losses of single steps and events.
struct Watch<'a> {
    stop: &'a AtomicBool,
    after: Option<usize>,
    losses: Vec<f32>,
    epochs: Vec<Epoch>,
}

impl Observer for Watch<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Epoch(epoch) => self.epochs.push(epoch.clone()),
            Event::Step(step) => self.losses.push(step.loss),
            Event::Start(_) | Event::End(_) => {}
        }
        if self.after == Some(self.losses.len()) {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
    fn on_progress(&mut self, _: &Progress) {}
}

/// A thousand of these to train on, and some to test with.
pub fn bars() -> Dataset {
    Dataset { name: "bars".into(), dir: "".into(), train: images(1010, 1), test: images(300, 2) }
}

/// What a run, or a part of one, came to.
pub struct Outcome {
    pub losses: Vec<f32>,
    pub epochs: Vec<Epoch>,
    pub saved: Option<Checkpoint>,
    pub weights: Arrays,
    pub error: Option<Error>,
}

/// Trains from a checkpoint or from the beginning, and stops after some steps; a GPU stops at the end of a block of them.
pub fn train_on(
    device: &Device,
    config: &Config,
    dataset: Dataset,
    from: Option<&Checkpoint>,
    stop_after: Option<usize>,
) -> Outcome {
    let network = config.mlp(device).expect("an entry");
    let mut model = Mlp::new(network, config.seed).expect("a model");
    let mut position = Position::default();
    if let Some(from) = from {
        model.set_weights(&from.weights).expect("weights");
        model.set_velocities(from.velocities.as_ref().expect("velocities")).expect("velocities");
        position = from.position;
    }
    let splits = Splits::new(device, dataset, config.validation, config.seed).expect("splits");
    let mut trainer =
        Trainer::new(config.clone(), model, splits, position, Vec::new(), Instant::now()).expect("a trainer");
    let stop = AtomicBool::new(false);
    let mut watch = Watch { stop: &stop, after: stop_after, losses: Vec::new(), epochs: Vec::new() };
    let mut saved = None;
    let mut save = |checkpoint: &Checkpoint| {
        saved = Some(checkpoint.clone());
        Ok(())
    };
    let error = trainer.run(1, 0, &mut watch, &stop, &mut save).err();
    let weights = trainer.model().weights().expect("weights");
    Outcome { losses: watch.losses, epochs: watch.epochs, saved, weights, error }
}

pub fn trained() -> impl Iterator<Item = &'static str> {
    swiglu::ALL.iter().filter(|entry| entry.trains_weight).map(|entry| entry.name)
}
