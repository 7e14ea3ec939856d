//! Where an axis begins and ends, and which of its values are named.

use std::ops::Range;

use plotters::{
    coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    prelude::*,
};

use super::{
    canvas::{drawing, text},
    palette,
};
use crate::Result;

/// An axis in the units that are drawn: for a logarithmic one, those are decimal logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Where it begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Positions of the grid lines and their names.
    pub ticks: Vec<(f64, String)>,
    /// Whether its units are decimal logarithms.
    pub logarithmic: bool,
}

impl Axis {
    /// Where `value` is on the axis.
    pub fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    /// The name of the grid line at `place`.
    pub fn name(&self, place: f64) -> String {
        self.ticks
            .iter()
            .find(|(tick, _)| (tick - place).abs() < 1e-9)
            .map_or_else(String::new, |(_, name)| name.clone())
    }

    /// Epochs 1 to `last`; from the beginning of the first one (0) when there are losses inside epochs.
    pub fn epochs(last: f64, from_zero: bool) -> Self {
        let first = if from_zero { 0.0 } else { 1.0 };
        let last = last.max(1.0);
        let margin = if last > first { 0.03 * (last - first) } else { 0.5 };
        let step = step(last - first, 10).max(1.0);
        let ticks = multiples(first, last, step)
            .filter(|tick| *tick >= first)
            .map(|tick| (tick, format!("{tick:.0}")))
            .collect();
        let low = if from_zero { 0.0 } else { first - margin };
        Axis { low, high: last + margin, ticks, logarithmic: false }
    }

    /// Losses: logarithmic when they span a factor of 8, else linear from 0.
    pub fn loss(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = span(values.filter(|value| *value > 0.0)).unwrap_or((0.1, 1.0));
        if high / low < 8.0 {
            return Self::linear(0.0, high * 1.05, f64::INFINITY);
        }
        Self::logarithmic(low, high)
    }

    /// Decimal logarithms from a little below `low` to a little above `high`.
    pub fn logarithmic(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10() - 0.05, high.log10() + 0.05);
        let decades = high - low;
        // As many names as fit: nearly all digits, 1, 2 and 5 of each decade, or 1 alone.
        let digits: &[i32] = match decades {
            ..=0.9 => &[1, 2, 3, 4, 5, 6, 8],
            ..=3.5 => &[1, 2, 5],
            _ => &[1],
        };
        let every = (decades / 8.0).ceil().max(1.0) as i32;
        let ticks = (low.floor() as i32..=high.ceil() as i32)
            .filter(|exponent| exponent % every == 0)
            .flat_map(|exponent| digits.iter().map(move |digit| (exponent, *digit)))
            .map(|(exponent, digit)| {
                let value = f64::from(digit) * 10_f64.powi(exponent);
                let name = if (-4..=4).contains(&exponent) {
                    format!("{value:.*}", (-exponent).max(0) as usize)
                } else {
                    format!("{digit}e{exponent}")
                };
                (value.log10(), name)
            })
            .filter(|(tick, _)| (low..=high).contains(tick))
            .collect();
        Axis { low, high, ticks, logarithmic: true }
    }

    /// Accuracies in percent: what is there with some air, at least 2 points of it, never above 100.
    pub fn percent(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = span(values).unwrap_or((0.0, 100.0));
        let air = (0.1 * (high - low)).max(0.1);
        let missing = (2.0 - (high - low) - 2.0 * air).max(0.0) / 2.0;
        let (low, high) = (low - air - missing, high + air + missing);
        Self::linear(low.max(0.0), high, 100.0)
    }

    /// From the last tick at or below `low` to the first at or above `high`, but not above `limit`.
    pub fn linear(low: f64, high: f64, limit: f64) -> Self {
        let step = step(high - low, 6);
        let low = (low / step + 1e-9).floor() * step;
        let high = ((high / step - 1e-9).ceil() * step).min(limit);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = multiples(low, high, step).map(|tick| (tick, format!("{tick:.decimals$}"))).collect();
        Axis { low, high, ticks, logarithmic: false }
    }
}

