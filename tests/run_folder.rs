//! What must hold for the folder of a run: one writer, nothing overwritten, and a run that was killed at any moment goes
//! on from its checkpoint with metrics that fit it.

#![allow(clippy::unwrap_used)] // A test that cannot go on should stop where it stands.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mnist_swiglu::{
    Kind,
    model::checkpoint::{Array, Checkpoint, Position, parse_config},
    model::schedule::Schedule,
    swiglu::{Gates, Precision},
    train::{
        config::{Config, NetworkConfig},
        metrics::{Epoch, Event, read_metrics},
        run_dir::{self, RunDir},
    },
};

/// A folder that is not there yet, inside one that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mnist-swiglu-it-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config() -> Config {
    Config {
        swiglu: "fused-triton-grad".into(),
        gates: Gates::Save,
        precision: Precision::Fp32,
        device: "cpu".into(),
        dataset: "mnist".into(),
        network: NetworkConfig { width: 3, hidden: 2, depth: 1 },
        epochs: 3,
        batch_size: 64,
        lr: 0.1 + 0.2,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1e-7,
        schedule: Schedule::Step,
        warmup: 0,
        lr_step: 2,
        lr_gamma: 0.3,
        clip_norm: Some(1.0 / 3.0),
        seed: u64::MAX,
        validation: 10,
        steps: mnist_swiglu::model::persistent::Steps::Launches,
        tiles: BTreeMap::from([("hopper_swiglu_forward bf16 64x2048x2048 gates".into(), "64x64 g1 s9 k2 x2".into())]),
    }
}

fn epoch(number: u32) -> Event {
    Event::Epoch(Epoch {
        epoch: number,
        swiglu: "fused-triton-grad".into(),
        device: "cpu".into(),
        precision: "fp32".into(),
        train_loss: 1.0 / f64::from(number),
        test_loss: 0.5,
        test_accuracy: 0.9,
        train_ms: 10.0,
        infer_ms: 1.0,
        images_per_s: 1000.0,
        valid_loss: None,
        valid_accuracy: None,
        lr: Some(0.1),
    })
}

fn checkpoint(epochs: u32) -> Checkpoint {
    let array = |value: f32| Array { shape: vec![2, 1], data: vec![value, -value] };
    Checkpoint {
        config: serde_json::to_value(config()).unwrap(),
        position: Position { epoch: epochs, global_step: 10 * u64::from(epochs), ..Position::default() },
        weights: BTreeMap::from([("w".to_owned(), array(epochs as f32))]),
        velocities: Some(BTreeMap::from([("w".to_owned(), array(0.1))])),
    }
}

fn epochs_in(path: &Path) -> Vec<u32> {
    let (events, skipped) = read_metrics(path).unwrap();
    assert_eq!(skipped, 0);
    events
        .iter()
        .filter_map(|event| match event {
            Event::Epoch(epoch) => Some(epoch.epoch),
            _ => None,
        })
        .collect()
}

#[test]
fn a_new_run_takes_an_absent_or_an_empty_folder_and_no_other() {
    let scratch = Scratch::new("new");
    drop(RunDir::create(Some(scratch.join("a/b/absent")), "liger-style", "cpu").unwrap());
    fs::create_dir(scratch.join("empty")).unwrap();
    drop(RunDir::create(Some(scratch.join("empty")), "liger-style", "cpu").unwrap());
    // A run that died before it wrote anything leaves its lock alone.
    drop(RunDir::create(Some(scratch.join("empty")), "liger-style", "cpu").unwrap());

    fs::write(scratch.join("empty/notes.txt"), "mine").unwrap();
    let error = RunDir::create(Some(scratch.join("empty")), "liger-style", "cpu").unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (Kind::Usage, 2));
    assert!(error.to_string().ends_with("is not empty: it holds notes.txt"), "{error}");
    assert!(error.hint_text().unwrap().contains("--resume"));

    let error = RunDir::create(Some(scratch.join("empty/notes.txt")), "liger-style", "cpu").unwrap_err();
    assert!(error.to_string().ends_with("is a file"), "{error}");
    assert_eq!(fs::read_to_string(scratch.join("empty/notes.txt")).unwrap(), "mine");
}

