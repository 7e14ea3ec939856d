//! "Which one should I use": sentences chosen and filled from the measurements.

use super::{layer_table::gates_name, training_table as end};
use crate::{
    measure::{
        record::{Case, Training},
        timer::Cache,
        work::Pass,
    },
    swiglu::Precision,
};

/// The sentences; none for questions that nothing was measured for.
pub fn sentences(cases: &[&Case], trainings: &[&Training]) -> Vec<String> {
    let mut said = training_sentences(trainings);
    let warm: Vec<&Case> = cases.iter().copied().filter(|c| c.cache == Cache::Warm && c.ok).collect();
    for (question, pass) in [
        ("Frozen features (dx, no dWf)", Pass::StepDx),
        ("Inference", Pass::Forward),
        ("A learning layer, small batch", Pass::Step),
    ] {
        let here: Vec<&Case> = warm.iter().copied().filter(|c| c.pass == pass).collect();
        said.extend(smallest_of_each_precision(&here).iter().filter_map(|cases| fastest_sentence(question, cases)));
    }
    let steps: Vec<&Case> = warm.iter().copied().filter(|c| c.pass == Pass::Step).collect();
    said.extend(smallest_of_each_precision(&steps).iter().filter_map(|cases| memory_sentence(cases)));
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
        let time = super::table::ms(end::train_ms(best).unwrap_or_default());
        format!("{} in {} takes {time} ms an epoch{speed}{accuracy}", config.swiglu, config.precision.name())
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

/// The cases of one device, precision and shape each: the smallest shape that was measured, since there the choice matters
/// most. Times of different precisions or shapes are never compared.
fn smallest_of_each_precision<'a>(cases: &[&'a Case]) -> Vec<Vec<&'a Case>> {
    let mut keys: Vec<(&str, Precision)> = Vec::new();
    for case in cases {
        if !keys.contains(&(case.device.as_str(), case.precision)) {
            keys.push((case.device.as_str(), case.precision));
        }
    }
    keys.into_iter()
        .map(|(device, precision)| {
            let of = cases.iter().copied().filter(|c| c.device == device && c.precision == precision);
            let of: Vec<&Case> = of.collect();
            let shape = |c: &Case| (c.batch, c.inputs, c.hidden);
            let smallest = of.iter().map(|c| shape(c)).min();
            of.into_iter().filter(|c| Some(shape(c)) == smallest).collect()
        })
        .collect()
}

/// Which is fastest; and which are as fast, their medians lying within its spread.
fn fastest_sentence(question: &str, cases: &[&Case]) -> Option<String> {
    let best = fastest(cases, |c| c.median_ms)?;
    let spread = best.p90_ms.or(best.median_ms)?;
    let with_gates = |c: &Case| match best.pass {
        // A forward for inference keeps no gates, whatever the mode.
        Pass::Forward => c.swiglu.clone(),
        _ => format!("{} with gates {}", c.swiglu, gates_name(c.gates)),
    };
    let name = with_gates(best);
    let mut others: Vec<String> = Vec::new();
    for case in cases.iter().filter(|c| c.median_ms.is_some_and(|ms| ms <= spread)) {
        let other = with_gates(case);
        if other != name && !others.contains(&other) {
            others.push(other);
        }
    }
    let others = match others.split_last() {
        None => String::new(),
        Some((last, [])) => format!("; {last} is as fast within the spread"),
        Some((last, rest)) => format!("; {} and {last} are as fast within the spread", rest.join(", ")),
    };
    Some(format!(
        "{question}: {name} is fastest at B = {}, D = {}: {} ms ({}, {}){others}.",
        best.batch,
        best.inputs,
        super::table::ms(best.median_ms?),
        best.device,
        best.precision.name(),
    ))
}

/// Who keeps least between forward and backward, beside who keeps most.
fn memory_sentence(cases: &[&Case]) -> Option<String> {
    let least = cases.iter().map(|c| c.saved_bytes).min()?;
    let most = cases.iter().max_by_key(|c| c.saved_bytes)?;
    if most.saved_bytes == least {
        return None;
    }
    let mut names: Vec<String> = Vec::new();
    for case in cases.iter().filter(|c| c.saved_bytes == least) {
        let name = format!("{} with gates {}", case.swiglu, gates_name(case.gates));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let size = |bytes: usize| match bytes {
        ..1024 => format!("{bytes} bytes"),
        _ => format!("{:.0} KiB", bytes as f64 / 1024.0),
    };
    Some(format!(
        "Memory at B = {}, H = {} ({}, {}): {} {} {} between forward and backward, where {} keeps {}.",
        most.batch,
        most.hidden,
        most.device,
        most.precision.name(),
        names.join(" and "),
        if names.len() == 1 { "keeps" } else { "keep" },
        if least == 0 { "nothing".into() } else { size(least) },
        most.swiglu,
        size(most.saved_bytes)
    ))
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
    use crate::swiglu::Gates;

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
        }
    }

    #[test]
    fn what_lies_within_the_spread_is_as_fast_and_precisions_are_kept_apart() {
        let all = [
            case("one", Precision::Fp32, 1.00, 1.05, 2048, Gates::Save),
            case("two", Precision::Fp32, 1.04, 1.10, 0, Gates::Recompute),
            case("three", Precision::Fp32, 1.50, 1.60, 2048, Gates::Save),
            case("three", Precision::Bf16, 0.20, 0.21, 1024, Gates::Save),
        ];
        let said = sentences(&all.iter().collect::<Vec<_>>(), &[]);
        assert_eq!(
            said,
            [
                "A learning layer, small batch: one with gates save is fastest at B = 64, D = 512: 1.00 ms (cpu, fp32); \
                 two with gates recompute is as fast within the spread.",
                "A learning layer, small batch: three with gates save is fastest at B = 64, D = 512: 0.200 ms (cpu, bf16).",
                "Memory at B = 64, H = 512 (cpu, fp32): two with gates recompute keeps nothing between forward and backward, \
                 where three keeps 2 KiB.",
            ]
        );
    }

    #[test]
    fn a_wrong_or_a_cold_case_is_never_recommended() {
        let wrong = Case { ok: false, ..case("wrong", Precision::Fp32, 0.1, 0.1, 0, Gates::Save) };
        let cold = Case { cache: Cache::Cold, ..case("cold", Precision::Fp32, 0.1, 0.1, 0, Gates::Save) };
        assert!(sentences(&[&wrong, &cold], &[]).is_empty());
    }
}
