//! What must hold on an NVIDIA GPU. Without one each test says that it is skipped; MNIST_SWIGLU_REQUIRE_CUDA=1 makes that a
//! failure.

#[path = "common/runs.rs"]
mod runs;

use std::sync::{Mutex, MutexGuard, PoisonError};

use mnist_swiglu::{
    Kind, data,
    data::Dataset,
    device::{
        Device,
        cuda::{
            Cuda,
            tune::{By, Chosen},
        },
    },
    measure::check::{
        Case, LARGE_SHAPES, SHAPES, check_layer, gates_of,
        training::{GPU_NETWORKS, NETWORKS, SMALL_NETWORKS, TrainingCase, check_training},
    },
    model::{checkpoint::Checkpoint, persistent::Steps, schedule::Schedule},
    swiglu::{
        self, Gates, LayerConfig, Pass, Precision, WeightGrad,
        reference::{Dims, Operands},
    },
    train::config::{Config, NetworkConfig},
};
use runs::{Outcome, bars, config, trained};

/// The first GPU, or None after saying that the test is skipped. One test at a time has it, as one run has: several
/// streams at once are not how the program works, and not what these tests are about.
fn gpu() -> Option<(MutexGuard<'static, ()>, Device)> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Device::open("cuda", None) {
        Ok((device, _)) => Some((guard, device)),
        Err(error) => {
            let required = std::env::var_os("MNIST_SWIGLU_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "MNIST_SWIGLU_REQUIRE_CUDA=1: {error}");
            eprintln!("skipped: no CUDA device ({error})");
            None
        }
    }
}

fn cpu() -> Device {
    Device::open("cpu", None).expect("a CPU").0
}

/// MNIST, from MNIST_SWIGLU_DATA or this repository.
fn mnist() -> Dataset {
    let dir = std::env::var_os("MNIST_SWIGLU_DATA").map(std::path::PathBuf::from);
    data::load_from("mnist", dir.as_deref()).expect("MNIST")
}

/// Trains, and shows the error of a run that ends with one.
fn train_on(
    device: &Device,
    config: &Config,
    dataset: Dataset,
    from: Option<&Checkpoint>,
    stop_after: Option<usize>,
) -> Outcome {
    let outcome = runs::train_on(device, config, dataset, from, stop_after);
    if let Some(error) = outcome.error.as_ref().filter(|error| error.kind() != Kind::Interrupted) {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        panic!("{} {:?}: {error} ({cause})", config.swiglu, config.precision);
    }
    outcome
}

/// The default network, a short run of it.
fn small_mnist(swiglu: &str, precision: Precision) -> Config {
    Config {
        network: NetworkConfig { width: 512, hidden: 512, depth: 1 },
        batch_size: 64,
        lr: 0.0034,
        momentum: 0.95,
        weight_decay: 5e-4,
        nesterov: false,
        warmup: 300,
        schedule: Schedule::FlatCosine,
        epochs: 5,
        validation: 0,
        steps: Steps::Launches,
        seed: 1,
        precision,
        ..config(swiglu)
    }
}

#[test]
fn every_implementation_and_precision_agrees_with_the_reference() {
    let Some((_guard, device)) = gpu() else { return };
    for &dims in SHAPES.iter().chain(LARGE_SHAPES) {
        for &precision in Precision::of_device(&device) {
            let case = Case::in_precision(dims, 11, precision);
            for entry in swiglu::ALL {
                for &gates in gates_of(entry) {
                    for check in check_layer(entry, &device, precision, gates, &case).expect("a result") {
                        assert!(
                            check.ok,
                            "{} {precision:?} {gates:?} {dims} {}: error {:.2e}, {:.0} % of the bound",
                            check.swiglu,
                            check.pass,
                            check.rel_err,
                            check.rel_err / check.bound * 100.0
                        );
                    }
                }
            }
        }
    }
}

