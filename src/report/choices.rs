//! "Which one should I use": sentences chosen and filled from the measurements.

use super::{
    charts::{bytes, joined},
    data::{shape, shape_name},
    layer_table::gates_name,
    table::ms,
    training_table as end,
};
use crate::{
    measure::{
        record::{Case, Training},
        timer::Cache,
        work::Pass,
    },
    swiglu::{self, Gates, Precision, liger::LIGER_STYLE},
};

/// The sentences, in the order of the questions; none for questions that nothing was measured for.
pub fn sentences(cases: &[&Case], trainings: &[&Training]) -> Vec<String> {
    let mut said = training_sentences(trainings);
    let warm: Vec<&Case> = cases.iter().copied().filter(|c| c.cache == Cache::Warm && c.ok).collect();
    let of = |pass| warm.iter().copied().filter(|c| c.pass == pass).collect::<Vec<&Case>>();
    for (question, pass) in [
        ("A learning layer, small batch", Pass::Step),
        ("Frozen features, dx without dWf", Pass::StepDx),
        ("Inference", Pass::Forward),
    ] {
        said.extend(places(&of(pass)).iter().map(|place| place.sentence(question, fastest_clauses(place))));
    }
    let memory = places(&of(Pass::Step));
    said.extend(memory.iter().filter_map(|place| {
        let clauses = memory_clauses(place);
        (!clauses.is_empty()).then(|| place.sentence("Memory between forward and backward", clauses))
    }));
    said
}

/// Of each setting, the fastest that learns, and where that is in another precision the fastest in fp32.
fn training_sentences(trainings: &[&Training]) -> Vec<String> {
    let mut settings: Vec<Vec<&Training>> = Vec::new();
    for training in trainings.iter().copied().filter(|t| t.trains_wf) {
        match settings.iter_mut().find(|group| end::same_setting(group[0], training)) {
            Some(group) => group.push(training),
            None => settings.push(vec![training]),
        }
    }
    let clause = |best: &Training| {
        let config = &best.configuration;
        let accuracy = end::accuracy(best).map_or(String::new(), |a| format!(", {:.2} % right", 100.0 * a));
        let speed =
            end::speed(best, trainings).map_or(String::new(), |s| format!(", {s:.2} times liger-style's speed"));
        let time = ms(end::train_ms(best).unwrap_or_default());
        format!("{} in {} takes {time} ms an epoch{speed}{accuracy}", best.name(), config.precision.name())
    };
    let sentence = |group: &Vec<&Training>| {
        let best = fastest(group, end::train_ms)?;
        let exact = |t: &&Training| t.configuration.precision == Precision::Fp32;
        let fp32: Vec<&Training> = group.iter().copied().filter(exact).collect();
        let also = match fastest(&fp32, end::train_ms) {
            Some(other) if other != best => format!("; {}", clause(other)),
            _ => String::new(),
        };
        let setting = end::setting_name(&best.configuration);
        Some(format!("Training from scratch ({setting}): {}{also}.", clause(best)))
    };
    settings.iter().filter_map(sentence).collect()
}

/// The cases of one device and shape, those of each precision together.
struct Place<'a> {
    device: &'a str,
    shape: (usize, usize, usize),
    precisions: Vec<(Precision, Vec<&'a Case>)>,
}

impl Place<'_> {
    /// An answer: clauses that differ in precision alone stand behind one name.
    fn sentence(&self, question: &str, clauses: Vec<(String, String)>) -> String {
        let mut answers: Vec<(String, Vec<String>)> = Vec::new();
        for (name, clause) in clauses {
            match answers.iter_mut().find(|(other, _)| *other == name) {
                Some((_, clauses)) => clauses.push(clause),
                None => answers.push((name, vec![clause])),
            }
        }
        let answers: Vec<String> =
            answers.iter().map(|(name, clauses)| format!("{name} {}", joined(clauses))).collect();
        format!("{question} ({}, {}): {}.", self.device, shape_name(self.shape), answers.join("; "))
    }
}

