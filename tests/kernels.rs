//! Every kernel file compiles to machine code, for each architecture and in the kinds of configuration that a device chooses.
//!
//! It needs NVRTC and no GPU. Without NVRTC it says so and passes; MNIST_SWIGLU_REQUIRE_NVRTC=1 makes that a failure.

use std::{
    collections::HashSet,
    error::Error,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use mnist_swiglu::{
    Kind,
    data::PIXELS,
    device::{
        Precision,
        cuda::{
            cache::{Cache, Kind as CacheKind},
            compile::{Arch, Configuration, architectures, define},
            context::Chip,
            hopper_stem,
            hopper_tiles::{HopperTile, backward_dx, beside, dwf, forward, linear},
            hopper_weight_step::StepTile,
            nvrtc::Nvrtc,
            sources,
            tiles::{self, Tile},
            tune,
        },
    },
    model::persistent::Shape,
    swiglu::fused::hopper_step::StepShape,
};

mod common;

/// Unaligned builds and the large tile are tried on these alone: with all, the test would take minutes.
const THOROUGH_ARCHS: [u32; 3] = [80, 90, 120];

type Defines = Vec<(&'static str, u32)>;

/// NVRTC, or None after saying that the test is skipped.
fn nvrtc() -> Option<&'static Nvrtc> {
    match Nvrtc::load() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            let required = std::env::var_os("MNIST_SWIGLU_REQUIRE_NVRTC").is_some_and(|value| value == "1");
            assert!(!required, "MNIST_SWIGLU_REQUIRE_NVRTC=1: {error}");
            eprintln!("skipped: no NVRTC ({error}; hint: {})", error.hint_text().unwrap_or_default());
            None
        }
    }
}

/// The defines of a tile with two warps by `warps`.
fn tile(rows: u32, cols: u32, warps: u32, stages: u32, blocks: u32) -> Defines {
    vec![
        ("TILE_M", rows),
        ("TILE_N", cols),
        ("WARP_ROWS", 2),
        ("WARP_COLS", warps),
        ("TILE_STAGES", stages),
        ("MIN_BLOCKS", blocks),
    ]
}

/// The defines of a product kernel with the tile of a small batch (`64x64` in kernels/README.md), or of a large one (`128x128`).
/// The small one splits K, reads saved gates and updates weights; the large one does none of it.
fn product(file: &str, precision: u32, small: bool) -> Option<Defines> {
    let tile = match (small, precision) {
        (true, 0) => tile(64, 64, 2, 3, 4),
        (true, _) => tile(64, 64, 2, 4, 3),
        (false, 3) => tile(128, 128, 4, 3, 1),
        (false, _) => tile(128, 128, 2, 3, 2),
    };
    let splits = if small { 4 } else { 1 };
    let more = match file {
        "swiglu_fused_forward.cu" => vec![("K_SPLITS", splits)],
        "swiglu_fused_backward_dx.cu" => vec![
            ("K_SPLITS", splits),
            ("DX_TILE_N", if small { 64 } else { 128 }),
            ("DX_SPLITS", splits),
            ("SAVED_GATES", u32::from(small)),
        ],
        "swiglu_fused_dwf.cu" => vec![("UPDATE", u32::from(small))],
        _ => return None,
    };
    Some([tile, more].concat())
}

/// The configurations that a file is tried in on an architecture that it claims.
fn configurations(file: &'static str, arch: Arch) -> Vec<Configuration> {
    if file.starts_with("hopper") {
        return hopper_configurations(file, arch);
    }
    let mut all = Vec::new();
    let thorough = THOROUGH_ARCHS.contains(&arch.capability);
    for precision in 0..4 {
        for aligned in if thorough { &[1, 0][..] } else { &[1] } {
            let aligned = *aligned;
            let mut add = |more: Defines| {
                let defines = [vec![("PRECISION", precision), ("ALIGNED", aligned)], more].concat();
                all.push(Configuration { file, defines, arch });
            };
            match product(file, precision, true) {
                Some(defines) => add(defines),
                // To a kernel without a product these are fp32: the same elements, the same code.
                None if precision == 1 || precision == 3 => {}
                None if file == "head_joined.cu" && aligned == 0 => {}
                None if file == "head_joined.cu" => {
                    for gates in [0, 1] {
                        add(vec![("HEAD_ROWS", 8), ("HEAD_CHUNK", 1024), ("GATES", gates)]);
                    }
                }
                None if file == "head.cu" && aligned == 1 => {
                    add(vec![("HEAD_ROWS", 8), ("HEAD_THREADS", 1024), ("HEAD_CHUNK", 1024)]);
                    add(vec![("HEAD_ROWS", 1), ("HEAD_THREADS", 320), ("HEAD_CHUNK", 80)]);
                }
                None => add(Vec::new()),
            }
            let large = aligned == 1 && thorough;
            if let Some(defines) = product(file, precision, false).filter(|_| large) {
                add(defines);
            }
        }
    }
    all
}

