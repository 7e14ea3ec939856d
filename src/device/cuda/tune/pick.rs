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

#[cfg(test)]
mod tests {
    use super::pick;

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