/// Operands that a split of fp32 into fewer bits could get wrong, by what is done to random ones. `tiny`: the power of two
/// that brings Wf to the smallest numbers that the kernels keep all bits of.
fn adversarial(dims: Dims, tiny: i32) -> Vec<(&'static str, Operands)> {
    let random = Operands::random(dims, 17);
    let exponent = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) % 25;
    let spread = |values: &[f32]| -> Vec<f32> {
        values.iter().enumerate().map(|(i, v)| v * 2_f32.powi(exponent(i) as i32 - 12)).collect()
    };
    let scaled = |values: &[f32], by: f32| -> Vec<f32> { values.iter().map(|v| v * by).collect() };
    let row = |values: &[f32], row: usize, by: f32| -> Vec<f32> {
        let of_row = row * dims.inputs..(row + 1) * dims.inputs;
        values.iter().enumerate().map(|(i, v)| if of_row.contains(&i) { v * by } else { *v }).collect()
    };
    // Neighbours that all but cancel: what is left is a thousandth of what is summed.
    let pairs = |values: &[f32], second: f32| -> Vec<f32> {
        values.chunks(2).flat_map(|pair| [pair[0], pair[0] * second]).collect()
    };
    let with = |x: Vec<f32>, wf: Vec<f32>| Operands { x, wf, dz: random.dz.clone() };
    let Operands { x, wf, .. } = &random;
    vec![
        ("random normal", random.clone()),
        ("exponents spread over 2^24 in x and Wf", with(spread(x), spread(wf))),
        ("Wf tiny, x near the largest", with(scaled(x, 2_f32.powi(-5 - tiny)), scaled(wf, 2_f32.powi(tiny)))),
        ("one image 10^5 times the others", with(row(x, 3, 1e5), wf.clone())),
        ("one unit's gate 10^4 times the others", with(x.clone(), row(wf, 5, 1e4))),
        ("neighbours that cancel to 10^-3", with(pairs(x, 1.001), pairs(wf, -1.0))),
    ]
}

#[test]
fn fp32_emulated_is_as_good_as_fp32_on_adversarial_operands() {
    let Some((_guard, device)) = gpu() else { return };
    let entry = swiglu::find("fused-triton-grad").expect("an implementation");
    println!("| operands | pass | fp32 | fp32-emulated |\n|---|---|---|---|");
    let Device::Cuda(cuda) = &device else { panic!("a GPU") };
    // Hopper's kernels scale what they split, and take denormals; the portable ones do not, and lose bits below 2^-115.
    let tiny = if cuda.chip().hopper { -127 } else { -100 };
    let shapes =
        [(Dims { batch: 64, inputs: 512, hidden: 512 }, tiny), (Dims { batch: 200, inputs: 130, hidden: 70 }, -100)];
    for (dims, tiny) in shapes {
        for (name, operands) in adversarial(dims, tiny) {
            let case = Case::of(dims, operands);
            let errors = |precision| check_layer(entry, &device, precision, Gates::Save, &case).expect("a result");
            for (plain, emulated) in errors(Precision::Fp32).iter().zip(errors(Precision::Fp32Emulated)) {
                let (fp32, split) = (plain.rel_err, emulated.rel_err);
                println!("| {name} ({dims}) | {} | {fp32:.1e} | {split:.1e} |", plain.pass);
                // Where fp32 itself is off by more than its bound, emulation may be off by four times as much.
                assert!(split <= (4.0 * fp32).max(emulated.bound), "{name} {dims} {}: {split:.2e}", plain.pass);
            }
        }
    }
}

#[test]
fn steps_of_training_agree_with_the_reference_eagerly_and_replayed() {
    let Some((_guard, device)) = gpu() else { return };
    for &(dims, depth) in NETWORKS.iter().chain(SMALL_NETWORKS).chain(GPU_NETWORKS) {
        let case = TrainingCase::new(dims, depth, 5);
        for &precision in Precision::of_device(&device) {
            for &entry in swiglu::ALL {
                for &gates in gates_of(entry) {
                    for check in check_training(entry, &device, precision, gates, &case).expect("steps") {
                        let used = check.rel_err / check.bound * 100.0;
                        assert!(check.ok, "{check:?}: {used:.0} % of the bound");
                    }
                }
            }
        }
    }
}