/// Draws grid, ticks and names of two axes; text is of `size`.
pub fn mesh<DB: DrawingBackend>(
    chart: &mut ChartContext<'_, DB, Cartesian2d<Axis, Axis>>,
    (x_name, x): (&str, &Axis),
    (y_name, y): (&str, &Axis),
    size: f64,
    scale: f64,
) -> Result<()> {
    let px = |units: f64| (units * scale) as i32;
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_labels(x.ticks.len())
        .y_labels(y.ticks.len())
        .x_label_formatter(&|place| x.name(*place))
        .y_label_formatter(&|place| y.name(*place))
        .label_style(text(size, scale))
        .axis_desc_style(text(size, scale))
        .axis_style(palette::MUTED.stroke_width(px(1.0) as u32))
        .bold_line_style(palette::GRID.stroke_width(px(1.0) as u32))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(4.0))
        .draw()
        .map_err(drawing)
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (place - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }

    /// The grid is at the ticks, whatever the library would have chosen.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// The smallest step of 1, 2 or 5 times a power of ten that cuts `length` into at most `parts`.
fn step(length: f64, parts: u32) -> f64 {
    let raw = (length / f64::from(parts)).max(1e-12);
    let power = 10_f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= raw * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// The multiples of `step` from `low` to `high`.
fn multiples(low: f64, high: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(move |index| index as f64 * step)
}

/// The smallest and largest finite value.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |span, value| match span {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(axis: &Axis) -> String {
        axis.ticks.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn epochs_are_named_with_whole_numbers_and_not_too_many() {
        assert_eq!(names(&Axis::epochs(1.0, false)), "1");
        assert_eq!(names(&Axis::epochs(1.0, true)), "0 1");
        assert_eq!(names(&Axis::epochs(5.0, false)), "1 2 3 4 5");
        assert_eq!(names(&Axis::epochs(30.0, true)), "0 5 10 15 20 25 30");
        assert_eq!(names(&Axis::epochs(1000.0, false)), "100 200 300 400 500 600 700 800 900 1000");
        let one = Axis::epochs(1.0, false);
        assert_eq!((one.low, one.high), (0.5, 1.5));
    }

    #[test]
    fn losses_are_logarithmic_when_they_span_much_and_linear_from_zero_else() {
        let wide = Axis::loss([2.3, 0.06, 0.02].into_iter());
        assert!(wide.logarithmic);
        assert_eq!(names(&wide), "0.02 0.05 0.1 0.2 0.5 1 2");
        let narrow = Axis::loss([0.5, 0.3].into_iter());
        assert_eq!((narrow.low, narrow.logarithmic), (0.0, false));
        assert_eq!(names(&narrow), "0.0 0.1 0.2 0.3 0.4 0.5 0.6");
        assert_eq!(names(&Axis::loss([1e-9, 1e3].into_iter())), "1e-8 1e-6 0.0001 0.01 1 100");
    }

    #[test]
    fn losses_that_are_no_numbers_or_zero_do_not_stretch_the_axis() {
        let axis = Axis::loss([f64::NAN, f64::INFINITY, 0.0, 0.3, 0.5].into_iter());
        assert_eq!(axis, Axis::loss([0.3, 0.5].into_iter()));
        assert!(Axis::loss([f64::NAN].into_iter()).high.is_finite());
    }

    #[test]
    fn accuracies_have_air_and_end_at_a_hundred() {
        let ends = |values: &[f64]| {
            let axis = Axis::percent(values.iter().copied());
            (axis.low, axis.high, names(&axis))
        };
        assert_eq!(ends(&[97.1]), (96.0, 98.5, "96.0 96.5 97.0 97.5 98.0 98.5".into()));
        assert_eq!(ends(&[91.0, 98.4]), (90.0, 100.0, "90 92 94 96 98 100".into()));
        assert_eq!(ends(&[99.9]), (98.5, 100.0, "98.5 99.0 99.5 100.0".into()));
        assert_eq!(ends(&[9.8, 98.0]), (0.0, 100.0, "0 20 40 60 80 100".into()));
        assert_eq!(ends(&[]), (0.0, 100.0, "0 20 40 60 80 100".into()));
    }
}
