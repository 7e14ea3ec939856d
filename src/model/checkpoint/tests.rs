//! What must hold for checkpoints, whatever happens to their files.

use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::Folder;

/// Weights of the network with `width` 3, `hidden` 2 and `depth` 2, all different.
fn arrays(offset: f32) -> Arrays {
    let mut next = offset;
    names::expected(3, 2, 2)
        .into_iter()
        .map(|(name, shape)| {
            let data = (0..shape.iter().product::<usize>())
                .map(|_| {
                    next += 0.5;
                    next
                })
                .collect();
            (name, Array { shape, data })
        })
        .collect()
}

fn checkpoint(global_step: u64) -> Checkpoint {
    Checkpoint {
        config: json!({"swiglu": "fused-frozen", "lr": 0.02_f32, "seed": u64::MAX}),
        position: Position {
            epoch: 1,
            step: 7,
            global_step,
            loss_sum: 0.1 + 0.2,
            images_seen: 448,
            train_ms: 1.0 / 3.0,
        },
        weights: arrays(global_step as f32),
        velocities: Some(arrays(-1000.0 - global_step as f32)),
    }
}

/// The error of loading `path`: its message and hint.
fn refusal(path: &Path) -> (String, String) {
    let error = load(path).unwrap_err();
    assert_eq!(error.kind(), Kind::Checkpoint, "{error}");
    let hint = error.hint_text().unwrap_or_else(|| panic!("no hint: {error}")).to_owned();
    (error.to_string(), hint)
}

#[test]
fn what_was_saved_is_loaded_from_the_folder_and_from_the_file() {
    let folder = Folder::new("ckpt-roundtrip");
    let saved = checkpoint(945);
    save(folder.path(), &saved).unwrap();
    assert_eq!(folder.names(), ["checkpoint.safetensors", "optimizer-945.safetensors"]);
    assert_eq!(load(folder.path()).unwrap(), saved);
    assert_eq!(load(&folder.join(CHECKPOINT_FILE)).unwrap(), saved);
    let weights = load_weights_only(folder.path()).unwrap();
    assert_eq!((weights.config, weights.position), (Some(saved.config), Some(saved.position)));
    assert_eq!(weights.weights, saved.weights);
}

#[test]
fn sgd_without_momentum_needs_no_optimiser_file() {
    let folder = Folder::new("ckpt-plain-sgd");
    save(folder.path(), &checkpoint(1)).unwrap();
    let saved = Checkpoint { velocities: None, ..checkpoint(2) };
    save(folder.path(), &saved).unwrap();
    assert_eq!(folder.names(), ["checkpoint.safetensors"]);
    assert_eq!(load(folder.path()).unwrap(), saved);
}

proptest! {
    #[test]
    fn every_finite_number_comes_back_to_the_last_bit(
        bits in prop::collection::vec(any::<u32>(), 1..200), loss_sum in any::<f64>(), train_ms in any::<f64>(),
    ) {
        prop_assume!(loss_sum.is_finite() && train_ms.is_finite());
        let folder = Folder::new("ckpt-bits");
        let mut data: Vec<f32> = bits.into_iter().map(f32::from_bits).filter(|x| x.is_finite()).collect();
        data.extend([-0.0, 0.0, f32::MIN_POSITIVE / 2.0, -f32::from_bits(1), f32::MAX, f32::MIN]);
        let weights: Arrays = [("w".to_owned(), Array { shape: vec![data.len()], data })].into();
        let position = Position { loss_sum, train_ms, ..Position::default() };
        let saved = Checkpoint { config: json!(null), position, velocities: Some(weights.clone()), weights };
        save(folder.path(), &saved).unwrap();
        let loaded = load(folder.path()).unwrap();
        let bits = |arrays: &Arrays| arrays["w"].data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&loaded.weights), bits(&saved.weights));
        prop_assert_eq!(bits(&loaded.velocities.unwrap()), bits(&saved.weights));
        prop_assert_eq!(loaded.position.loss_sum.to_bits(), loss_sum.to_bits());
        prop_assert_eq!(loaded.position.train_ms.to_bits(), train_ms.to_bits());
    }
}

#[test]
fn a_kill_after_the_optimiser_file_leaves_the_checkpoint_before_and_the_next_save_cleans_up() {
    let folder = Folder::new("ckpt-kill");
    let first = checkpoint(100);
    save(folder.path(), &first).unwrap();
    // What a kill in the middle of the save of step 200 leaves: the new optimiser file, and half a checkpoint.
    let other = Folder::new("ckpt-kill-other");
    save(other.path(), &checkpoint(200)).unwrap();
    fs::copy(other.join("optimizer-200.safetensors"), folder.join("optimizer-200.safetensors")).unwrap();
    let half = fs::read(other.join(CHECKPOINT_FILE)).unwrap();
    fs::write(folder.join("checkpoint.safetensors.tmp-1-2-3"), &half[..half.len() / 2]).unwrap();
    assert_eq!(load(folder.path()).unwrap(), first);
    // A kill after the rename and before the clean-up leaves both optimiser files.
    fs::copy(other.join(CHECKPOINT_FILE), folder.join(CHECKPOINT_FILE)).unwrap();
    assert_eq!(load(folder.path()).unwrap(), checkpoint(200));
    save(folder.path(), &checkpoint(300)).unwrap();
    assert_eq!(folder.names(), ["checkpoint.safetensors", "optimizer-300.safetensors"]);
}

