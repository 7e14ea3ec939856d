//! Images where a device reads them, batches of them, and what is counted over a batch.

use std::borrow::Cow;

use super::{
    Device,
    cpu::ops,
    cuda::{context::Memory, epoch::Place, log::Log},
};
use crate::{
    Error, Result,
    data::{PIXELS, Split},
    tensor::Tensor,
};

/// Images and labels, where a device reads them.
#[derive(Debug)]
pub struct Images {
    count: usize,
    storage: ImageStorage,
}

#[derive(Debug)]
enum ImageStorage {
    Cpu { images: Vec<u8>, labels: Vec<u8> },
    Cuda { images: Memory, labels: Memory },
}

impl Images {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Images (N, 784) and labels (N), a byte each, on a GPU.
    pub(crate) fn on_cuda(&self) -> Result<(&Memory, &Memory)> {
        match &self.storage {
            ImageStorage::Cuda { images, labels } => Ok((images, labels)),
            ImageStorage::Cpu { .. } => Err(Error::shape("the images are not on a GPU")),
        }
    }
}

/// Which images a batch is made of.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// These.
    Listed(&'a [u32]),
    /// The next so many of the order that the log of a captured step holds.
    Next(usize),
    /// `count` images from place `first` of that order.
    At {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
}

impl Rows<'_> {
    /// How many images.
    pub fn count(self) -> usize {
        match self {
            Rows::Listed(rows) => rows.len(),
            Rows::Next(count) | Rows::At { count, .. } => count,
        }
    }
}

/// The images of one step: (B, 784) normalised pixels, and B labels.
#[derive(Debug)]
pub struct Batch {
    /// Normalised pixels.
    pub x: Tensor,
    pub(super) labels: Labels,
    /// In a captured step whose epoch is laid out: where the images are there. `x` and `labels` hold nothing then.
    pub(super) place: Option<Place>,
}

/// The labels of a batch, where the loss reads them.
#[derive(Debug)]
pub(super) enum Labels {
    Cpu(Vec<u8>),
    Cuda(Memory),
}

/// Losses and hits, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sum of the losses of `count` images.
    pub loss_sum: f64,
    /// Images whose largest logit is the label's.
    pub correct: u64,
    /// Images.
    pub count: u64,
}

impl Tally {
    /// Adds a batch of `count` images by its mean loss and its hits.
    pub fn add(&mut self, mean_loss: f32, hits: u32, count: usize) {
        self.loss_sum += f64::from(mean_loss) * count as f64;
        self.correct += u64::from(hits);
        self.count += count as u64;
    }

    /// Mean cross-entropy, in nats.
    pub fn mean_loss(&self) -> f64 {
        self.loss_sum / self.count as f64
    }

    /// Share of the images that are classified right.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count as f64
    }
}

impl Device {
    /// Puts a split where the device reads it: a GPU needs only to see it, a CPU keeps it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn images(&self, split: Cow<'_, Split>) -> Result<Images> {
        let count = split.len();
        let storage = match self {
            Device::Cpu(_) => {
                let Split { images, labels } = split.into_owned();
                ImageStorage::Cpu { images, labels }
            }
            Device::Cuda(cuda) => {
                let images = cuda.context().allocate(split.images.len())?;
                let labels = cuda.context().allocate(count)?;
                images.write(&split.images)?;
                labels.write(&split.labels)?;
                ImageStorage::Cuda { images, labels }
            }
        };
        Ok(Images { count, storage })
    }

    /// Room for a batch of up to `batch` images.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn batch(&self, batch: usize) -> Result<Batch> {
        let labels = match self {
            Device::Cpu(_) => Labels::Cpu(Vec::with_capacity(batch)),
            Device::Cuda(cuda) => Labels::Cuda(cuda.context().allocate(batch)?),
        };
        Ok(Batch { x: self.activations(batch, PIXELS)?, labels, place: None })
    }

    /// Fills the batch with images of the split, normalised.
    ///
    /// # Errors
    /// When the batch has no room for so many, or an index is beyond the split.
    pub fn gather(&self, from: &Images, rows: Rows<'_>, into: &mut Batch) -> Result<()> {
        if let Rows::Listed(rows) = rows
            && let Some(bad) = rows.iter().find(|&&row| row as usize >= from.len())
        {
            return Err(Error::shape(format!("gather: image {bad} of {}", from.len())));
        }
        into.x.set_rows(rows.count())?;
        match (self, &from.storage, &mut into.labels, rows) {
            (Device::Cpu(cpu), ImageStorage::Cpu { images, labels }, Labels::Cpu(labels_out), Rows::Listed(rows)) => {
                labels_out.resize(rows.len(), 0);
                ops::gather(cpu, images, labels, rows, into.x.cpu_mut()?, labels_out);
                Ok(())
            }
            (Device::Cuda(cuda), ImageStorage::Cuda { images, labels }, Labels::Cuda(labels_out), rows) => {
                into.place = cuda.gather((images, labels), rows, &mut into.x, labels_out)?;
                Ok(())
            }
            _ => Err(Error::shape("gather: the images, the batch and the device are not of one kind")),
        }
    }

    /// Lays the images out in the order that the log holds, where it has room for them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn lay_out(&self, log: &Log, images: &Images) -> Result<()> {
        match (self, &images.storage) {
            (Device::Cuda(cuda), ImageStorage::Cuda { images, labels }) => cuda.lay_out(log, (images, labels)),
            _ => Err(Error::shape("lay out: the images are not on a GPU")),
        }
    }
}
