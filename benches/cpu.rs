//! `cargo bench`: parallel regions, the library GEMM at the shapes of a training step, the stem, and the four implementations' forward and backward.
//!
//! Times are wall clock on the threads that `RAYON_NUM_THREADS` gives, over random operands. Each implementation is
//! checked against the f64 reference before it is timed.

use std::hint::black_box;

use rayon::prelude::*;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mnist_swiglu::{
    device::{Device, Layout, SgdStep, cpu::Cpu},
    measure::check::{Case, check_layer, gates_of},
    rng::{Purpose, normal},
    swiglu::{self, GateUp, LayerConfig, Pass, Precision, WeightGrad, reference::Dims, reference::Operands},
    tensor::Param,
};

/// (name, layout, M, N, K): the products of a step at B = 64, D = H = 512, then of a wide layer.
const PRODUCTS: [(&str, Layout, usize, usize, usize); 6] = [
    ("stem forward", Layout::Nt, 64, 512, 784),
    ("layer forward", Layout::Nt, 64, 512, 512),
    ("layer dx", Layout::Nn, 64, 512, 512),
    ("layer dW", Layout::Tn, 512, 512, 64),
    ("stem dW", Layout::Tn, 512, 784, 64),
    ("wide forward", Layout::Nt, 64, 2048, 2048),
];

/// What a parallel region costs that has nothing to do, and one whose tasks take 1 us each, a task and eight tasks a thread; the
/// pool of this program beside rayon's.
fn regions(criterion: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let busy = |_| {
        // A chain of dependent products: about a microsecond.
        black_box((0..400).fold(black_box(1.0_f32), |x, _| x * 0.999 + 0.001));
    };
    for threads in [2, 4, 8, 16, 32].into_iter().filter(|&threads| threads <= cores) {
        let cpu = Cpu::new(Some(threads)).expect("a CPU");
        let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let mut group = criterion.benchmark_group(format!("region, {threads} threads"));
        group.bench_function("empty", |bencher| {
            bencher.iter(|| {
                cpu.for_each(threads, |i| {
                    black_box(i);
                })
            })
        });
        group.bench_function("empty, rayon", |bencher| {
            rayon.install(|| {
                bencher.iter(|| {
                    (0..threads).into_par_iter().with_max_len(1).for_each(|i| {
                        black_box(i);
                    })
                })
            });
        });
        for tasks in [threads, 8 * threads] {
            group.bench_function(format!("{tasks} x 1 us"), |bencher| bencher.iter(|| cpu.for_each(tasks, busy)));
            group.bench_function(format!("{tasks} x 1 us, rayon"), |bencher| {
                rayon.install(|| bencher.iter(|| (0..tasks).into_par_iter().with_max_len(1).for_each(busy)));
            });
        }
    }
}

fn gemm(criterion: &mut Criterion) {
    let device = Device::open("cpu", None).expect("a CPU").0;
    let mut group = criterion.benchmark_group("gemm");
    for (name, layout, m, n, k) in PRODUCTS {
        let (a, b) = match layout {
            Layout::Nt => ((m, k), (n, k)),
            Layout::Nn => ((m, k), (k, n)),
            Layout::Tn => ((k, m), (k, n)),
        };
        let random = |(rows, cols), i| device.upload(rows, cols, &normal(1, Purpose::Operand(i), rows * cols, 1.0));
        let (a, b) = (random(a, 0).expect("a"), random(b, 1).expect("b"));
        let mut c = device.zeros(m, n).expect("c");
        // Elements a second are floating-point operations a second.
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        group.bench_function(BenchmarkId::new(name, format!("{m}x{n}x{k}")), |bencher| {
            bencher.iter(|| device.gemm(layout, &a, &b, 0.0, black_box(&mut c)).expect("a product"));
        });
    }
}

/// The stem's forward, by the library and by the kernel that the network uses: where packing the weights starts to pay.
fn stem(criterion: &mut Criterion) {
    let device = Device::open("cpu", None).expect("a CPU").0;
    let (inputs, outputs) = (784, 512);
    let random = |rows, cols, i| device.upload(rows, cols, &normal(1, Purpose::Operand(i), rows * cols, 1.0));
    let w = Param::new(random(outputs, inputs, 0).expect("w"), true);
    let bias = Param::new(random(1, outputs, 1).expect("bias"), false);
    let mut group = criterion.benchmark_group(format!("stem {inputs} -> {outputs}"));
    for batch in [1, 8, 16, 64, 512] {
        let (x, mut y) = (random(batch, inputs, 2).expect("x"), device.zeros(batch, outputs).expect("y"));
        group.throughput(Throughput::Elements((2 * batch * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new("library", batch), |bencher| {
            bencher.iter(|| device.gemm(Layout::Nt, &x, &w.value, 0.0, black_box(&mut y)).expect("y"));
        });
        group.bench_function(BenchmarkId::new("own", batch), |bencher| {
            bencher.iter(|| device.linear(&x, &w, &bias, black_box(&mut y)).expect("y"));
        });
    }
}

fn layers(criterion: &mut Criterion) {
    let device = Device::open("cpu", None).expect("a CPU").0;
    let small = Case::new(Dims { batch: 127, inputs: 129, hidden: 65 }, 1);
    for (batch, inputs, hidden) in [(64, 512, 512), (512, 512, 512)] {
        let operands = Operands::random(Dims { batch, inputs, hidden }, 1);
        let x = device.upload(batch, inputs, &operands.x).expect("x");
        let dz = device.upload(batch, hidden, &operands.dz).expect("dz");
        let (mut z, mut dx) = (device.zeros(batch, hidden).expect("z"), device.zeros(batch, inputs).expect("dx"));
        for pass in ["forward", "step"] {
            let mut group = criterion.benchmark_group(format!("swiglu {pass} {batch}x{inputs}x{hidden}"));
            for entry in swiglu::ALL {
                for &gates in gates_of(entry) {
                    let checks = check_layer(entry, &device, Precision::Fp32, gates, &small).expect("results");
                    assert!(checks.iter().all(|check| check.ok), "{} is wrong: not timed", entry.name);
                    let config =
                        LayerConfig { device: device.clone(), inputs, hidden, gates, precision: Precision::Fp32 };
                    let mut layer = (entry.new)(&config).expect("a layer");
                    layer.set_weights(&GateUp::unpack(&operands.wf)).expect("weights");
                    // A learning rate of zero: the work is done, the weights stay.
                    let step = SgdStep {
                        lr: 0.0,
                        momentum: 0.9,
                        weight_decay: 0.0,
                        nesterov: false,
                        scale: 1.0,
                        device_scale: false,
                    };
                    let dwf = if entry.trains_weight { WeightGrad::Step(&step) } else { WeightGrad::Skip };
                    let id = BenchmarkId::new(entry.name, format!("{gates:?}").to_lowercase());
                    group.bench_function(id, |bencher| {
                        bencher.iter(|| {
                            if pass == "forward" {
                                layer.forward(&x, &mut z, Pass::Inference).expect("forward");
                            } else {
                                layer.forward(&x, &mut z, Pass::Training).expect("forward");
                                layer.backward(&x, &dz, Some(&mut dx), dwf).expect("backward");
                            }
                        });
                    });
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1));
    targets = regions, gemm, stem, layers
}
criterion_main!(benches);
