//! The checks must catch what goes wrong in fused kernels in practice. Each mutant is a layer that is wrong in one way,
//! run through the very checks that `selftest` and benchmarks use.

#[path = "common/mutant_layer.rs"]
mod mutant_layer;

use mnist_swiglu::{
    device::Device,
    measure::check::{Case, SHAPES, check_layer},
    swiglu::{Gates, Precision, reference::Dims},
};
use mutant_layer::{ENTRIES, Mutation};

/// The passes that fail at a shape.
fn failures(mutation: Mutation, dims: Dims) -> Vec<&'static str> {
    let (device, _) = Device::open("cpu", Some(1)).expect("a CPU");
    let checks = check_layer(&ENTRIES[mutation as usize], &device, Precision::Fp32, Gates::Save, &Case::new(dims, 7))
        .expect("results");
    checks.iter().filter(|check| !check.ok).map(|check| check.pass).collect()
}

/// Shapes of `SHAPES` that are quick in plain loops.
fn shapes() -> impl Iterator<Item = Dims> {
    SHAPES.iter().copied().filter(|d| d.batch * d.inputs * d.hidden < 12_000_000)
}

#[test]
fn a_right_layer_passes_everywhere() {
    for dims in shapes() {
        assert_eq!(failures(Mutation::None, dims), [""; 0], "{dims}");
    }
}

#[test]
fn a_missing_k_loop_is_caught() {
    for dims in shapes().filter(|dims| dims.inputs > 32) {
        assert_eq!(
            failures(Mutation::NoKLoop, dims),
            ["inference", "forward", "backward-dx", "backward-dwf", "sgd-step"],
            "{dims}"
        );
    }
}

#[test]
fn a_missing_gate_derivative_is_caught() {
    for dims in shapes() {
        assert_eq!(failures(Mutation::NoGateDerivative, dims), ["backward-dwf", "sgd-step"], "{dims}");
    }
}

#[test]
fn a_lost_batch_tile_is_caught() {
    for dims in shapes().filter(|dims| dims.batch > 32) {
        assert_eq!(failures(Mutation::LostBatchTile, dims), ["backward-dwf", "sgd-step"], "{dims}");
    }
}

#[test]
fn gate_and_up_swapped_are_caught() {
    for dims in shapes() {
        let failures = failures(Mutation::Swapped, dims);
        assert!(failures.contains(&"forward") && failures.contains(&"backward-dx"), "{dims}: {failures:?}");
    }
}

#[test]
fn tf32_does_not_pass_for_fp32() {
    for dims in shapes().filter(|dims| dims.inputs > 1) {
        let failures = failures(Mutation::Tf32, dims);
        assert!(failures.contains(&"forward") && failures.contains(&"backward-dwf"), "{dims}: {failures:?}");
    }
}

#[test]
fn an_element_that_is_not_written_is_caught() {
    for dims in shapes() {
        let failures = failures(Mutation::UnwrittenEdge, dims);
        assert!(failures.contains(&"forward") && failures.contains(&"inference"), "{dims}: {failures:?}");
    }
}

#[test]
fn forgotten_momentum_is_caught() {
    for dims in shapes() {
        assert_eq!(failures(Mutation::NoMomentum, dims), ["sgd-step"], "{dims}");
    }
}
