//! Chapters 4, 5 and 6: what was measured, in words and bars.

use super::{
    page::{Page, WIDTH, bar},
    race::Finished,
};
use crate::{
    measure::{record::Case, timer::Cache, work::Pass},
    report::{choices, table::ms},
    swiglu::{Gates, liger::LIGER_STYLE},
};

/// Chapter 4: what it costs and buys to leave the layer as it was born.
pub fn frozen(page: &mut Page, finished: &[Finished]) {
    page.text(
        "A frozen layer keeps the random weights that it was born with. Stem and head learn around it. Its dWf is never \
         made, and that is less work, not faster work: compare its time with its accuracy beside it.",
    );
    page.blank();
    page.line("                     how far the weights moved        test accuracy after");
    let epochs = finished.iter().map(|one| one.training.epochs.len()).max().unwrap_or(0);
    // As many epochs as a line holds, the last ones.
    let shown: Vec<usize> = (0..epochs).skip(epochs.saturating_sub(3)).collect();
    let heads: String = shown.iter().map(|epoch| format!("{:>9}", format!("epoch {}", epoch + 1))).collect();
    page.line(&format!("                         stem   SwiGLU     head   {heads}"));
    for one in finished {
        let moved: String = one.moved.iter().map(|&share| format!("{:>9}", percent(share))).collect();
        let accuracy: String = shown
            .iter()
            .filter_map(|&epoch| one.training.epochs.get(epoch))
            .map(|epoch| format!("{:>9}", format!("{:.2} %", 100.0 * epoch.test_accuracy)))
            .collect();
        page.line(&format!("  {:<18}{moved}   {accuracy}", one.training.configuration.swiglu));
    }
    page.blank();
    let (learning, frozen): (Vec<&Finished>, Vec<&Finished>) = finished.iter().partition(|one| one.training.trains_wf);
    let fastest = learning.iter().min_by(|a, b| a.train_ms.total_cmp(&b.train_ms));
    for one in &frozen {
        let Some(best) = fastest else { continue };
        let accuracy = |of: &Finished| of.training.epochs.last().map_or(0.0, |epoch| 100.0 * epoch.test_accuracy);
        let points = accuracy(one) - accuracy(best);
        let (name, other) = (&one.training.configuration.swiglu, &best.training.configuration.swiglu);
        page.text(&format!(
            "{name} needs {:.0} % of the time of {other}, the fastest that learns, and ends {:.2} points {} it. \
             Freeze features that are good already; here they are random.",
            100.0 * one.train_ms / best.train_ms,
            points.abs(),
            if points < 0.0 { "below" } else { "above" }
        ));
    }
    if frozen.is_empty() {
        page.text("Every implementation of this program learns.");
    }
}

fn percent(share: f64) -> String {
    if share == 0.0 { "none".into() } else { format!("{:.0} %", 100.0 * share) }
}

/// A training step of one implementation in milliseconds: what the layer takes, and all else.
#[derive(Clone, Debug, PartialEq)]
struct Pieces {
    name: String,
    learns: bool,
    forward: f64,
    dx: f64,
    dwf: f64,
    rest: f64,
}

/// The marks of the pieces in a bar.
const MARKS: [(char, &str); 4] = [('f', "forward"), ('x', "dx"), ('w', "dWf"), ('.', "the rest")];

impl Pieces {
    /// From times of the layer alone, with a warm cache, and of the step that the race measured. Forward and dWf are
    /// differences of steps with and without them, so that the pieces of the layer add up to its step.
    fn of(one: &Finished, cases: &[Case], keeps: bool) -> Option<Pieces> {
        let name = &one.training.configuration.swiglu;
        let time = |pass: Pass| {
            let here = |c: &&Case| c.swiglu == *name && c.pass == pass && c.cache == Cache::Warm && c.ok;
            let wanted = if keeps { Gates::Save } else { Gates::Recompute };
            let all = || cases.iter().filter(here);
            // One that cannot choose has one way alone.
            all().find(|c| c.gates == wanted).or_else(|| all().next())?.median_ms
        };
        let (dx, without) = (time(Pass::BackwardDx)?, time(Pass::StepDx)?);
        let with = if one.training.trains_wf { time(Pass::Step)? } else { without };
        let [forward, dwf] = [without - dx, with - without].map(|ms| ms.max(0.0));
        let rest = (one.step_ms - forward - dx - dwf).max(0.0);
        Some(Pieces { name: name.clone(), learns: one.training.trains_wf, forward, dx, dwf, rest })
    }

    fn parts(&self) -> [f64; 4] {
        [self.forward, self.dx, self.dwf, self.rest]
    }

    fn total(&self) -> f64 {
        self.parts().iter().sum()
    }

    /// The pieces one after the other, `width` columns for `most`.
    fn drawn(&self, most: f64, width: usize) -> String {
        let (mut drawn, mut sum) = (String::new(), 0.0);
        for (part, (mark, _)) in self.parts().into_iter().zip(MARKS) {
            sum += part;
            let end = (sum / most * width as f64).round() as usize;
            drawn.extend(std::iter::repeat_n(mark, end.saturating_sub(drawn.len())));
        }
        format!("{drawn:<width$}")
    }
}