/// The largest relative difference of the first 100 losses; each must be below `bound`.
fn first_hundred_differ_by(got: &[f32], want: &[f32], bound: f32, what: &str) -> f32 {
    let mut worst: f32 = 0.0;
    for (step, (got, want)) in got.iter().zip(want).take(100).enumerate() {
        let error = (got - want).abs() / want.abs().max(0.1);
        worst = worst.max(error);
        assert!(error < bound, "{what}, step {}: {got} for {want}", step + 1);
    }
    worst
}

#[test]
fn the_first_hundred_losses_in_fp32_are_those_of_the_cpu() {
    let Some((_guard, device)) = gpu() else { return };
    for name in trained() {
        let config = small_mnist(name, Precision::Fp32);
        let want = train_on(&cpu(), &config, mnist(), None, Some(100)).losses;
        let got = train_on(&device, &config, mnist(), None, Some(100)).losses;
        // Sums in another order: a unit in the last place a step, which a hundred steps of learning multiply.
        let worst = first_hundred_differ_by(&got, &want, 2e-4, name);
        eprintln!("{name}: largest relative difference of the first 100 losses {worst:.1e}, bound 2e-4");
    }
}

#[test]
fn the_first_hundred_losses_with_sgd_in_the_kernels_are_those_of_gradients_in_memory() {
    let Some((_guard, device)) = gpu() else { return };
    for &precision in Precision::of_device(&device) {
        // Other sums in other orders, each as wrong as its precision allows, which a hundred steps of learning multiply.
        let bound = match precision {
            Precision::Fp32 | Precision::Fp32Emulated => 2e-4,
            Precision::Tf32 => 5e-3,
            Precision::Bf16 => 4e-2,
        };
        let config = small_mnist("fused-triton-grad", precision);
        let got = train_on(&device, &config, mnist(), None, Some(100)).losses;
        // A bound that no gradient reaches keeps all of them in memory, scales by 1 and takes the steps by a kernel of its own.
        let clipped = Config { clip_norm: Some(1e9), ..config };
        for other in [small_mnist("liger-style", precision), clipped] {
            let want = train_on(&device, &other, mnist(), None, Some(100)).losses;
            let what = format!("{precision:?} {} {:?}", other.swiglu, other.clip_norm);
            let worst = first_hundred_differ_by(&got, &want, bound, &what);
            eprintln!(
                "{precision:?}: largest relative difference of the first 100 losses to {} with clip_norm {:?} {worst:.1e}, bound {bound:.0e}",
                other.swiglu, other.clip_norm
            );
        }
    }
}

fn losses_and_weights(outcome: &Outcome) -> (Vec<u32>, Vec<(String, Vec<u32>)>) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let weights = outcome.weights.iter().map(|(name, array)| (name.clone(), bits(&array.data))).collect();
    (bits(&outcome.losses), weights)
}

#[test]
fn the_same_run_twice_is_bit_identical() {
    let Some((_guard, device)) = gpu() else { return };
    for entry in swiglu::ALL {
        for &precision in Precision::of_device(&device) {
            let config = Config { precision, ..config(entry.name) };
            let run = || losses_and_weights(&train_on(&device, &config, bars(), None, None));
            assert!(run() == run(), "{} {precision:?}", entry.name);
        }
    }
    for &precision in Precision::of_device(&device) {
        let config = Config { epochs: 1, schedule: Schedule::Constant, ..small_mnist("fused-triton-grad", precision) };
        let run = || losses_and_weights(&train_on(&device, &config, mnist(), None, None));
        assert!(run() == run(), "MNIST {precision:?}");
    }
}

