//! A pass over a whole split on a GPU, captured once and replayed: inference without the host.

use std::sync::Arc;

use super::{Activations, Mlp};
use crate::{
    Result,
    data::PIXELS,
    device::{
        Images, Rows, Tally,
        cuda::{Cuda, epoch::Epoch, graph::Graph, log::Log},
    },
};

/// The captured pass. Network, images and activations must outlive it, where they were.
pub struct Evaluation {
    cuda: Cuda,
    graph: Graph,
    log: Arc<Log>,
    /// Images of each batch.
    counts: Vec<usize>,
}

impl Evaluation {
    /// Captures a pass in batches of `batch`. Kernels that [`Cuda::prepare`] has not seen are compiled meanwhile.
    ///
    /// # Errors
    /// When memory is short or a kernel does not compile.
    pub fn new(
        cuda: &Cuda,
        model: &mut Mlp,
        images: &Images,
        acts: &mut Activations,
        batch: usize,
    ) -> Result<Evaluation> {
        let counts: Vec<usize> = batches(images, batch).map(|(_, count)| count).collect();
        let log = Arc::new(Log::new(cuda.context(), counts.len(), images.len())?);
        log.begin(0, &(0..images.len() as u32).collect::<Vec<_>>(), &[])?;
        let graph = cuda.record(&log, || evaluate(model, images, acts, batch))?;
        Ok(Evaluation { cuda: cuda.clone(), graph, log, counts })
    }

    /// Loss and hits over the split, and the device time in ms.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(&self) -> Result<(Tally, f64)> {
        self.log.rewind()?;
        let begin = self.cuda.event()?;
        self.graph.replay()?;
        let end = self.cuda.event()?;
        let (losses, hits) = self.log.results(self.counts.len())?;
        let mut tally = Tally::default();
        for ((loss, hits), &count) in losses.into_iter().zip(hits).zip(&self.counts) {
            tally.add(loss, hits, count);
        }
        Ok((tally, end.since(&begin)?))
    }
}

/// The log of `steps` steps of training a network of this width over `images` in batches of up to `batch`: with room for them in their order, where the
/// stem's kernels read them so and no gradient is kept (`clips`: gradients wait for their norm).
///
/// # Errors
/// When there is no memory for it.
pub fn training_log(
    cuda: &Cuda,
    width: usize,
    (images, batch, steps): (usize, usize, usize),
    clips: bool,
) -> Result<Log> {
    let log = Log::new(cuda.context(), steps, images)?;
    if clips || !cuda.takes_linear(PIXELS, width) {
        return Ok(log);
    }
    Ok(log.with_epoch(Epoch::new(cuda, (images, batch), width)?))
}

/// First image and count of each batch.
fn batches(images: &Images, batch: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let all = images.len();
    (0..all).step_by(batch).map(move |first| (first, batch.min(all - first)))
}

/// The pass itself, to be captured, or to be planned by [`Cuda::prepare`].
///
/// # Errors
/// When the device fails.
pub fn evaluate(model: &mut Mlp, images: &Images, acts: &mut Activations, batch: usize) -> Result<()> {
    for (first, count) in batches(images, batch) {
        model.evaluate_batch(images, Rows::At { first, count }, acts, &mut Tally::default())?;
    }
    Ok(())
}
