//! What the implementations are, from their own registry: weights, launches, where dWf comes from.

use super::table::Table;
use crate::swiglu::{self, WeightLayout};

/// One row for each entry of [`swiglu::ALL`].
pub fn table() -> Table {
    let header = ["swiglu", "weights", "Wf learns", "forward", "backward, dx", "backward, dWf", "can recompute g, u"];
    let mut table = Table::new("Layout: weights and launches of each pass", 7, &header);
    let launches = |(own, library): (u32, u32)| match (own, library) {
        (0, 0) => "none".to_owned(),
        (own, 0) => format!("{own} own"),
        (0, library) => format!("{library} library"),
        (own, library) => format!("{own} own + {library} library"),
    };
    let yes = |holds| if holds { "yes" } else { "no" }.to_owned();
    for entry in swiglu::ALL {
        let weights = match entry.weights {
            WeightLayout::Apart => "Wg, Wu apart: (H, D) each",
            WeightLayout::Packed => "Wf packed: (2H, D)",
        };
        table.rows.push(vec![
            entry.name.into(),
            weights.into(),
            yes(entry.trains_weight),
            launches(entry.launches.forward),
            launches(entry.launches.backward_dx),
            launches(entry.launches.backward_dwf),
            yes(entry.can_recompute),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_implementation_has_a_row_with_its_launches() {
        let text = table().text();
        for entry in swiglu::ALL {
            assert!(text.contains(entry.name), "{text}");
        }
        assert!(text.contains("1 own + 2 library"), "{text}");
    }
}