#[test]
fn a_run_stopped_anywhere_goes_on_to_the_very_same_losses() {
    let Some((_guard, device)) = gpu() else { return };
    for entry in swiglu::ALL {
        for &precision in Precision::of_device(&device) {
            // Small batches: an epoch of several blocks, so that a stop falls inside one.
            let config = Config { precision, batch_size: 4, lr: 0.004, ..config(entry.name) };
            let whole = train_on(&device, &config, bars(), None, None);
            let first = train_on(&device, &config, bars(), None, Some(5));
            let saved = first.saved.as_ref().expect("a checkpoint");
            assert!(first.losses.len() < whole.losses.len(), "it was stopped");
            let second = train_on(&device, &config, bars(), Some(saved), None);
            let joined: Vec<f32> = first.losses.iter().chain(&second.losses).copied().collect();
            assert!(joined == whole.losses, "{} {precision:?}: other losses after a stop", entry.name);
            assert_eq!(losses_and_weights(&second).1, losses_and_weights(&whole).1, "{} {precision:?}", entry.name);
        }
    }
}

#[test]
fn large_batches_go_the_same_way_twice_and_after_a_stop() {
    let Some((_guard, device)) = gpu() else { return };
    for &precision in Precision::of_device(&device) {
        // Kernels for large batches, and at the end of an epoch a batch that is smaller than they take.
        let config = Config {
            epochs: 4, // several blocks, so that a stop falls between two
            batch_size: 704,
            schedule: Schedule::Constant,
            ..small_mnist("fused-triton-grad", precision)
        };
        let run = |from: Option<&Checkpoint>, stop| train_on(&device, &config, mnist(), from, stop);
        let (whole, again, first) = (run(None, None), run(None, None), run(None, Some(5)));
        assert!(losses_and_weights(&whole) == losses_and_weights(&again), "{precision:?}: twice");
        assert!(first.losses.len() < whole.losses.len(), "it was stopped");
        let second = run(first.saved.as_ref(), None);
        let joined: Vec<f32> = first.losses.iter().chain(&second.losses).copied().collect();
        assert!(joined == whole.losses, "{precision:?}: other losses after a stop");
        assert_eq!(losses_and_weights(&second).1, losses_and_weights(&whole).1, "{precision:?}");
        // The same network by library products for dWf, whose step and the stem's have launches of their own.
        let library = Config { swiglu: "fused-python-grad".into(), ..config };
        let library = train_on(&device, &library, mnist(), None, None);
        let near = |(ours, theirs): (&f32, &f32)| (ours - theirs).abs() <= 0.01 * theirs.abs() + 0.005;
        assert!(
            whole.losses.iter().zip(&library.losses).all(near),
            "{precision:?}: other losses than by library products"
        );
    }
}

/// The implementations and precisions whose steps can be persistent, on a GPU that can.
fn persistent_runs(device: &Device) -> Vec<Config> {
    let mut runs = Vec::new();
    for name in ["fused-triton-grad", "fused-frozen"] {
        for precision in Precision::of_device(device).iter().copied().filter(|&p| p != Precision::Fp32) {
            let config = Config { epochs: 1, schedule: Schedule::Constant, ..small_mnist(name, precision) };
            let network = config.mlp(device).expect("a network");
            match Steps::Persistent.resolve(device, &network, config.batch_size, false) {
                Ok(steps) => runs.push(Config { steps, ..config }),
                Err(error) => eprintln!("skipped: {error}"),
            }
        }
    }
    runs
}

#[test]
fn persistent_steps_lose_what_launches_lose_and_twice_the_same() {
    let Some((_guard, device)) = gpu() else { return };
    for config in persistent_runs(&device) {
        let run = |steps| train_on(&device, &Config { steps, ..config.clone() }, mnist(), None, None);
        let (persistent, again, launches) = (run(Steps::Persistent), run(Steps::Persistent), run(Steps::Launches));
        assert!(losses_and_weights(&persistent) == losses_and_weights(&again), "{config:?}");
        let bound = match config.precision {
            Precision::Bf16 => 3e-2, // activations that launches keep in bf16 stay in fp32 here
            Precision::Tf32 => 5e-3,
            Precision::Fp32 | Precision::Fp32Emulated => 2e-4,
        };
        let what = format!("{} {:?}", config.swiglu, config.precision);
        assert_eq!(persistent.losses.len(), launches.losses.len());
        let worst = first_hundred_differ_by(&persistent.losses, &launches.losses, bound, &what);
        eprintln!("{what}: first 100 losses differ by {worst:.1e}, bound {bound:.1e}");
    }
}