/// For each device and precision the smallest shape that was measured, since there the choice matters most. Times of
/// different precisions or shapes are never compared.
fn places<'a>(cases: &[&'a Case]) -> Vec<Place<'a>> {
    let mut places: Vec<Place> = Vec::new();
    let mut devices: Vec<&str> = Vec::new();
    for case in cases {
        if !devices.contains(&case.device.as_str()) {
            devices.push(&case.device);
        }
    }
    for (device, &precision) in devices.iter().flat_map(|device| Precision::ALL.iter().map(move |p| (*device, p))) {
        let of = || cases.iter().copied().filter(|c| c.device == device && c.precision == precision);
        let Some(smallest) = of().map(shape).min() else { continue };
        let here = (precision, of().filter(|c| shape(c) == smallest).collect());
        match places.iter_mut().find(|place| (place.device, place.shape) == (device, smallest)) {
            Some(place) => place.precisions.push(here),
            None => places.push(Place { device, shape: smallest, precisions: vec![here] }),
        }
    }
    places
}

/// In each precision: which is fastest, its time, and which are as fast, their medians lying within its spread.
fn fastest_clauses(place: &Place) -> Vec<(String, String)> {
    let clause = |(precision, cases): &(Precision, Vec<&Case>)| {
        let best = fastest(cases, |c| c.median_ms)?;
        let spread = best.p90_ms.or(best.median_ms)?;
        let chosen = frozen_on_a_tie(best, cases);
        let name = with_gates(chosen);
        let mut others: Vec<String> = Vec::new();
        for case in cases.iter().filter(|c| c.median_ms.is_some_and(|ms| ms <= spread)) {
            let other = with_gates(case);
            if other != name && !others.contains(&other) {
                others.push(other);
            }
        }
        let are = if others.len() == 1 { "is" } else { "are" };
        let others = match others.is_empty() {
            true => String::new(),
            false => format!(" ({} {are} as fast within the spread)", joined(&others)),
        };
        let time = ms(chosen.median_ms?);
        Some((format!("{name},"), format!("{time} ms in {}{others}", precision.name())))
    };
    place.precisions.iter().filter_map(clause).collect()
}

