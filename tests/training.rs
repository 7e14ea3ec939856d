//! What must hold of training: the same seed gives the same run, whatever the implementation; a run that was stopped goes
//! on as if it had not been; frozen is frozen; what diverges stops and keeps what was good.

#[path = "common/runs.rs"]
mod runs;

use mnist_swiglu::{
    Kind,
    device::Device,
    model::{
        checkpoint::{Checkpoint, names},
        init,
        schedule::Schedule,
    },
    swiglu::{self, Gates},
    train::config::{Config, NetworkConfig},
};
use runs::{Outcome, bars, config, trained};

/// On the CPU.
fn train(config: &Config, threads: usize, from: Option<&Checkpoint>, stop_after: Option<usize>) -> Outcome {
    let device = Device::open("cpu", Some(threads)).expect("a CPU").0;
    runs::train_on(&device, config, bars(), from, stop_after)
}

#[test]
fn the_first_ten_losses_are_equal_across_the_trained_implementations() {
    let reference = train(&config("liger-style"), 2, None, Some(10)).losses;
    assert_eq!(reference.len(), 10);
    for name in trained() {
        for gates in [Gates::Auto, Gates::Save] {
            let losses = train(&Config { gates, ..config(name) }, 2, None, Some(10)).losses;
            for (step, (got, want)) in losses.iter().zip(&reference).enumerate() {
                // Library products and our tiles add up in different orders: a few units in the last place.
                let error = (got - want).abs() / want;
                assert!(
                    error < 2e-6,
                    "{name}, step {}: {got} for {want}, {:.0} % of the tolerance",
                    step + 1,
                    error / 2e-6 * 100.0
                );
            }
        }
    }
    // The loss of the first step is before any update, and frozen differs in updates alone.
    let frozen = train(&config("fused-frozen"), 2, None, Some(10)).losses;
    assert!((frozen[0] - reference[0]).abs() < 2e-6 * reference[0]);
    assert!((frozen[9] - reference[9]).abs() > 1e-4, "frozen weights must make a difference");
}

#[test]
fn recomputed_gates_give_the_very_same_run_as_saved_ones() {
    for name in ["fused-frozen", "fused-python-grad", "fused-triton-grad"] {
        let run = |gates| train(&Config { gates, ..config(name) }, 2, None, None).losses;
        assert!(run(Gates::Save) == run(Gates::Recompute), "{name}");
    }
}

#[test]
fn clipping_to_a_norm_that_is_never_reached_changes_nothing_but_rounding() {
    for name in trained() {
        let free = train(&config(name), 2, None, Some(20)).losses;
        let clipped = train(&Config { clip_norm: Some(1e9), ..config(name) }, 2, None, Some(20)).losses;
        for (got, want) in clipped.iter().zip(&free) {
            assert!((got - want).abs() <= 1e-6 * want, "{name}: {got} for {want}");
        }
        let tight = train(&Config { clip_norm: Some(0.1), ..config(name) }, 2, None, Some(20)).losses;
        assert!((tight[19] - free[19]).abs() > 1e-3, "{name}: a tight bound must slow training down");
    }
}

#[test]
fn runs_are_bit_identical_for_any_number_of_threads() {
    for entry in swiglu::ALL {
        let one = train(&config(entry.name), 1, None, None);
        let three = train(&config(entry.name), 3, None, None);
        assert!(one.losses == three.losses && one.weights == three.weights, "{}", entry.name);
    }
}

#[test]
fn frozen_leaves_the_packed_weight_bit_identical_while_stem_and_head_learn() {
    let config = config("fused-frozen");
    let NetworkConfig { width, hidden, depth } = config.network.clone();
    let before = init::weights(width, hidden, depth, config.seed);
    let outcome = train(&config, 2, None, None);
    for (name, _) in names::expected(width, hidden, depth) {
        let same = before[&name] == outcome.weights[&name];
        assert_eq!(same, name.starts_with("layers."), "{name}");
    }
    assert!(outcome.epochs[1].train_loss < outcome.epochs[0].train_loss);
}

#[test]
fn every_implementation_learns() {
    for entry in swiglu::ALL {
        let epochs = train(
            &Config {
                epochs: 30,
                lr: 0.03,
                network: NetworkConfig { width: 48, hidden: 40, depth: 1 },
                ..config(entry.name)
            },
            2,
            None,
            None,
        )
        .epochs;
        let last = epochs.last().expect("an epoch");
        assert!(last.test_accuracy > 0.95, "{}: {}", entry.name, last.test_accuracy);
        assert!(
            last.valid_accuracy.is_some_and(|accuracy| accuracy > 0.95),
            "{}: {:?}",
            entry.name,
            last.valid_accuracy
        );
    }
}

#[test]
fn a_run_stopped_in_the_middle_of_an_epoch_goes_on_to_the_very_same_losses() {
    for entry in swiglu::ALL {
        let config = config(entry.name);
        let whole = train(&config, 2, None, None);
        assert!(whole.error.is_none());
        // 910 images in steps of 32: 29 steps an epoch. In the first epoch, at its end, in the second.
        for stop in [1, 17, 29, 30, 50] {
            let first = train(&config, 2, None, Some(stop));
            let checkpoint = first.saved.expect("a checkpoint");
            assert_eq!(checkpoint.position.global_step, stop as u64);
            // Through the file, as a real resume does.
            let folder =
                std::env::temp_dir().join(format!("mnist-swiglu-resume-{}-{}-{stop}", std::process::id(), entry.name));
            std::fs::create_dir_all(&folder).expect("a folder");
            mnist_swiglu::model::checkpoint::save(&folder, &checkpoint).expect("saved");
            let loaded = mnist_swiglu::model::checkpoint::load(&folder).expect("loaded");
            std::fs::remove_dir_all(&folder).expect("removed");
            let second = train(&config, 2, Some(&loaded), None);
            let losses = [first.losses, second.losses].concat();
            assert!(losses == whole.losses, "{} stopped after {stop} steps", entry.name);
            assert!(second.weights == whole.weights, "{} stopped after {stop} steps: weights", entry.name);
            let (got, want) = (second.epochs.last().expect("an epoch"), &whole.epochs[1]);
            assert_eq!(
                (got.train_loss, got.test_loss, got.valid_loss),
                (want.train_loss, want.test_loss, want.valid_loss)
            );
        }
    }
}

#[test]
fn a_checkpoint_goes_on_with_any_other_implementation() {
    let start = train(&config("liger-style"), 2, None, Some(29)).saved.expect("a checkpoint");
    let own = train(&config("liger-style"), 2, Some(&start), None).epochs[0].test_loss;
    for name in trained() {
        let other = train(&config(name), 2, Some(&start), None).epochs[0].test_loss;
        assert!((own - other).abs() < 1e-4 * own, "{name}: {other} for {own}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let wild = Config { lr: 1e4, warmup: 0, schedule: Schedule::Constant, epochs: 3, ..config("fused-triton-grad") };
    let outcome = train(&wild, 2, None, None);
    let error = outcome.error.expect("it diverges");
    assert_eq!(error.kind(), Kind::Diverged);
    let text = error.to_string();
    assert!(text.contains("step ") && text.contains("epoch 1") && text.contains("learning rate 10000"), "{text}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--lr")));
    assert!(outcome.saved.is_none(), "nothing is saved after the loss is gone");
}