#[test]
fn a_persistent_run_stopped_anywhere_goes_on_to_the_very_same_losses() {
    let Some((_guard, device)) = gpu() else { return };
    for config in persistent_runs(&device) {
        // Small batches: an epoch of more launches than are on their way at once, so that a stop falls inside one.
        let config = Config { batch_size: 16, lr: 0.001, ..config };
        let whole = train_on(&device, &config, mnist(), None, None);
        let first = train_on(&device, &config, mnist(), None, Some(5));
        assert!(first.losses.len() < whole.losses.len(), "it was stopped");
        let second = train_on(&device, &config, mnist(), first.saved.as_ref(), None);
        let joined: Vec<f32> = first.losses.iter().chain(&second.losses).copied().collect();
        assert!(joined == whole.losses, "{} {:?}: other losses after a stop", config.swiglu, config.precision);
        assert_eq!(
            losses_and_weights(&second).1,
            losses_and_weights(&whole).1,
            "{} {:?}",
            config.swiglu,
            config.precision
        );
    }
}

#[test]
fn a_checkpoint_goes_on_on_another_device() {
    let Some((_guard, device)) = gpu() else { return };
    let cpu = cpu();
    for entry in swiglu::ALL {
        let config = Config { batch_size: 4, lr: 0.004, ..config(entry.name) };
        let whole = train_on(&cpu, &config, bars(), None, None).losses;
        for (one, other) in [(&cpu, &device), (&device, &cpu)] {
            let first = train_on(one, &config, bars(), None, Some(5));
            let second = train_on(other, &config, bars(), first.saved.as_ref(), None);
            let joined: Vec<f32> = first.losses.iter().chain(&second.losses).copied().collect();
            assert_eq!(joined.len(), whole.len());
            let (got, want) = (joined[first.losses.len() + 1], whole[first.losses.len() + 1]);
            assert!((got - want).abs() <= 1e-3 * want.abs().max(0.1), "{}: {got} for {want}", entry.name);
        }
    }
}

#[test]
fn frozen_weights_stay_and_clipping_works() {
    let Some((_guard, device)) = gpu() else { return };
    let frozen = train_on(&device, &config("fused-frozen"), bars(), None, None);
    let start = mnist_swiglu::model::init::weights(48, 40, 2, 3);
    for (name, array) in &frozen.weights {
        let same = array.data == start[name].data;
        assert_eq!(same, name.starts_with("layers."), "{name}");
    }
    for name in trained() {
        for clip_norm in [Some(0.1), Some(1e9)] {
            let config = Config { clip_norm, ..config(name) };
            let got = train_on(&device, &config, bars(), None, None).losses;
            let want = train_on(&cpu(), &config, bars(), None, None).losses;
            for (step, (got, want)) in got.iter().zip(&want).take(20).enumerate() {
                let error = (got - want).abs() / want.abs().max(0.1);
                assert!(error < 1e-3, "{name}, clip {clip_norm:?}, step {}: {got} for {want}", step + 1);
            }
        }
    }
}

#[test]
fn gates_recomputed_and_saved_train_alike() {
    let Some((_guard, device)) = gpu() else { return };
    for name in ["fused-frozen", "fused-python-grad", "fused-triton-grad"] {
        let run = |gates| train_on(&device, &Config { gates, ..config(name) }, bars(), None, None).losses;
        for (got, want) in run(Gates::Save).iter().zip(run(Gates::Recompute)).take(20) {
            assert!((got - want).abs() < 1e-3 * want.max(0.1), "{name}: {got} and {want}");
        }
    }
}

/// A GPU opened once more, as by another process, that tunes or does not.
fn opened(autotune: bool) -> Cuda {
    let Device::Cuda(cuda) = Device::open("cuda", None).expect("a GPU").0 else { panic!("a GPU") };
    cuda.set_autotune(autotune);
    cuda
}