/// Where no dWf is asked for, implementations with and without one do the same work, and differ by chance: of those whose
/// spreads meet, the one that is made for it.
fn frozen_on_a_tie<'a>(best: &'a Case, cases: &[&'a Case]) -> &'a Case {
    if best.pass != Pass::StepDx {
        return best;
    }
    let meets = |c: &Case| c.p10_ms.or(c.median_ms) <= best.p90_ms.or(best.median_ms);
    let frozen: Vec<&Case> = cases.iter().copied().filter(|c| !entry_learns(c) && meets(c)).collect();
    fastest(&frozen, |c| c.median_ms).unwrap_or(best)
}

fn entry_learns(case: &Case) -> bool {
    swiglu::find(&case.swiglu).is_ok_and(|entry| entry.trains_weight)
}

/// The implementation, and its gates where it has a choice that makes a difference.
fn with_gates(case: &Case) -> String {
    match case.pass {
        // A forward for inference keeps no gates, whatever the mode.
        Pass::Forward => case.swiglu.clone(),
        _ if case.swiglu == LIGER_STYLE.name => case.swiglu.clone(),
        _ => format!("{} with gates {}", case.swiglu, gates_name(case.gates)),
    }
}

/// Who keeps least, and who keeps most in each precision; nothing where all keep the same.
fn memory_clauses(place: &Place) -> Vec<(String, String)> {
    let (mut least, mut most) = (Vec::new(), Vec::new());
    for (precision, cases) in &place.precisions {
        let sizes = || cases.iter().map(|c| c.saved_bytes);
        let (Some(low), Some(high)) = (sizes().min(), sizes().max()) else { continue };
        if low == high {
            continue;
        }
        let clause = |size: usize| {
            let mut names: Vec<(Gates, Vec<String>)> = Vec::new();
            for case in cases.iter().filter(|c| c.saved_bytes == size) {
                match names.iter_mut().find(|(gates, _)| *gates == case.gates) {
                    Some((_, names)) if names.contains(&case.swiglu) => {}
                    Some((_, names)) => names.push(case.swiglu.clone()),
                    None => names.push((case.gates, vec![case.swiglu.clone()])),
                }
            }
            let several = names.iter().map(|(_, names)| names.len()).sum::<usize>() > 1;
            let names: Vec<String> =
                names.iter().map(|(gates, n)| format!("{} with gates {}", joined(n), gates_name(*gates))).collect();
            let keep = if several { "keep" } else { "keeps" };
            let (names, precision) = (joined(&names), precision.name());
            match size {
                0 => (format!("{names} {keep} nothing"), format!("in {precision}")),
                _ => (format!("{names} {keep}"), format!("{} in {precision}", bytes(size as f64))),
            }
        };
        least.push(clause(low));
        most.push(clause(high));
    }
    least.into_iter().chain(most).collect()
}

fn fastest<'a, T>(all: &[&'a T], time: impl Fn(&T) -> Option<f64>) -> Option<&'a T> {
    all.iter()
        .copied()
        .filter(|t| time(t).is_some())
        .min_by(|a, b| time(a).unwrap_or(f64::INFINITY).total_cmp(&time(b).unwrap_or(f64::INFINITY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(swiglu: &str, precision: Precision, median: f64, p90: f64, saved_bytes: usize, gates: Gates) -> Case {
        Case {
            swiglu: swiglu.into(),
            device: "cpu".into(),
            gpu: None,
            precision,
            pass: Pass::Step,
            gates,
            batch: 64,
            inputs: 512,
            hidden: 512,
            cache: Cache::Warm,
            median_ms: Some(median),
            p10_ms: Some(median),
            p90_ms: Some(p90),
            samples: 9,
            tflops: None,
            gbytes_per_s: None,
            floor_ms: 0.1,
            rel_err: Some(1e-7),
            bound: 3e-6,
            ok: true,
            launches: 3,
            saved_bytes,
            trains_wf: true,
            seed: 1,
            tiles: Vec::new(),
        }
    }

    #[test]
    fn what_lies_within_the_spread_is_as_fast_and_precisions_are_kept_apart() {
        let all = [
            case("one", Precision::Fp32, 1.00, 1.05, 2048, Gates::Save),
            case("two", Precision::Fp32, 1.04, 1.10, 0, Gates::Recompute),
            case("three", Precision::Fp32, 1.50, 1.60, 2048, Gates::Save),
            case("three", Precision::Bf16, 0.20, 0.21, 1024, Gates::Save),
            case("one", Precision::Tf32, 0.50, 0.51, 2048, Gates::Save),
            case("one", Precision::Tf32, 0.60, 0.61, 0, Gates::Recompute),
        ];
        let said = sentences(&all.iter().collect::<Vec<_>>(), &[]);
        assert_eq!(
            said,
            [
                "A learning layer, small batch (cpu, B = 64, D = H = 512): one with gates save, 1.00 ms in fp32 (two with gates \
                 recompute is as fast within the spread) and 0.500 ms in tf32; three with gates save, 0.200 ms in bf16.",
                "Memory between forward and backward (cpu, B = 64, D = H = 512): two with gates recompute keeps nothing in \
                 fp32; one with gates recompute keeps nothing in tf32; one and three with gates save keep 2 KiB in fp32; one \
                 with gates save keeps 2 KiB in tf32.",
            ]
        );
    }

    #[test]
    fn for_frozen_features_a_tie_goes_to_the_frozen_one_and_a_difference_does_not() {
        let of = |swiglu: &str, p10: f64, median: f64| Case {
            pass: Pass::StepDx,
            p10_ms: Some(p10),
            ..case(swiglu, Precision::Fp32, median, median + 0.02, 0, Gates::Save)
        };
        let learns = of("fused-triton-grad", 0.99, 1.00);
        let answer = |frozen: &Case| sentences(&[&learns, frozen], &[]).remove(0);
        let tie = answer(&of("fused-frozen", 1.01, 1.03));
        assert!(tie.contains("fused-frozen with gates save, 1.03 ms"), "{tie}");
        assert!(tie.contains("fused-triton-grad with gates save is as fast"), "{tie}");
        let slower = answer(&of("fused-frozen", 1.10, 1.12));
        assert!(
            slower.contains("fused-triton-grad with gates save, 1.00 ms") && !slower.contains("frozen w"),
            "{slower}"
        );
    }

    #[test]
    fn a_wrong_or_a_cold_case_is_never_recommended() {
        let wrong = Case { ok: false, ..case("wrong", Precision::Fp32, 0.1, 0.1, 0, Gates::Save) };
        let cold = Case { cache: Cache::Cold, ..case("cold", Precision::Fp32, 0.1, 0.1, 0, Gates::Save) };
        assert!(sentences(&[&wrong, &cold], &[]).is_empty());
    }
}