/// A kernel for Hopper with the tiles that the H200 is given from small layers to large ones, by rules or by the tuner, in each
/// precision of tensor cores.
fn hopper_configurations(file: &'static str, arch: Arch) -> Vec<Configuration> {
    let mut all: Vec<Defines> = Vec::new();
    let mut add = |precision: Precision, more: Defines| {
        let defines = [vec![("PRECISION", define(precision)), ("ALIGNED", 1)], more].concat();
        if !all.contains(&defines) {
            all.push(defines);
        }
    };
    for precision in [Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16] {
        for (batch, d) in [(64, 512), (1024, 512), (64, 2048), (64, 4096), (256, 2048), (1024, 4096)] {
            for flag in [false, true] {
                let with = |tile: HopperTile, name| [tile.defines(), vec![(name, u32::from(flag))]].concat();
                let (chip, shape) = (Chip::H200, (batch, d, d));
                match file {
                    "hopper_swiglu_forward.cu" => {
                        let rule = forward(chip, precision, batch, d, d);
                        let others = tune::hopper::forward(chip, precision, shape, rule);
                        [vec![rule], others].concat().iter().for_each(|tile| add(precision, tile.defines()));
                    }
                    "hopper_swiglu_backward_dx.cu" => {
                        let rule = backward_dx(chip, precision, batch, d, d, flag);
                        let others = tune::hopper::backward_dx(chip, precision, shape, flag, rule);
                        [vec![rule], others].concat().iter().for_each(|tile| {
                            let splits = flag && precision == Precision::Fp32Emulated;
                            let part = ("PART", if splits { tile.part(batch, d) as u32 } else { 0 });
                            add(precision, [with(*tile, "SAVED_GATES"), vec![part]].concat());
                        });
                        if let Some((dx, _)) = beside(chip, precision, batch, d, d) {
                            add(precision, [dx.defines(), vec![("SAVED_GATES", 1), ("EARLY", 2)]].concat());
                        }
                        if flag && precision == Precision::Tf32 {
                            add(precision, [rule.defines(), vec![("SAVED_GATES", 2), ("EARLY", 1)]].concat());
                        }
                    }
                    "hopper_swiglu_dwf.cu" => {
                        if let Some((_, dwf)) = beside(chip, precision, batch, d, d) {
                            add(precision, [dwf.defines(), vec![("BESIDE", 1)]].concat());
                        }
                        let rule = dwf(chip, precision, batch, d, d);
                        let others = tune::hopper::dwf(chip, precision, shape, rule);
                        [vec![rule], others].concat().iter().for_each(|tile| add(precision, tile.defines()));
                    }
                    "hopper_linear.cu" => add(precision, linear(chip, precision, batch, PIXELS, d).defines()),
                    "hopper_weight_step.cu" => {
                        let (stem, layer) = ((d, PIXELS), (2 * d, d));
                        for weights in [&[stem][..], &[layer], &[layer, stem]] {
                            add(precision, StepTile::choose(chip, precision, batch, weights).defines());
                        }
                    }
                    "hopper_training_steps.cu" => {
                        for width in [d.min(512), 256] {
                            let shape = Shape::fitting(width, width, 30).expect("parts for it");
                            add(precision, shape.defines(precision, flag));
                        }
                    }
                    "hopper_swiglu_backward_step.cu" => {
                        add(precision, StepShape::fitting(chip, precision, d, d).defines());
                    }
                    "hopper_stem_step.cu" => add(precision, hopper_stem::defines(precision)),
                    "hopper_epoch.cu" => {
                        add(precision, Vec::new());
                        add(precision, vec![("AS_BYTES", 1)]);
                    }
                    _ => add(precision, Vec::new()),
                }
            }
        }
    }
    all.into_iter().map(|defines| Configuration { file, defines, arch }).collect()
}

