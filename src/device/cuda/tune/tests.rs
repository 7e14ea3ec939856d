//! The tuner without a GPU: what is chosen, what is kept, and what happens when it is damaged.

use super::*;
use crate::{
    device::cuda::cache::{Cache, Kind as CacheKind},
    testing::Folder,
};

const PROBLEM: Problem = Problem {
    file: "hopper_swiglu_forward.cu",
    precision: Precision::Bf16,
    batch: 64,
    inputs: 2048,
    hidden: 2048,
    gates: false,
    update: false,
    aligned: true,
    beside: false,
};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn gpu(name: &str, capability: (i32, i32)) -> Gpu {
    Gpu { ordinal: 0, name: name.into(), capability, memory: 1 << 37, multiprocessors: 132 }
}

fn store(folder: &std::path::Path) -> Store {
    store_of(folder, &gpu("NVIDIA H200", (9, 0)), (13, 0), (13, 0))
}

fn store_of(folder: &std::path::Path, gpu: &Gpu, driver: (i32, i32), nvrtc: (i32, i32)) -> Store {
    Store::new(Cache::at(CacheKind::Tiles, folder), gpu, driver, nvrtc)
}

fn entry(tile: &str) -> Entry {
    Entry { tile: tile.into(), timed: 2, rule_us: 5.5, tile_us: 5.0, ms: 700.0 }
}

/// A tuner that keeps its choices in `folder`, as one in a new process.
fn tuner(folder: &Folder) -> Tuner {
    Tuner { enabled: true, ..Tuner::new(store(folder.path())) }
}

/// As [`Cuda::tune`] asks: whether it is to be tried, and what is chosen where it is not.
fn ask(tuner: &mut Tuner, problem: Problem, candidates: &[String]) -> (bool, usize, By) {
    let open = tuner.is_open(problem, candidates);
    let (index, chosen) = tuner.choose(problem, candidates);
    (open, index, chosen.by)
}

#[test]
fn what_was_learnt_is_chosen_in_this_process_and_in_the_next() {
    let folder = Folder::new("tiles-learnt");
    let candidates = names(&["rule", "other"]);
    let mut first = tuner(&folder);
    assert_eq!(ask(&mut first, PROBLEM, &candidates), (true, 0, By::Rule));
    first.learn(PROBLEM, &candidates, 1, &entry("other"));
    assert_eq!(first.time.tuned, 1);
    assert_eq!(ask(&mut first, PROBLEM, &candidates), (false, 1, By::Tuner));
    let chosen = first.choose(PROBLEM, &candidates).1;
    assert_eq!((chosen.us, chosen.timed), (Some((5.5, 5.0)), 2));

    let mut second = tuner(&folder);
    assert!(!second.is_open(PROBLEM, &candidates));
    assert_eq!(second.choose(PROBLEM, &candidates), (1, chosen), "as it was told in the first");
    assert_eq!(second.time.tuned, 0);
    assert!(second.store.take_warning().is_none() && second.warnings.is_empty());
}

#[test]
fn another_gpu_driver_compiler_problem_or_list_of_candidates_is_another_entry() {
    let folder = Folder::new("tiles-keys");
    let candidates = names(&["rule", "other"]);
    let here = store(folder.path());
    here.put(PROBLEM, &candidates, &entry("other"));
    assert_eq!(here.get(PROBLEM, &candidates), Found::Entry(entry("other")));
    let h200 = gpu("NVIDIA H200", (9, 0));
    let others = [
        store_of(folder.path(), &gpu("NVIDIA H100", (9, 0)), (13, 0), (13, 0)),
        store_of(folder.path(), &gpu("NVIDIA H200", (9, 1)), (13, 0), (13, 0)),
        store_of(folder.path(), &Gpu { multiprocessors: 16, ..gpu("NVIDIA H200", (9, 0)) }, (13, 0), (13, 0)),
        store_of(folder.path(), &h200, (13, 1), (13, 0)),
        store_of(folder.path(), &h200, (13, 0), (12, 9)),
    ];
    for other in others {
        assert_eq!(other.get(PROBLEM, &candidates), Found::Nothing, "{other:?}");
    }
    let problems = [
        Problem { file: "hopper_swiglu_dwf.cu", ..PROBLEM },
        Problem { precision: Precision::Tf32, ..PROBLEM },
        Problem { batch: 65, ..PROBLEM },
        Problem { inputs: 2056, ..PROBLEM },
        Problem { hidden: 2056, ..PROBLEM },
        Problem { gates: true, ..PROBLEM },
        Problem { update: true, ..PROBLEM },
        Problem { aligned: false, ..PROBLEM },
        Problem { beside: true, ..PROBLEM },
    ];
    for problem in problems {
        assert_eq!(here.get(problem, &candidates), Found::Nothing, "{problem}");
        assert_ne!(problem.to_string(), PROBLEM.to_string());
    }
    assert_eq!(here.get(PROBLEM, &names(&["rule", "other", "new"])), Found::Nothing, "a new candidate was not tried");
}