/// The tiles of a training step's kernels, by problem; and how many of them were tuned just now.
fn tiles(cuda: &Cuda, precision: Precision, dims: Dims, gates: Gates) -> (Vec<Chosen>, usize) {
    let device = Device::Cuda(cuda.with_precision(precision));
    let Dims { batch, inputs, hidden } = dims;
    let entry = swiglu::find("fused-triton-grad").expect("an implementation");
    let config = LayerConfig { device: device.clone(), inputs, hidden, gates, precision };
    let mut layer = (entry.new)(&config).expect("a layer");
    let tensor = |cols| device.activations(batch, cols).expect("a tensor");
    let (x, mut z, dz, mut dx) = (tensor(inputs), tensor(hidden), tensor(hidden), tensor(inputs));
    let before = cuda.tune_time();
    let chosen = cuda.tune(|| {
        layer.forward(&x, &mut z, Pass::Training)?;
        layer.backward(&x, &dz, Some(&mut dx), WeightGrad::Buffer)
    });
    (chosen.expect("tuned"), cuda.tune_time().since(before).tuned)
}

/// Of dx and dWf side by side there is one pair of tiles.
fn has_no_choice(chosen: &Chosen) -> bool {
    chosen.problem.ends_with(" beside")
}

#[test]
fn tiles_are_tuned_once_kept_on_disk_and_those_of_a_checkpoint_come_first() {
    let Some((_guard, _)) = gpu() else { return };
    let dims = Dims { batch: 64, inputs: 512, hidden: 512 };
    let cuda = opened(true);
    for &precision in Precision::of_device(&Device::Cuda(cuda.clone())) {
        let tiles = |cuda: &Cuda| tiles(cuda, precision, dims, Gates::Save);
        let (first, _) = tiles(&cuda);
        assert_eq!(first.len(), 3, "{first:?}");
        assert!(first.iter().all(|chosen| (chosen.by == By::Tuner) != has_no_choice(chosen)), "{first:?}");
        assert_eq!(tiles(&cuda), (first.clone(), 0), "the same choice as long as the program runs");
        // Whoever starts next finds it on disk, unless there is no place to keep it.
        if cuda.take_warning().is_none() {
            assert_eq!(tiles(&opened(true)), (first.clone(), 0), "{precision:?}");
        }
        let (ruled, tuned) = tiles(&opened(false));
        assert!(tuned == 0 && ruled.iter().all(|chosen| chosen.by == By::Rule), "{ruled:?}");
        let resumed = opened(true);
        resumed.pin_tiles(&ruled.iter().map(|c| (c.problem.clone(), c.tile.clone())).collect());
        let (pinned, tuned) = tiles(&resumed);
        assert!(tuned == 0 && pinned.iter().all(|chosen| chosen.by == By::Checkpoint), "{pinned:?}");
        assert!(pinned.iter().zip(&ruled).all(|(one, other)| one.tile == other.tile), "{pinned:?} {ruled:?}");
    }
}

