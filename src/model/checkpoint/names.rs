//! The names and shapes of the weights in a checkpoint, and the check against what the model expects.

use std::path::Path;

use super::{Arrays, archive::broken};
use crate::{Error, Result};

/// Pixels of an image.
const PIXELS: usize = 28 * 28;
/// Digits.
const CLASSES: usize = 10;

/// Names and shapes of the network `width` (D), `hidden` (H), `depth`, in the order of the forward pass.
pub fn expected(width: usize, hidden: usize, depth: usize) -> Vec<(String, Vec<usize>)> {
    let mut list = vec![("stem.weight".to_owned(), vec![width, PIXELS]), ("stem.bias".to_owned(), vec![width])];
    for layer in 0..depth {
        let inputs = if layer == 0 { width } else { hidden };
        for half in ["gate", "up"] {
            list.push((format!("layers.{layer}.{half}.weight"), vec![hidden, inputs]));
        }
    }
    list.push(("head.weight".to_owned(), vec![CLASSES, hidden]));
    list.push(("head.bias".to_owned(), vec![CLASSES]));
    list
}

/// (width, hidden, depth) of the network that `weights` are of, from their names and shapes alone; `path` is for errors.
///
/// For files of other programs, which say nothing about a configuration.
pub fn infer_network(weights: &Arrays, path: &Path) -> Result<(usize, usize, usize)> {
    let rows = |name: &str| weights.get(name).and_then(|array| array.shape.first().copied());
    let depth = (0..).take_while(|layer| weights.contains_key(&format!("layers.{layer}.gate.weight"))).count();
    let (Some(width), Some(hidden)) = (rows("stem.weight"), rows("layers.0.gate.weight")) else {
        return Err(broken(
            path,
            &format!(
                "it is not a model of this program: it holds {}, and neither stem.weight with layers.0.gate.weight",
                some_names(weights)
            ),
        )
        .hint(NAMES_HINT));
    };
    check(weights, &expected(width, hidden, depth), path)?;
    Ok((width, hidden, depth))
}

/// Checks that `weights` hold exactly the `expected` names and shapes; `path` is for the error.
pub fn check(weights: &Arrays, expected: &[(String, Vec<usize>)], path: &Path) -> Result<()> {
    for (name, shape) in expected {
        match weights.get(name) {
            None => {
                return Err(
                    broken(path, &format!("{name} is missing; it holds {}", some_names(weights))).hint(NAMES_HINT)
                );
            }
            Some(array) if array.shape != *shape => {
                return Err(broken(
                    path,
                    &format!("{name} has shape {}, and the network needs {}", show(&array.shape), show(shape)),
                )
                .hint("it is of a network with another --width, --hidden or --depth"));
            }
            Some(_) => {}
        }
    }
    match weights.keys().find(|name| !expected.iter().any(|(known, _)| known == *name)) {
        Some(name) => Err(broken(path, &format!("it holds {name}, which the network does not have"))
            .hint("it is of a deeper network, or of another program")),
        None => Ok(()),
    }
}

/// The first NaN or infinity, and the tensor it is in.
pub(super) fn first_non_finite(arrays: &Arrays) -> Option<(&str, f32)> {
    arrays.iter().find_map(|(name, array)| {
        let value = array.data.iter().find(|value| !value.is_finite())?;
        Some((name.as_str(), *value))
    })
}

/// Checks that each tensor has as many values as its shape says.
pub(super) fn check_lengths(arrays: &Arrays) -> Result<()> {
    for (name, array) in arrays {
        if array.shape.iter().product::<usize>() != array.data.len() {
            return Err(Error::shape(format!(
                "cannot save {name}: shape {} and {} values",
                show(&array.shape),
                array.data.len()
            )));
        }
    }
    Ok(())
}

const NAMES_HINT: &str = "the names are stem.weight, stem.bias, layers.N.gate.weight, layers.N.up.weight, head.weight, \
    head.bias, with weights as (out, in)";

fn show(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("({})", sizes.join(", "))
}

/// The first few names in a file, for a message.
fn some_names(weights: &Arrays) -> String {
    const SHOWN: usize = 4;
    let mut names: Vec<&str> = weights.keys().take(SHOWN).map(String::as_str).collect();
    let more = format!("{} more", weights.len().saturating_sub(SHOWN));
    match weights.len() {
        0 => return "no tensors".to_owned(),
        n if n > SHOWN => names.push(&more),
        _ => {}
    }
    names.join(", ")
}