/// Chapter 5: where a step's time goes. `keeps` says whether g and u are kept in the race.
pub fn pieces(page: &mut Page, finished: &[Finished], cases: &[Case], keeps: bool) {
    let all: Vec<Pieces> = finished.iter().filter_map(|one| Pieces::of(one, cases, keeps)).collect();
    let most = all.iter().map(Pieces::total).fold(0.0, f64::max);
    page.text(
        "A training step in milliseconds. The layer was timed alone, checked against f64 first: f forward, x backward to \
         dx, w backward to dWf; the dots are the rest: stem, head, loss, and SGD, which some apply where they make dWf.",
    );
    page.blank();
    let width = WIDTH - 31;
    for one in &all {
        page.line(&format!("  {:<18} {} {:>7}", one.name, one.drawn(most, width), ms(one.total())));
    }
    page.blank();
    let baseline = all.iter().find(|one| one.name == LIGER_STYLE.name);
    let best = all.iter().filter(|one| one.learns).min_by(|a, b| a.total().total_cmp(&b.total()));
    match (baseline, best) {
        (Some(from), Some(to)) if from.name != to.name => waterfall(page, from, to, width),
        (Some(from), _) => page.text(&format!("None that learns is faster here than {}.", from.name)),
        (None, _) => {}
    }
    let slow: Vec<&str> = cases.iter().filter(|case| !case.ok).map(|case| case.swiglu.as_str()).collect();
    if !slow.is_empty() {
        page.text(&format!("FAILED its check against f64, so it has no time: {}.", slow.join(", ")));
    }
}

/// From one bar to another, a line for each piece.
fn waterfall(page: &mut Page, from: &Pieces, to: &Pieces, width: usize) {
    page.heading(&format!("From {} to {}, piece by piece", from.name, to.name));
    // Wide enough for a piece that is slower before others make up for it.
    let mut reach: f64 = from.total();
    let mut most = reach;
    let steps: Vec<(&str, f64)> =
        MARKS.iter().zip(from.parts().iter().zip(to.parts())).map(|((_, name), (a, b))| (*name, b - a)).collect();
    for (_, change) in &steps {
        reach += change;
        most = most.max(reach);
    }
    let at = |value: f64| ((value / most * width as f64).round() as usize).min(width);
    let whole = |page: &mut Page, one: &Pieces| {
        page.line(&format!("  {:<18} {} {:>7}", one.name, bar('#', one.total(), most, width), ms(one.total())));
    };
    whole(page, from);
    let mut level = from.total();
    for (name, change) in steps {
        let (low, high) = (at(level.min(level + change)), at(level.max(level + change)));
        let mark = if change < 0.0 { '-' } else { '+' };
        // Less than a column is to be seen all the same.
        let (low, high) = if low == high { (low.min(width - 1), low.min(width - 1) + 1) } else { (low, high) };
        let drawn = " ".repeat(low) + &mark.to_string().repeat(high - low) + &" ".repeat(width - high);
        page.line(&format!("  {name:<18} {drawn} {:>7}", format!("{mark}{}", ms(change.abs()))));
        level += change;
    }
    whole(page, to);
}

/// Chapter 6: what the report would advise.
pub fn advice(page: &mut Page, finished: &[Finished], cases: &[Case]) {
    page.text("From what this tour has measured, at this one shape; the report says the same.");
    page.blank();
    let trainings: Vec<_> = finished.iter().map(|one| &one.training).collect();
    for sentence in choices::sentences(&cases.iter().collect::<Vec<_>>(), &trainings) {
        page.point(&sentence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(name: &str, [forward, dx, dwf, rest]: [f64; 4]) -> Pieces {
        Pieces { name: name.into(), learns: true, forward, dx, dwf, rest }
    }

    #[test]
    fn a_bar_has_a_share_for_each_piece() {
        let one = pieces("one", [1.0, 2.0, 1.0, 4.0]);
        assert_eq!(one.drawn(8.0, 16), "ffxxxxww........");
        assert_eq!(one.drawn(16.0, 16), "fxxw....        ");
    }

    #[test]
    fn a_waterfall_falls_from_one_total_to_the_other() {
        let (mut page, from) = (Page::new(false), pieces("slow", [2.0, 2.0, 2.0, 4.0]));
        waterfall(&mut page, &from, &pieces("fast", [1.0, 1.0, 2.5, 3.5]), 20);
        let text = page.into_text();
        let expected = "\
From slow to fast, piece by piece
  slow               ####################    10.0
  forward                              --   -1.00
  dx                                 --     -1.00
  dWf                                +     +0.500
  the rest                           -     -0.500
  fast               ################        8.00
";
        assert_eq!(text, expected, "\n{text}");
    }
}