#[test]
fn a_damaged_or_foreign_file_is_not_believed_which_is_told_and_written_anew() {
    let folder = Folder::new("tiles-damage");
    let candidates = names(&["rule", "other"]);
    store(folder.path()).put(PROBLEM, &candidates, &entry("other"));
    let path = folder.join(&folder.names()[0]);
    let whole = std::fs::read(&path).unwrap();
    let mut damages: Vec<Vec<u8>> = (0..whole.len())
        .step_by(7)
        .map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            flipped
        })
        .collect();
    damages.extend([Vec::new(), whole[..whole.len() / 2].to_vec(), b"{\"tile\": \"other\"}\n".to_vec()]);
    for damage in damages {
        std::fs::write(&path, &damage).unwrap();
        let mut tuner = tuner(&folder);
        assert_eq!(ask(&mut tuner, PROBLEM, &candidates), (true, 0, By::Rule));
        let warning = tuner.warnings.pop_front().expect("a reason").to_string();
        assert!(warning.contains(&path.display().to_string()) && warning.contains("is tuned again"), "{warning}");
        tuner.learn(PROBLEM, &candidates, 1, &entry("other"));
        assert_eq!(std::fs::read(&path).unwrap(), whole, "written anew");
    }
    assert_eq!(folder.names().len(), 1, "nothing is left beside it");
}

#[test]
fn a_problem_whose_tuning_did_not_come_back_is_left_to_the_rules_which_is_told() {
    let folder = Folder::new("tiles-unfinished");
    let candidates = names(&["rule", "other"]);
    tuner(&folder).begin(PROBLEM, &candidates);
    let mut next = tuner(&folder);
    assert_eq!(ask(&mut next, PROBLEM, &candidates), (false, 0, By::Rule));
    let warning = next.warnings.pop_front().expect("a reason");
    assert!(warning.hint_text().is_some_and(|hint| hint.contains(&folder.names()[0])), "{warning}");
    next.store.forget(PROBLEM, &candidates);
    assert!(folder.names().is_empty());
    assert!(tuner(&folder).is_open(PROBLEM, &candidates), "it is tried again");
}

#[test]
fn a_folder_that_cannot_be_written_is_one_warning_and_the_choice_stays_in_the_process() {
    let folder = Folder::new("tiles-unwritable");
    // A file where the folder should be: not even root can write there.
    std::fs::write(folder.join("file"), "").unwrap();
    let candidates = names(&["rule", "other"]);
    let mut tuner = Tuner { enabled: true, ..Tuner::new(store(&folder.join("file/tiles"))) };
    assert!(tuner.is_open(PROBLEM, &candidates) && tuner.warnings.is_empty(), "nothing is damaged");
    tuner.learn(PROBLEM, &candidates, 1, &entry("other"));
    tuner.learn(Problem { batch: 256, ..PROBLEM }, &candidates, 1, &entry("other"));
    assert_eq!(tuner.choose(PROBLEM, &candidates).0, 1);
    let warning = tuner.store.take_warning().unwrap();
    assert!(warning.to_string().contains("the fastest tiles cannot be kept in"), "{warning}");
    assert!(tuner.store.take_warning().is_none());
}

#[test]
fn a_checkpoints_tile_comes_before_what_the_disk_remembers_and_one_that_is_no_more_is_told() {
    let folder = Folder::new("tiles-pinned");
    let candidates = names(&["rule", "other", "third"]);
    store(folder.path()).put(PROBLEM, &candidates, &entry("other"));
    let pinned = |tile: &str| {
        let mut tuner = tuner(&folder);
        tuner.pinned.insert(PROBLEM.to_string(), tile.into());
        (ask(&mut tuner, PROBLEM, &candidates), tuner.warnings.len())
    };
    assert_eq!(pinned("third"), ((false, 2, By::Checkpoint), 0));
    assert_eq!(pinned("rule"), ((false, 0, By::Checkpoint), 0));
    assert_eq!(pinned("of another family"), ((false, 0, By::Rule), 1));
}

#[test]
fn without_the_tuner_and_for_small_or_unaligned_layers_rules_choose() {
    let folder = Folder::new("tiles-rules");
    let candidates = names(&["rule", "other"]);
    let small = Problem { inputs: 64, hidden: 64, ..PROBLEM };
    let unaligned = Problem { aligned: false, ..PROBLEM };
    for problem in [PROBLEM, small, unaligned] {
        store(folder.path()).put(problem, &candidates, &entry("other"));
    }
    let mut on = tuner(&folder);
    for problem in [small, unaligned] {
        assert_eq!(ask(&mut on, problem, &candidates), (false, 0, By::Rule), "{problem}");
    }
    let mut off = Tuner { enabled: false, ..tuner(&folder) };
    assert_eq!(ask(&mut off, PROBLEM, &candidates), (false, 0, By::Rule));
    assert!(!on.is_open(Problem { batch: 128, ..PROBLEM }, &names(&["rule"])), "nothing to choose from");
}