#[test]
fn every_candidate_gives_what_the_rules_choice_gives_and_tuning_is_quick() {
    let Some((_guard, _)) = gpu() else { return };
    println!("| problem | rule us | best us | ratio | best | timed | tuning ms |\n|---|---|---|---|---|---|---|");
    let (mut tuned, mut left) = (0, 0);
    for precision in [Precision::Bf16, Precision::Tf32, Precision::Fp32Emulated, Precision::Fp32] {
        for width in [2048, 4096] {
            for batch in [64, 256, 1024] {
                let recompute = (batch == 64).then_some(Gates::Recompute);
                for gates in [Gates::Save].into_iter().chain(recompute) {
                    let cuda = opened(true);
                    let dims = Dims { batch, inputs: width, hidden: width };
                    for chosen in tiles(&cuda, precision, dims, gates).0 {
                        if has_no_choice(&chosen) {
                            assert_eq!(chosen.timed, 0, "{chosen:?}");
                            continue;
                        }
                        let Chosen { problem, tile, timed, us, tuning_ms, .. } = &chosen;
                        let (Some((rule, best)), Some(ms)) = (us, tuning_ms) else {
                            // Its turns lay too far apart to be compared, and it says so.
                            assert_eq!(chosen.by, By::Rule, "{chosen:?}");
                            let warning = cuda.take_warning().expect("a reason");
                            let reason = std::error::Error::source(&warning).expect("a cause").to_string();
                            assert!(reason.contains("something else uses the GPU"), "{warning}: {reason}");
                            println!("| {problem} | | | | {tile} | 0 | {reason} |");
                            left += 1;
                            continue;
                        };
                        tuned += 1;
                        println!(
                            "| {problem} | {rule:.2} | {best:.2} | {:.3} | {tile} | {timed} | {ms:.0} |",
                            best / rule
                        );
                        assert!(*ms < 3000.0, "{chosen:?}");
                    }
                    // One that differs would be left out with a warning.
                    let warning = cuda.take_warning();
                    assert!(warning.is_none(), "{warning:?}");
                }
            }
        }
    }
    assert!(
        tuned > 4 * left,
        "{left} of {} problems met a busy GPU: run this test with nothing else on it",
        tuned + left
    );
}

#[test]
fn a_tuned_run_is_the_same_twice_and_goes_on_to_the_very_same_losses() {
    let Some((_guard, _)) = gpu() else { return };
    for &precision in Precision::ALL {
        let config = Config {
            precision,
            epochs: 1,
            schedule: Schedule::Constant,
            ..small_mnist("fused-triton-grad", precision)
        };
        let run = |autotune, config: &Config, from, stop| {
            train_on(&Device::Cuda(opened(autotune)), config, mnist(), from, stop)
        };
        let whole = run(true, &config, None, None);
        assert!(losses_and_weights(&whole) == losses_and_weights(&run(true, &config, None, None)), "{precision:?}");
        let saved = run(true, &config, None, Some(200)).saved.expect("a checkpoint");
        // Its configuration names the tiles, so going on neither tunes nor asks the disk.
        let resumed: Config = serde_json::from_value(saved.config.clone()).expect("a configuration");
        // Where dx and the step are one pass, which takes no tile, the forward's is the only one.
        assert!(!resumed.tiles.is_empty() && config.tiles.is_empty(), "{:?}", resumed.tiles);
        let second = run(false, &resumed, Some(&saved), None);
        assert!(whole.losses.ends_with(&second.losses), "{precision:?}: other losses after a stop");
        assert_eq!(losses_and_weights(&second).1, losses_and_weights(&whole).1, "{precision:?}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let Some((_guard, device)) = gpu() else { return };
    let config = Config { lr: 1e6, ..config("fused-triton-grad") };
    let outcome = runs::train_on(&device, &config, bars(), None, None);
    assert_eq!(outcome.error.expect("it diverges").kind(), Kind::Diverged);
    assert!(outcome.saved.is_none(), "nothing good was there to save");
}

#[test]
fn memory_that_is_not_there_is_an_error_that_says_how_much_is() {
    let Some((_guard, Device::Cuda(cuda))) = gpu() else { return };
    let (_, total) = cuda.context().memory().expect("told");
    let error = cuda.context().allocate(total * 2).expect_err("twice the memory");
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.to_string().contains("MiB are free"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--batch-size")), "{error:?}");
    // And the device goes on working.
    let memory = cuda.context().allocate(1 << 20).expect("a megabyte");
    assert_eq!(memory.read::<u32>(4).expect("read"), [0; 4]);
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_never_the_cpu() {
    let error = Device::open("cuda:999", None).expect_err("no thousand devices");
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.hint_text().is_some(), "{error}");
    if Cuda::open(0).is_err() {
        assert!(Device::open("cuda", None).is_err());
        let (device, line) = Device::open("auto", None).expect("the CPU");
        assert_eq!(device.name(), "cpu");
        assert!(line.contains("no NVIDIA driver found") || line.contains("no GPU to use"), "{line}");
    }
}
