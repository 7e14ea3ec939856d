//! The tuner without a GPU: what is chosen, what is kept, and what happens when it is damaged.

use super::*;
use crate::{
    device::cuda::cache::{Cache, Kind},
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
};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn store(folder: &std::path::Path) -> Store {
    Store::new(Cache::at(Kind::Tiles, folder), "NVIDIA H200", (13, 0))
}

fn entry(tile: &str) -> Entry {
    Entry { tile: tile.into(), timed: 2, rule_us: 5.5, tile_us: 5.0, ms: 700.0 }
}

/// A tuner that keeps its choices in `folder`, as one in a new process.
fn tuner(folder: &Folder) -> Tuner {
    Tuner { enabled: true, ..Tuner::new(store(folder.path())) }
}

#[test]
fn what_was_learnt_is_chosen_in_this_process_and_in_the_next() {
    let folder = Folder::new("tiles-learnt");
    let candidates = names(&["rule", "other"]);
    let mut first = tuner(&folder);
    let (index, before) = first.choose(PROBLEM, &candidates);
    assert_eq!((index, before.by, before.differs, before.timed), (0, By::Rule, false, 0));
    first.learn(PROBLEM, &candidates, 1, &entry("other"));
    assert_eq!((first.time.tuned, first.time.remembered), (1, 0));
    let (index, now) = first.choose(PROBLEM, &candidates);
    assert_eq!((index, now.by, now.us), (1, By::Tuner, Some((5.5, 5.0))));

    let mut second = tuner(&folder);
    assert_eq!(second.choose(PROBLEM, &candidates), (1, now), "as it was told in the first");
    assert_eq!((second.time.tuned, second.time.remembered), (0, 1));
    assert!(second.store.take_warning().is_none());
}

#[test]
fn another_gpu_compiler_problem_or_list_of_candidates_is_another_entry() {
    let folder = Folder::new("tiles-keys");
    let candidates = names(&["rule", "other"]);
    let here = store(folder.path());
    here.put(PROBLEM, &candidates, &entry("other"));
    assert_eq!(here.get(PROBLEM, &candidates), Some(entry("other")));
    for (gpu, nvrtc) in [("NVIDIA H100", (13, 0)), ("NVIDIA H200", (12, 9))] {
        let other = Store::new(Cache::at(Kind::Tiles, folder.path()), gpu, nvrtc);
        assert_eq!(other.get(PROBLEM, &candidates), None, "{gpu} {nvrtc:?}");
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
    ];
    for problem in problems {
        assert_eq!(here.get(problem, &candidates), None, "{problem}");
        assert_ne!(problem.to_string(), PROBLEM.to_string());
    }
    assert_eq!(here.get(PROBLEM, &names(&["rule", "other", "new"])), None, "a new candidate has not been tried");
}

#[test]
fn a_damaged_file_is_as_none_and_a_tile_that_is_no_more_is_not_chosen() {
    let folder = Folder::new("tiles-damage");
    let candidates = names(&["rule", "other"]);
    store(folder.path()).put(PROBLEM, &candidates, &entry("other"));
    let path = folder.join(&folder.names()[0]);
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let mut tuner = tuner(&folder);
        assert_eq!(tuner.choose(PROBLEM, &candidates).1.by, By::Rule, "byte {at}");
        assert!(tuner.store.take_warning().is_none(), "it is tuned again, and nobody need know");
    }
    store(folder.path()).put(PROBLEM, &candidates, &entry("gone"));
    assert_eq!(tuner(&folder).choose(PROBLEM, &candidates), (0, chosen(PROBLEM, &candidates, 0, By::Rule, None)));
}

#[test]
fn a_problem_whose_tuning_did_not_come_back_is_left_to_the_rules_and_one_that_failed_is_tried_again() {
    let folder = Folder::new("tiles-unfinished");
    let candidates = names(&["rule", "other"]);
    tuner(&folder).begin(PROBLEM, &candidates);
    let mut next = tuner(&folder);
    assert_eq!(next.choose(PROBLEM, &candidates), (0, chosen(PROBLEM, &candidates, 0, By::Rule, None)));
    assert!(next.known.contains_key(&PROBLEM), "nobody need try");
    assert_eq!(next.time.remembered, 0);
    next.store.forget(PROBLEM, &candidates);
    assert!(folder.names().is_empty());
    let mut after = tuner(&folder);
    after.choose(PROBLEM, &candidates);
    assert!(!after.known.contains_key(&PROBLEM), "it is tried");
}

#[test]
fn a_folder_that_cannot_be_written_is_one_warning_and_the_choice_stays_in_the_process() {
    let folder = Folder::new("tiles-unwritable");
    // A file where the folder should be: not even root can write there.
    std::fs::write(folder.join("file"), "").unwrap();
    let candidates = names(&["rule", "other"]);
    let mut tuner = Tuner { enabled: true, ..Tuner::new(store(&folder.join("file/tiles"))) };
    tuner.learn(PROBLEM, &candidates, 1, &entry("other"));
    tuner.learn(Problem { batch: 256, ..PROBLEM }, &candidates, 1, &entry("other"));
    assert_eq!(tuner.choose(PROBLEM, &candidates).0, 1);
    let warning = tuner.store.take_warning().unwrap();
    assert!(warning.to_string().contains("the fastest tiles cannot be kept in"), "{warning}");
    assert!(tuner.store.take_warning().is_none());
}

#[test]
fn a_checkpoints_tile_comes_before_what_the_disk_remembers_where_there_is_such_a_tile() {
    let folder = Folder::new("tiles-pinned");
    let candidates = names(&["rule", "other", "third"]);
    store(folder.path()).put(PROBLEM, &candidates, &entry("other"));
    let pinned = |tile: &str| {
        let mut tuner = tuner(&folder);
        tuner.pinned.insert(PROBLEM.to_string(), tile.into());
        tuner.choose(PROBLEM, &candidates)
    };
    assert_eq!((pinned("third").0, pinned("third").1.by), (2, By::Checkpoint));
    assert_eq!((pinned("rule").0, pinned("rule").1.by), (0, By::Checkpoint));
    assert_eq!((pinned("of another family").0, pinned("of another family").1.by), (1, By::Tuner));
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
    let mut tuner = tuner(&folder);
    for problem in [small, unaligned] {
        assert_eq!(tuner.choose(problem, &candidates).1.by, By::Rule, "{problem}");
    }
    tuner.enabled = false;
    assert_eq!(tuner.choose(PROBLEM, &candidates).1.by, By::Rule);
}
