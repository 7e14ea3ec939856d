//! What must hold of every implementation in `swiglu::ALL`, now and later.

use mnist_swiglu::{
    device::{Device, cpu::Cpu, cpu::simd::Isa},
    measure::check::{Case, SHAPES, check_layer, gates_of},
    swiglu::{self, GateUp, Gates, LayerConfig, Pass, Precision, WeightGrad, reference::Dims, reference::Operands},
};

fn cpu(threads: usize) -> Device {
    Device::open("cpu", Some(threads)).expect("a CPU").0
}

#[test]
fn every_implementation_agrees_with_the_reference_at_every_shape() {
    let device = cpu(2);
    let mut seen = 0;
    for &dims in SHAPES {
        let case = Case::new(dims, 5);
        for entry in swiglu::ALL {
            for &gates in gates_of(entry) {
                for check in check_layer(entry, &device, Precision::Fp32, gates, &case).expect("a result") {
                    let used = check.rel_err / check.bound * 100.0;
                    assert!(
                        check.ok,
                        "{} {gates:?} {dims} {}: error {:.2e}, {used:.0} % of the bound",
                        check.swiglu, check.pass, check.rel_err
                    );
                    seen += 1;
                }
            }
        }
    }
    // liger-style has 5 checks, frozen 2 x 4, the others 2 x 5 each.
    assert_eq!(seen, SHAPES.len() * (5 + 8 + 10 + 10));
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for isa in Isa::available() {
        let device = Device::Cpu(Cpu::with_isa(2, isa).expect("a CPU"));
        for dims in [(127, 129, 65), (3, 70, 50)] {
            let case = Case::new(Dims { batch: dims.0, inputs: dims.1, hidden: dims.2 }, 9);
            for entry in swiglu::ALL {
                for &gates in gates_of(entry) {
                    for check in check_layer(entry, &device, Precision::Fp32, gates, &case).expect("a result") {
                        assert!(check.ok, "{isa:?} {} {gates:?} {}: {:.2e}", check.swiglu, check.pass, check.rel_err);
                    }
                }
            }
        }
    }
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    let dims = Dims { batch: 70, inputs: 131, hidden: 97 };
    let operands = Operands::random(dims, 3);
    for entry in swiglu::ALL {
        for &gates in gates_of(entry) {
            let run = |threads| {
                let device = cpu(threads);
                let config =
                    LayerConfig { device: device.clone(), inputs: 131, hidden: 97, gates, precision: Precision::Fp32 };
                let mut layer = (entry.new)(&config).expect("a layer");
                layer.set_weights(&GateUp::unpack(&operands.wf)).expect("weights");
                let x = device.upload(70, 131, &operands.x).expect("x");
                let dz = device.upload(70, 97, &operands.dz).expect("dz");
                let (mut z, mut dx) = (device.zeros(70, 97).expect("z"), device.zeros(70, 131).expect("dx"));
                layer.forward(&x, &mut z, Pass::Training).expect("forward");
                let dwf = if entry.trains_weight { WeightGrad::Buffer } else { WeightGrad::Skip };
                layer.backward(&x, &dz, Some(&mut dx), dwf).expect("backward");
                (device.download(&z).expect("z"), device.download(&dx).expect("dx"), layer.gradients().expect("dwf"))
            };
            let one = run(1);
            for threads in [2, 3, 7] {
                assert!(run(threads) == one, "{} {gates:?}: {threads} threads differ from one", entry.name);
            }
        }
    }
}

#[test]
fn every_file_in_swiglu_is_an_implementation_in_all_or_a_known_helper() {
    let registered: Vec<String> =
        swiglu::ALL.iter().map(|e| e.name.split('-').next().expect("a name").to_string()).collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/swiglu");
    for file in std::fs::read_dir(folder).expect("the folder") {
        let path = file.expect("a file").path();
        let stem = path.file_stem().expect("a stem").to_string_lossy().to_string();
        let known = ["mod", "gate", "reference"].contains(&stem.as_str());
        assert!(known || registered.contains(&stem), "src/swiglu/{stem} has no entry in swiglu::ALL");
    }
}

#[test]
fn names_and_aliases_lead_to_one_entry_each() {
    for entry in swiglu::ALL {
        for name in entry.aliases.iter().chain([&entry.name]) {
            assert_eq!(swiglu::find(name).expect("found").name, entry.name);
            assert_eq!(swiglu::ALL.iter().filter(|e| e.name == *name || e.aliases.contains(name)).count(), 1, "{name}");
        }
    }
    assert_eq!(swiglu::find("fused-wgrad").expect("alias").name, "fused-triton-grad");
    let error = swiglu::find("fussed").expect_err("no such name");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("fused-frozen")), "{error}");
}

#[test]
fn misuse_is_an_error_and_not_a_wrong_result() {
    let device = cpu(1);
    for entry in swiglu::ALL {
        let config = LayerConfig {
            device: device.clone(),
            inputs: 4,
            hidden: 3,
            gates: Gates::Auto,
            precision: Precision::Fp32,
        };
        let mut layer = (entry.new)(&config).expect("a layer");
        let x = device.zeros(2, 4).expect("x");
        let (mut z, dz) = (device.zeros(2, 3).expect("z"), device.zeros(2, 3).expect("dz"));
        let backward = layer.backward(&x, &dz, None, WeightGrad::Skip);
        assert!(backward.is_err(), "{}: a backward without a forward", entry.name);
        layer.forward(&x, &mut z, Pass::Inference).expect("forward");
        let backward = layer.backward(&x, &dz, None, WeightGrad::Skip);
        assert!(backward.is_err(), "{}: a backward after inference", entry.name);
        let narrow = device.zeros(2, 3).expect("x");
        let error = layer.forward(&narrow, &mut z, Pass::Training).expect_err("a wrong shape").to_string();
        assert!(error.contains(entry.name) && error.contains("2 x 3") && error.contains("2 x 4"), "{error}");
        layer.forward(&x, &mut z, Pass::Training).expect("forward");
        layer.backward(&x, &dz, None, WeightGrad::Skip).expect("backward");
        let again = layer.backward(&x, &dz, None, WeightGrad::Skip);
        assert!(again.is_err(), "{}: a second backward after one forward", entry.name);
        if !entry.trains_weight {
            layer.forward(&x, &mut z, Pass::Training).expect("forward");
            assert!(
                layer.backward(&x, &dz, None, WeightGrad::Buffer).is_err(),
                "{}: a gradient of a frozen weight",
                entry.name
            );
        }
    }
}
