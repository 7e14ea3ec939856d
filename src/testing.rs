//! What the unit tests share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    model::{persistent::Steps, schedule::Schedule},
    swiglu::{Gates, Precision},
    train::{
        config::{Config, NetworkConfig},
        metrics::{Epoch, Start},
    },
};

/// A new empty folder that goes when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    /// A folder of this process's own, named for the test.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mnist-swiglu-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A configuration.
pub fn config() -> Config {
    Config {
        swiglu: "fused-frozen".into(),
        gates: Gates::Auto,
        precision: Precision::Fp32,
        device: "cpu".into(),
        dataset: "mnist".into(),
        network: NetworkConfig { width: 512, hidden: 512, depth: 1 },
        epochs: 5,
        batch_size: 64,
        lr: 0.02,
        momentum: 0.9,
        nesterov: false,
        weight_decay: 0.0,
        schedule: Schedule::Cosine,
        warmup: 100,
        lr_step: 2,
        lr_gamma: 0.1,
        clip_norm: None,
        seed: 1,
        validation: 0,
        steps: Steps::Launches,
        tiles: std::collections::BTreeMap::new(),
    }
}

/// A run's first event.
pub fn start() -> Start {
    Start {
        configuration: config(),
        version: "0.1.0".into(),
        device: "cpu".into(),
        device_name: None,
        threads: 2,
        parameters: 931_338,
        train_images: 60_000,
        valid_images: 0,
        test_images: 10_000,
        steps_per_epoch: 938,
        compile_ms: None,
        capture_ms: None,
        tuning_ms: None,
        launches: None,
        resumed_at: None,
    }
}

/// An epoch with these results.
pub fn epoch(epoch: u32, train_loss: f64, test_loss: f64, test_accuracy: f64) -> Epoch {
    Epoch {
        epoch,
        swiglu: "fused-frozen".into(),
        device: "cpu".into(),
        precision: "fp32".into(),
        train_loss,
        test_loss,
        test_accuracy,
        train_ms: 1500.5,
        infer_ms: 40.25,
        images_per_s: 40_000.0,
        valid_loss: None,
        valid_accuracy: None,
        lr: None,
    }
}
