//! The choice among times.

/// How much faster than the rules' choice another must be: what less is, is noise, and rules are the same everywhere.
const MARGIN: f64 = 0.02;

/// The index of the fastest of `times`, the rules' choice first; of one whose results were wrong there is none. What is not
/// faster than the rules' choice by 2 % loses to it.
pub(super) fn pick(times: &[Option<f64>]) -> usize {
    let timed = || times.iter().enumerate().filter_map(|(index, time)| Some((index, (*time)?)));
    let Some((_, rule)) = timed().find(|(index, _)| *index == 0) else { return 0 };
    // The first of equals: min_by keeps it.
    match timed().min_by(|a, b| a.1.total_cmp(&b.1)) {
        Some((index, time)) if time < rule * (1.0 - MARGIN) => index,
        _ => 0,
    }
}

/// How far turns of one and the same launches may lie apart.
const SCATTER: f64 = 1.15;

/// Whether the GPU was ours alone while the rules' choice took its `turns`, the first of which warms up: they agree. With others
/// on the GPU a turn lasts as long as theirs do, and the fastest candidate is the one that was lucky. Of one turn nothing is known.
pub(super) fn is_quiet(turns: &[f64]) -> bool {
    let warm = turns.get(1..).unwrap_or_default();
    let (least, most) = warm.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), &t| (least.min(t), most.max(t)));
    most <= least * SCATTER
}

#[cfg(test)]
mod tests {
    use super::{is_quiet, pick};

    #[test]
    fn turns_that_scatter_are_told_from_those_of_a_quiet_gpu_whatever_the_first_took() {
        assert!(is_quiet(&[30.0, 10.0, 10.2, 11.4, 10.1]));
        assert!(!is_quiet(&[10.0, 10.0, 10.2, 12.0, 10.1]));
        assert!(!is_quiet(&[10.0, 23.0, 10.2]));
        assert!(is_quiet(&[10.0, 23.0]) && is_quiet(&[10.0]) && is_quiet(&[]), "nothing to compare");
    }

    #[test]
    fn the_fastest_wins_and_the_rules_choice_wins_ties_of_two_percent() {
        assert_eq!(pick(&[Some(10.0), Some(9.0), Some(8.0), Some(8.5)]), 2);
        assert_eq!(pick(&[Some(10.0), Some(9.81), Some(10.0)]), 0);
        assert_eq!(pick(&[Some(10.0), Some(9.79)]), 1);
        assert_eq!(pick(&[Some(10.0), Some(8.0), Some(8.0)]), 1, "of equals the first");
        assert_eq!(pick(&[Some(10.0)]), 0);
    }

    #[test]
    fn a_wrong_one_cannot_win_and_without_the_rules_time_nothing_is_compared() {
        assert_eq!(pick(&[Some(10.0), None, Some(9.0)]), 2);
        assert_eq!(pick(&[Some(10.0), None]), 0);
        assert_eq!(pick(&[None, Some(1.0)]), 0);
        assert_eq!(pick(&[]), 0);
        assert_eq!(pick(&[Some(10.0), Some(f64::NAN)]), 0);
    }
}
