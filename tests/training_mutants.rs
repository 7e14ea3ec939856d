//! The checks of whole training steps must catch what goes wrong around the layer. Each mutant is a training that is wrong in one
//! way; it must be off by more than the loosest bound (that of bf16) allows, with room.

#[path = "common/mutant_layer.rs"]
mod mutant_layer;

use mnist_swiglu::{
    device::{Device, precision},
    measure::check::{
        gates_of,
        training::{NETWORKS, Outcome, RECIPES, Recipe, SMALL_NETWORKS, TrainingCase, bound, check_training},
    },
    swiglu::{self, Entry, Gates, Precision, reference::Dims},
};
use mutant_layer::{ENTRIES, Mutation};

fn cpu() -> Device {
    Device::open("cpu", Some(2)).expect("a CPU").0
}

fn cases() -> impl Iterator<Item = TrainingCase> {
    NETWORKS.iter().map(|&(dims, depth)| TrainingCase::new(dims, depth, 3))
}

fn liger() -> &'static Entry {
    swiglu::find("liger-style").expect("it is there")
}

/// That `change` of the right case, or of the recipe, is caught, with twice the loosest bound, in a parameter whose name contains
/// `part`.
fn caught(what: &str, part: &str, recipe: &Recipe, change: impl Fn(&mut TrainingCase, &mut Recipe)) {
    let loosest = Precision::ALL.iter().map(|&precision| bound(precision)).fold(0.0, f64::max);
    for case in cases() {
        let (mut wrong, mut wrongly) = (case.clone(), *recipe);
        change(&mut wrong, &mut wrongly);
        let got = wrong.run(liger(), &cpu(), (Precision::Fp32, Gates::Save), &wrongly, false).expect("steps");
        let errors = case.errors(recipe, true, &got);
        let named = errors.into_iter().filter(|(name, _)| name.contains(part));
        let (name, error) = named.max_by(|a, b| a.1.total_cmp(&b.1)).expect("a parameter");
        let times = error / loosest;
        eprintln!("{what}: {times:.1} times the loosest bound in {name}");
        assert!(times > 2.0, "{what}, {} depth {}: {name} is off by {error:.1e}", case.dims, case.depth);
    }
}

#[test]
fn every_implementation_trains_as_the_reference_does() {
    let small = SMALL_NETWORKS.iter().map(|&(dims, depth)| TrainingCase::new(dims, depth, 3));
    for case in cases().chain(small) {
        for entry in swiglu::ALL {
            for &gates in gates_of(entry) {
                for check in check_training(entry, &cpu(), Precision::Fp32, gates, &case).expect("steps") {
                    let used = check.rel_err / check.bound * 100.0;
                    assert!(check.ok, "{check:?}: {used:.0} % of the bound");
                }
            }
        }
    }
}

/// fp32 with the mantissa of TF32, to nearest.
fn tf32(value: f64) -> f64 {
    f64::from(f32::from_bits(((value as f32).to_bits() + 0x1000) & !0x1fff))
}

fn bf16(value: f64) -> f64 {
    f64::from(precision::from_bf16(precision::to_bf16(value as f32)))
}

