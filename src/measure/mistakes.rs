//! What a trained network gets wrong: the confusion matrix, and the images of which it is surest and wrong.

use std::{borrow::Cow, fmt::Write};

use crate::{
    Result,
    data::{CLASSES, PIXELS, Split},
    device::cpu::ops::argmax,
    measure::record::Wrong,
    model::Mlp,
    swiglu::Pass,
};

/// Images that are kept.
const KEPT: usize = 12;

/// The confusion matrix over `test`, and some of the images that are wrong, the surest first.
///
/// # Errors
/// When the device fails.
pub fn of(model: &mut Mlp, test: &Split) -> Result<(Vec<Vec<u64>>, Vec<Wrong>)> {
    let images = model.device().images(Cow::Borrowed(test))?;
    let batch = model.device().evaluation_batch(images.len());
    let mut acts = model.activations(batch, Pass::Inference)?;
    let probabilities = model.probabilities(&images, &mut acts, batch)?;
    let mut confusion = vec![vec![0; CLASSES]; CLASSES];
    let mut wrong = Vec::new();
    for (index, (row, &label)) in probabilities.iter().zip(&test.labels).enumerate() {
        let said = argmax(row);
        confusion[usize::from(label)][said] += 1;
        if said != usize::from(label) {
            wrong.push((row[said], index, label, said as u8));
        }
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0));
    let kept = wrong.into_iter().take(KEPT).map(|(probability, index, label, said)| Wrong {
        index,
        label,
        said,
        probability: f64::from(probability),
        pixels: test.images[index * PIXELS..][..PIXELS].iter().fold(String::new(), |mut text, pixel| {
            // Writing to a string does not fail.
            let _ = write!(text, "{pixel:02x}");
            text
        }),
    });
    Ok((confusion, kept.collect()))
}
