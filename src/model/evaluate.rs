//! What a trained network says of images: probabilities, and the confusion matrix.

use super::{Activations, Mlp};
use crate::{
    Result,
    data::CLASSES,
    device::{Images, Rows, cpu::ops::argmax},
    swiglu::Pass,
};

/// Rows are labels, columns what the network said: `confusion[label][said]` images.
pub type Confusion = [[u64; CLASSES]; CLASSES];

impl Mlp {
    /// The probabilities of the ten classes for each image.
    ///
    /// # Errors
    /// When the device fails.
    pub fn probabilities(
        &mut self,
        images: &Images,
        acts: &mut Activations,
        batch: usize,
    ) -> Result<Vec<[f32; CLASSES]>> {
        let mut all = Vec::with_capacity(images.len());
        let rows: Vec<u32> = (0..images.len() as u32).collect();
        for rows in rows.chunks(batch) {
            self.device.gather(images, Rows::Listed(rows), &mut acts.batch)?;
            self.forward(acts, Pass::Inference)?;
            let logits = self.device.download(acts.logits())?;
            all.extend(logits.chunks_exact(CLASSES).map(softmax));
        }
        Ok(all)
    }

    /// Counts what the network says of labelled images.
    ///
    /// # Errors
    /// When the device fails.
    pub fn confusion(
        &mut self,
        images: &Images,
        labels: &[u8],
        acts: &mut Activations,
        batch: usize,
    ) -> Result<Confusion> {
        let mut matrix = Confusion::default();
        for (row, &label) in self.probabilities(images, acts, batch)?.iter().zip(labels) {
            matrix[usize::from(label)][argmax(row)] += 1;
        }
        Ok(matrix)
    }
}

fn softmax(logits: &[f32]) -> [f32; CLASSES] {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: [f32; CLASSES] = std::array::from_fn(|i| (logits[i] - max).exp());
    let sum: f32 = exps.iter().sum();
    exps.map(|e| e / sum)
}