#[test]
fn files_of_other_names_are_left_alone() {
    let folder = Folder::new("ckpt-others");
    let names = ["checkpoint-best.safetensors", "optimizer-.safetensors", "optimizer-1a.safetensors"];
    for name in names {
        fs::write(folder.join(name), "x").unwrap();
    }
    save(folder.path(), &checkpoint(1)).unwrap();
    assert!(names.iter().all(|name| folder.join(name).is_file()));
}

#[test]
fn a_diverged_model_is_refused_and_the_last_good_checkpoint_stays() {
    let folder = Folder::new("ckpt-diverged");
    save(folder.path(), &checkpoint(1)).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let mut bad = checkpoint(2);
        bad.weights.get_mut("head.bias").unwrap().data[3] = value;
        let error = save(folder.path(), &bad).unwrap_err();
        assert_eq!(error.kind(), Kind::Diverged);
        assert!(error.to_string().contains(&format!("weights head.bias hold {value}")), "{error}");
        let mut bad = checkpoint(2);
        bad.velocities.as_mut().unwrap().get_mut("stem.bias").unwrap().data[0] = value;
        assert!(save(folder.path(), &bad).unwrap_err().to_string().contains("velocities stem.bias"));
    }
    assert_eq!(load(folder.path()).unwrap(), checkpoint(1));
}