#[test]
fn the_rounding_of_a_precision_stays_within_its_bound_and_a_coarser_one_does_not() {
    let small = SMALL_NETWORKS.iter().map(|&(dims, depth)| (TrainingCase::new(dims, depth, 3), &RECIPES[..1]));
    for (case, recipes) in cases().map(|case| (case, &RECIPES[..])).chain(small) {
        for recipe in recipes {
            let worst = |rounding: fn(f64) -> f64| {
                let (weights, losses) = case.reference(recipe, case.network(true, rounding));
                let mut after = case.weights.clone();
                for (name, array) in &mut after {
                    array.data = weights[name].iter().map(|&w| w as f32).collect();
                }
                let got = Outcome { weights: after, losses: losses.iter().map(|&loss| loss as f32).collect() };
                case.errors(recipe, true, &got).into_iter().map(|(_, error)| error).fold(0.0, f64::max)
            };
            let share = |rounding, precision| worst(rounding) / bound(precision);
            let own =
                [share(|value| value, Precision::Fp32), share(tf32, Precision::Tf32), share(bf16, Precision::Bf16)];
            let coarser = [share(tf32, Precision::Fp32), share(bf16, Precision::Tf32)];
            eprintln!("{} depth {} {}: {own:.2?}, {coarser:.2?}", case.dims, case.depth, recipe.names[0]);
            assert!(own.iter().all(|&share| share < 0.5), "{own:?}");
            // Clipped gradients are a smaller part of what is compared.
            let least = if recipe.clip_norm.is_none() { 1.0 } else { 0.5 };
            assert!(coarser.iter().all(|&share| share > least), "{coarser:?}");
        }
    }
}

#[test]
fn a_forgotten_term_of_sgd_is_caught() {
    for recipe in &RECIPES {
        caught("no momentum", ".", recipe, |_, recipe| recipe.sgd.momentum = 0.0);
        caught("no decay", ".weight", recipe, |_, recipe| recipe.sgd.weight_decay = 0.0);
        caught("the other momentum", ".", recipe, |_, recipe| recipe.sgd.nesterov = !recipe.sgd.nesterov);
        caught("old velocities lost", ".", recipe, |case, _| {
            case.velocities.values_mut().for_each(|array| array.data.fill(0.0));
        });
        caught("one rate for all steps", ".", recipe, |case, _| case.rates = vec![case.rates[0]; case.rates.len()]);
    }
    caught("no clipping", ".", &RECIPES[1], |_, recipe| recipe.clip_norm = None);
}

#[test]
fn a_forgotten_bias_is_caught_in_what_comes_after_it() {
    let forget = |name: &'static str| {
        move |case: &mut TrainingCase, _: &mut Recipe| {
            case.weights.get_mut(name).expect("it is there").data.fill(0.0);
        }
    };
    caught("no stem bias", "layers.0.", &RECIPES[0], forget("stem.bias"));
    caught("no head bias", "head.weight", &RECIPES[0], forget("head.bias"));
}

#[test]
fn lost_images_are_caught() {
    // The last tile of 32 images of every batch holds the images of the first.
    caught("gather lost a tile", "weight", &RECIPES[0], |case, _| {
        for rows in case.order.chunks_mut(case.dims.batch).filter(|rows| rows.len() > 32) {
            let last = (rows.len() - 1) / 32 * 32;
            rows.copy_within(0..rows.len() - last, last);
        }
    });
    caught("no step on what is left", "weight", &RECIPES[0], |case, _| {
        case.order.truncate(case.order.len() / case.dims.batch * case.dims.batch);
    });
}

#[test]
fn a_wrong_layer_is_caught_in_training_and_a_right_one_is_not() {
    let case = TrainingCase::new(Dims { batch: 150, inputs: 67, hidden: 101 }, 1, 3);
    let error = |mutation: Mutation| {
        let entry = &ENTRIES[mutation as usize];
        let got = case.run(entry, &cpu(), (Precision::Fp32, Gates::Save), &RECIPES[0], false).expect("steps");
        let errors = case.errors(&RECIPES[0], true, &got);
        errors.into_iter().map(|(_, error)| error).fold(0.0, f64::max)
    };
    assert!(error(Mutation::None) < bound(Precision::Fp32));
    for mutation in [
        Mutation::NoKLoop,
        Mutation::NoGateDerivative,
        Mutation::LostBatchTile,
        Mutation::Swapped,
        Mutation::NoMomentum,
    ] {
        let times = error(mutation) / bound(Precision::Bf16);
        eprintln!("{mutation:?}: {times:.1} times the bound of bf16");
        assert!(times > 2.0, "{mutation:?}");
    }
    assert!(error(Mutation::Tf32) > bound(Precision::Fp32));
}