#[test]
fn two_processes_do_not_train_in_one_folder_and_a_dead_one_does_not_block() {
    let scratch = Scratch::new("lock");
    let path = scratch.join("run");
    let run = RunDir::create(Some(path.clone()), "liger-style", "cpu").unwrap();
    run.write_config(&config()).unwrap();
    let error = RunDir::open(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Checkpoint);
    assert!(error.to_string().starts_with("another process is training in "), "{error}");
    drop(run);
    // The lock file is still there: it is the lock that counts.
    assert!(path.join("run.lock").is_file());
    RunDir::open(&path).unwrap();
}

#[test]
fn only_the_folder_of_a_run_can_be_gone_on_with() {
    let scratch = Scratch::new("open");
    for (name, words) in [("nowhere", "there is no such folder"), ("", "it holds no config.json")] {
        let error = RunDir::open(&scratch.join(name)).unwrap_err();
        assert_eq!(error.kind(), Kind::Checkpoint);
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(!scratch.join("run.lock").exists(), "nothing is left where there is no run");
}

#[test]
fn the_configuration_comes_back_to_the_last_bit_from_both_places() {
    let scratch = Scratch::new("config");
    let run = RunDir::create(Some(scratch.join("run")), "liger-style", "cpu").unwrap();
    run.write_config(&config()).unwrap();
    run.save(&checkpoint(1)).unwrap();
    let read = run.read_config().unwrap();
    assert_eq!(read.configuration, config());
    assert_eq!(read.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(read.created.len(), "2026-11-22T15:56:47Z".len());
    let loaded: Config = parse_config(&run.load().unwrap().config, run.path()).unwrap();
    assert_eq!(loaded, config());

    fs::write(run.config_path(), "{}").unwrap();
    assert_eq!(run.read_config().unwrap_err().kind(), Kind::Checkpoint);
}

#[test]
fn a_run_killed_between_metrics_and_checkpoint_repeats_the_epoch_once() {
    let scratch = Scratch::new("killed");
    let path = scratch.join("run");
    {
        let run = RunDir::create(Some(path.clone()), "liger-style", "cpu").unwrap();
        run.write_config(&config()).unwrap();
        let mut metrics = run.new_metrics().unwrap();
        metrics.append(&epoch(1)).unwrap();
        metrics.sync().unwrap();
        run.save(&checkpoint(1)).unwrap();
        // The second epoch is in the metrics when the process dies, in the middle of a line and of a checkpoint.
        metrics.append(&epoch(2)).unwrap();
    }
    let metrics = path.join("metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).unwrap();
    text.push_str(r#"{"event":"step","epo"#);
    fs::write(&metrics, text).unwrap();
    fs::write(path.join("checkpoint.safetensors.tmp-7-8-9"), "half").unwrap();
    fs::write(path.join("optimizer-20.safetensors"), "half").unwrap();

    let run = RunDir::open(&path).unwrap();
    let saved = run.load().unwrap();
    assert_eq!(saved, checkpoint(1));
    let mut metrics = run.resume_metrics(&saved.position).unwrap();
    assert_eq!((metrics.dropped(), metrics.skipped()), (1, 1));
    assert_eq!(metrics.events(), [epoch(1)]);
    for number in 2..=3 {
        metrics.append(&epoch(number)).unwrap();
        metrics.sync().unwrap();
        run.save(&checkpoint(number)).unwrap();
    }
    assert_eq!(epochs_in(&run.metrics_path()), [1, 2, 3]);
    assert_eq!(run.load().unwrap(), checkpoint(3));
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = ["checkpoint.safetensors", "config.json", "metrics.jsonl", "optimizer-30.safetensors", "run.lock"];
    assert_eq!(names, expected);
}

#[test]
fn the_newest_run_is_the_one_whose_checkpoint_is() {
    let scratch = Scratch::new("newest");
    assert_eq!(run_dir::newest(&scratch.join("nowhere")).unwrap_err().kind(), Kind::Checkpoint);
    assert!(run_dir::newest(&scratch.0).unwrap_err().hint_text().unwrap().contains("mnist-swiglu train"));
    for name in ["b", "a"] {
        let run = RunDir::create(Some(scratch.join(name)), "liger-style", "cpu").unwrap();
        run.save(&checkpoint(1)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::create_dir(scratch.join("z-without-checkpoint")).unwrap();
    assert_eq!(run_dir::newest(&scratch.0).unwrap(), scratch.join("a"));
}