#[test]
fn weights_whose_shape_and_length_differ_are_not_saved() {
    let folder = Folder::new("ckpt-length");
    let mut bad = checkpoint(1);
    bad.weights.get_mut("head.bias").unwrap().data.pop();
    let error = save(folder.path(), &bad).unwrap_err();
    assert_eq!(error.kind(), Kind::Shape);
    assert_eq!(error.to_string(), "cannot save head.bias: shape (10) and 9 values");
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_in_both_files() {
    let folder = Folder::new("ckpt-flip");
    save(folder.path(), &checkpoint(5)).unwrap();
    for name in [CHECKPOINT_FILE, "optimizer-5.safetensors"] {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        // The whole header, and a sample of the numbers.
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for byte in (0..header).chain((header..good.len()).step_by(97)) {
            for bit in [0, 3, 6] {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                fs::write(&path, &bad).unwrap();
                match load(folder.path()) {
                    Err(error) => assert_eq!(error.kind(), Kind::Checkpoint, "{error}"),
                    // White space inside the JSON header carries nothing: the same contents may be read through it.
                    Ok(loaded) => {
                        assert_eq!(loaded, checkpoint(5), "{name}: byte {byte}, bit {bit}")
                    }
                }
            }
        }
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(load(folder.path()).unwrap(), checkpoint(5));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let folder = Folder::new("ckpt-cut");
    save(folder.path(), &checkpoint(5)).unwrap();
    for name in [CHECKPOINT_FILE, "optimizer-5.safetensors"] {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        for length in [0, 1, 7, 8, 9, 200, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..length]).unwrap();
            let (message, hint) = refusal(folder.path());
            assert!(message.contains(name) && message.contains("cut short"), "{message}");
            assert!(hint.contains("copy it again"), "{hint}");
        }
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn a_missing_optimiser_file_is_named() {
    let folder = Folder::new("ckpt-no-optimiser");
    save(folder.path(), &checkpoint(5)).unwrap();
    fs::remove_file(folder.join("optimizer-5.safetensors")).unwrap();
    let (message, hint) = refusal(folder.path());
    assert!(message.ends_with("its optimiser file optimizer-5.safetensors is missing beside it"), "{message}");
    assert!(hint.contains("copy both files"), "{hint}");
    assert_eq!(load_weights_only(folder.path()).unwrap().weights, checkpoint(5).weights);
}

#[test]
fn an_optimiser_file_of_another_moment_is_refused() {
    let folder = Folder::new("ckpt-other-step");
    let other = Folder::new("ckpt-other-step-source");
    save(folder.path(), &checkpoint(5)).unwrap();
    save(other.path(), &checkpoint(6)).unwrap();
    fs::copy(other.join("optimizer-6.safetensors"), folder.join("optimizer-5.safetensors")).unwrap();
    let (message, _) = refusal(folder.path());
    assert!(message.ends_with("it is of step 6, its checkpoint of step 5"), "{message}");
}

#[test]
fn velocities_of_another_network_are_refused() {
    let folder = Folder::new("ckpt-other-net");
    let mut saved = checkpoint(5);
    saved.velocities.as_mut().unwrap().remove("head.bias");
    save(folder.path(), &saved).unwrap();
    assert!(refusal(folder.path()).0.contains("head.bias is missing"));
}

#[test]
fn an_absent_checkpoint_says_what_to_give_instead() {
    let folder = Folder::new("ckpt-absent");
    let (message, hint) = refusal(folder.path());
    assert!(message.ends_with("holds no checkpoint.safetensors"), "{message}");
    assert!(hint.contains("folder of a run"), "{hint}");
    let (message, _) = refusal(&folder.join("nowhere"));
    assert!(message.starts_with("there is no "), "{message}");
}

/// Writes a safetensors file as another program would.
fn write_foreign(path: &Path, arrays: &Arrays, metadata: &[(&str, &str)]) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = arrays
        .iter()
        .map(|(name, a)| (name.clone(), a.shape.clone(), a.data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn weights_of_another_program_can_be_used_and_not_trained_on() {
    let folder = Folder::new("ckpt-foreign");
    let path = folder.join("torch.safetensors");
    write_foreign(&path, &arrays(0.0), &[("format", "pt")]);
    let loaded = load_weights_only(&path).unwrap();
    assert_eq!((loaded.config, loaded.position, &loaded.path), (None, None, &path));
    assert_eq!(names::infer_network(&loaded.weights, &path).unwrap(), (3, 2, 2));
    assert!(refusal(&path).0.ends_with("another program wrote it"));
    // Another model altogether.
    let other: Arrays = [("fc1.weight".to_owned(), Array { shape: vec![1], data: vec![0.0] })].into();
    let error = names::infer_network(&other, &path).unwrap_err();
    assert!(error.to_string().contains("it holds fc1.weight"), "{error}");
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let folder = Folder::new("ckpt-nan");
    let path = folder.join("nan.safetensors");
    let mut weights = arrays(0.0);
    weights.get_mut("layers.1.up.weight").unwrap().data[2] = f32::NAN;
    write_foreign(&path, &weights, &[]);
    let error = load_weights_only(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Checkpoint);
    assert!(error.to_string().ends_with("layers.1.up.weight holds NaN"), "{error}");
}

#[test]
fn other_types_of_numbers_are_refused_by_name() {
    let folder = Folder::new("ckpt-f16");
    let path = folder.join("f16.safetensors");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![1], &[0, 0]).unwrap();
    fs::write(&path, safetensors::serialize([("head.bias", view)], None).unwrap()).unwrap();
    let error = load_weights_only(&path).unwrap_err();
    assert!(error.to_string().ends_with("head.bias is of type F16, not F32"), "{error}");
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let folder = Folder::new("ckpt-newer");
    let path = folder.join(CHECKPOINT_FILE);
    let metadata = [("program", "mnist-swiglu"), ("program_version", "9.1.0"), ("format_version", "2")];
    write_foreign(&path, &arrays(0.0), &metadata);
    let (message, hint) = refusal(folder.path());
    assert!(message.contains("it is of format 2, written by mnist-swiglu 9.1.0; this is"), "{message}");
    assert_eq!(hint, "use the newer version of mnist-swiglu");
}

#[test]
fn an_optimiser_name_that_leads_elsewhere_is_refused() {
    let folder = Folder::new("ckpt-path");
    let position = Position::default();
    Archive::checkpoint(&json!({}), &position, Some("../optimizer-0.safetensors"))
        .unwrap()
        .write(&folder.join(CHECKPOINT_FILE), &arrays(0.0))
        .unwrap();
    assert!(refusal(folder.path()).0.contains("metadata entry optimizer"));
}

#[test]
fn names_and_shapes_are_checked_against_the_network() {
    let path = Path::new("a.safetensors");
    let expected = names::expected(3, 2, 2);
    names::check(&arrays(0.0), &expected, path).unwrap();
    let message = |weights: &Arrays, expected: &[(String, Vec<usize>)]| {
        names::check(weights, expected, path).unwrap_err().to_string()
    };
    assert_eq!(
        message(&arrays(0.0), &names::expected(4, 2, 2)),
        "cannot load a.safetensors: stem.weight has shape (3, 784), and the network needs (4, 784)"
    );
    assert_eq!(
        message(&arrays(0.0), &names::expected(3, 2, 1)),
        "cannot load a.safetensors: it holds layers.1.gate.weight, which the network does not have"
    );
    let mut missing = arrays(0.0);
    missing.remove("stem.bias");
    assert_eq!(
        message(&missing, &expected),
        "cannot load a.safetensors: stem.bias is missing; it holds head.bias, head.weight, layers.0.gate.weight, \
         layers.0.up.weight, 3 more"
    );
}

#[test]
fn a_configuration_of_another_kind_is_refused_with_its_cause() {
    let config = serde_json::to_value(crate::testing::config()).unwrap();
    let path = Path::new("a.safetensors");
    let back: crate::train::config::Config = parse_config(&config, path).unwrap();
    assert_eq!(back, crate::testing::config());
    let error = parse_config::<crate::train::config::Config>(&json!({"lr": 1}), path).unwrap_err();
    assert_eq!(error.kind(), Kind::Checkpoint);
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("missing field"));
}