/// Whether registers must be enough: for aligned builds of the tile of small batches, and of every forward.
fn must_not_spill(configuration: &Configuration) -> bool {
    let has = |define| configuration.defines.contains(&define);
    let product = configuration.file.starts_with("swiglu_fused");
    if configuration.file.starts_with("hopper") {
        // Whose two products leave a few words of one on the stack during the other; whose weights take three quarters of the
        // registers, so that a few words that a step needs once wait on the stack.
        return !has(("SAVED_GATES", 0)) && !has(("STEM_COLS", 32));
    }
    product && has(("ALIGNED", 1)) && (has(("TILE_M", 64)) || configuration.file == "swiglu_fused_forward.cu")
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_the_main_ones_spill_no_register() {
    let Some(nvrtc) = nvrtc() else { return };
    // Each file for each architecture that it claims and this NVRTC knows.
    let claims = |file| architectures(file).iter().filter(|arch| nvrtc.archs().contains(&arch.capability));
    let work: Vec<Configuration> =
        sources::kernels().flat_map(|file| claims(file).flat_map(move |&arch| configurations(file, arch))).collect();
    for file in sources::kernels() {
        for arch in claims(file) {
            let tried = |configuration: &&Configuration| configuration.file == file && configuration.arch == *arch;
            assert!(work.iter().any(|configuration| tried(&configuration)), "{file} is not tried for {arch}");
        }
    }
    let known: Vec<u32> = claims("swiglu_fused_forward.cu").map(|arch| arch.capability).collect();
    assert!(known.len() >= 4, "NVRTC {:?} knows only {:?}", nvrtc.version(), nvrtc.archs());
    let (next, watched) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let fail = |text: String| failures.lock().expect("no thread panics while it holds this").push(text);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(configuration) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match configuration.compile(nvrtc) {
                        Ok(compiled) if !compiled.cubin.starts_with(b"\x7fELF") => {
                            fail(format!("{configuration}: not an ELF file"));
                        }
                        Ok(compiled) if must_not_spill(configuration) => {
                            watched.fetch_add(1, Ordering::Relaxed);
                            if compiled.spilled_bytes() != Some(0) {
                                fail(format!("{configuration} spills:\n{}", compiled.log));
                            }
                        }
                        Ok(_) => {}
                        Err(error) => {
                            let log = error.source().map(ToString::to_string).unwrap_or_default();
                            fail(format!("{error}\n{log}"));
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panicked");
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), work.len(), failures.join("\n"));
    // Each of three files, four precisions; and the large forward.
    let large = known.iter().filter(|arch| THOROUGH_ARCHS.contains(arch)).count();
    // And what the H200 is given.
    let hopper = work.iter().filter(|one| one.file.starts_with("hopper") && must_not_spill(one)).count();
    assert!(hopper >= 30 || !claims("hopper_swiglu_forward.cu").any(|_| true), "{hopper}");
    assert_eq!(watched.into_inner(), 12 * known.len() + 4 * large + hopper);
}

/// The configurations that the tuner tries of the portable kernels on a chip, for a small, a middling and a large product.
fn tried(chip: Chip, arch: Arch) -> HashSet<Configuration> {
    let mut all = HashSet::new();
    for &precision in Precision::ALL {
        for shape in [(64, 2048, 2048), (256, 2048, 2048), (1024, 4096, 4096)] {
            let (batch, inputs, hidden) = shape;
            let mut add = |file, tile: Tile, more: &[(&'static str, u32)]| {
                let head = [("PRECISION", define(precision)), ("ALIGNED", 1)];
                let defines = [&head[..], &tile.defines(), more].concat();
                all.insert(Configuration { file, defines, arch });
            };
            let rule = tiles::forward(chip, precision, batch, inputs, hidden);
            for (tile, splits) in tune::portable::forward(chip, precision, shape, rule) {
                add("swiglu_fused_forward.cu", tile, &[("K_SPLITS", splits as u32)]);
            }
            let rule = tiles::backward_dx(chip, precision, batch, inputs, hidden);
            for (tile, dx_cols, _, dx_splits) in tune::portable::backward_dx(chip, precision, shape, rule) {
                let [dx_cols, dx_splits] = [dx_cols, dx_splits].map(|number| number as u32);
                let more = [("DX_TILE_N", dx_cols), ("K_SPLITS", 1), ("DX_SPLITS", dx_splits), ("SAVED_GATES", 1)];
                add("swiglu_fused_backward_dx.cu", tile, &more);
            }
            let rule = tiles::dwf(chip, precision, batch, inputs, hidden, true);
            for tile in tune::portable::dwf(chip, precision, (inputs, hidden), rule) {
                add("swiglu_fused_dwf.cu", tile, &[("UPDATE", 1)]);
            }
        }
    }
    all
}

/// The configurations that the rules of `tiles` choose on a chip, over shapes from tiny to those of the tables.
fn chosen(chip: Chip, arch: Arch) -> HashSet<Configuration> {
    let mut all = HashSet::new();
    let shapes =
        [(1, 123, 431), (64, 512, 512), (1024, 512, 512), (64, 2048, 2048), (256, 2048, 2048), (256, 4096, 4096)];
    for &precision in Precision::ALL {
        let number = define(precision);
        for (batch, inputs, hidden) in shapes.into_iter().chain([(1024, 2048, 2048), (1024, 4096, 4096)]) {
            let aligned = u32::from(inputs % 8 == 0 && hidden % 8 == 0);
            let mut add = |file, tile: Tile, more: &[(&'static str, u32)]| {
                let head = [("PRECISION", number), ("ALIGNED", aligned)];
                let defines = [&head[..], &tile.defines(), more].concat();
                all.insert(Configuration { file, defines, arch });
            };
            let (tile, splits) = tiles::forward(chip, precision, batch, inputs, hidden);
            add("swiglu_fused_forward.cu", tile, &[("K_SPLITS", splits as u32)]);
            let (tile, dx_cols, splits, dx_splits) = tiles::backward_dx(chip, precision, batch, inputs, hidden);
            let [dx_cols, splits, dx_splits] = [dx_cols, splits, dx_splits].map(|number| number as u32);
            for (saved, splits) in [(1, 1), (0, splits)] {
                let more =
                    [("DX_TILE_N", dx_cols), ("K_SPLITS", splits), ("DX_SPLITS", dx_splits), ("SAVED_GATES", saved)];
                add("swiglu_fused_backward_dx.cu", tile, &more);
            }
            for update in [false, true] {
                let tile = tiles::dwf(chip, precision, batch, inputs, hidden, update);
                add("swiglu_fused_dwf.cu", tile, &[("UPDATE", u32::from(update))]);
            }
        }
    }
    all
}

#[test]
fn every_tile_that_is_chosen_or_tried_compiles_and_its_main_loop_keeps_its_registers() {
    let Some(nvrtc) = nvrtc() else { return };
    let chosen: HashSet<Configuration> = [(Chip::H200, Arch::of_device(9, 0)), (Chip::LAPTOP, Arch::of_device(8, 9))]
        .into_iter()
        .flat_map(|(chip, arch)| chosen(chip, arch))
        .chain(tried(Chip::H200, Arch::of_device(9, 0)))
        .collect();
    let chosen: Vec<Configuration> = chosen.into_iter().collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(configuration) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Values that an epilogue reads once may go to the stack (kernels/README.md says which do); a forward
                    // has none, and a main loop that spilled would show hundreds of bytes.
                    let aligned = configuration.defines.contains(&("ALIGNED", 1));
                    let allowed = match (configuration.file, aligned) {
                        ("swiglu_fused_forward.cu", true) => 0,
                        (_, true) => 64,
                        (_, false) => 400,
                    };
                    let failure = match configuration.compile(nvrtc).map(|compiled| compiled.spilled_bytes()) {
                        Ok(Some(bytes)) if bytes <= allowed => continue,
                        Ok(bytes) => format!("{configuration} spills {bytes:?} bytes, {allowed} are allowed"),
                        Err(error) => error.to_string(),
                    };
                    failures.lock().expect("no thread panics while it holds this").push(failure);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panicked");
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), chosen.len(), failures.join("\n"));
}

#[test]
fn a_source_that_is_refused_gives_the_compilers_log() {
    let Some(nvrtc) = nvrtc() else { return };
    // The fp32 engine does not slice K: an #error in product.cuh.
    let defines = vec![("PRECISION", 0), ("WARP_SLICES", 2)];
    let configuration = Configuration { file: "swiglu_fused_forward.cu", defines, arch: Arch::sm(90) };
    let error = configuration.compile(nvrtc).expect_err("it is refused");
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.to_string().contains("swiglu_fused_forward.cu for sm_90 PRECISION=0 WARP_SLICES=2"), "{error}");
    let log = error.source().expect("a log").to_string();
    assert!(log.contains("product.cuh") && log.contains("the fp32 engine does not slice K"), "{log}");
}

#[test]
fn an_architecture_that_nvrtc_does_not_know_is_refused_by_name() {
    let Some(nvrtc) = nvrtc() else { return };
    let configuration = Configuration { file: "sgd.cu", defines: Vec::new(), arch: Arch::sm(20) };
    let error = configuration.compile(nvrtc).expect_err("it is refused");
    assert!(error.to_string().contains("sgd.cu for sm_20") && error.to_string().contains("90"), "{error}");
    assert!(error.hint_text().is_some());
}

#[test]
fn a_second_start_reads_what_the_first_compiled() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = common::Folder::new("kernels");
    let configuration = Configuration { file: "sgd.cu", defines: vec![("PRECISION", 2)], arch: Arch::sm(80) };
    let first = Cache::at(CacheKind::Cubins, &folder.0).cubin(nvrtc, &configuration).expect("compiled");
    let cache = Cache::at(CacheKind::Cubins, &folder.0);
    assert_eq!(cache.size().expect("listed").entries, 1);
    assert_eq!(cache.cubin(nvrtc, &configuration).expect("read"), first);
    assert!(first.starts_with(b"\x7fELF"));
}
