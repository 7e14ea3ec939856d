//! The operations that a device offers to the network. The SwiGLU implementations bring kernels of their own.

pub mod cpu;
pub mod cuda;

use crate::{
    Error, Kind, Result,
    data::{CLASSES, PIXELS, Split},
    tensor::{AlignedVec, Param, Storage, Tensor},
};
use cpu::{
    Cpu,
    gemm::{View, gemm},
    linear::linear,
    ops,
};

/// A place where tensors live and products are computed. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Device {
    /// Main memory, and every core.
    Cpu(Cpu),
}

/// A transposition of the operands of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// c = a b^T: (M, K) @ (N, K)^T -> (M, N).
    Nt,
    /// c = a b: (M, K) @ (K, N) -> (M, N).
    Nn,
    /// c = a^T b: (K, M)^T @ (K, N) -> (M, N).
    Tn,
}

/// One step of SGD: v <- momentum v + g, w <- w - lr v, where g = scale grad + weight_decay w (and with Nesterov's
/// momentum w <- w - lr (g + momentum v)), as PyTorch has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// L2 penalty.
    pub weight_decay: f32,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Factor of the gradient: below 1 when the global norm is clipped.
    pub scale: f32,
}

impl SgdStep {
    /// The step for a parameter that decays, or does not.
    #[must_use]
    pub fn for_param(mut self, decays: bool) -> Self {
        if !decays {
            self.weight_decay = 0.0;
        }
        self
    }

    /// The rule on one element.
    pub fn apply(&self, w: &mut f32, v: &mut f32, grad: f32) {
        let g = self.weight_decay.mul_add(*w, grad * self.scale);
        *v = self.momentum.mul_add(*v, g);
        let update = if self.nesterov { self.momentum.mul_add(*v, g) } else { *v };
        *w = (-self.lr).mul_add(update, *w);
    }
}

/// Images and labels, where a device reads them.
#[derive(Debug)]
pub struct Images {
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl Images {
    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The images of one step: (B, 784) normalised pixels, and B labels.
#[derive(Debug)]
pub struct Batch {
    /// Normalised pixels.
    pub x: Tensor,
    /// Labels.
    pub labels: Vec<u8>,
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
    /// The device that `name` asks for (`auto`, `cpu`), and why it was chosen.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn open(name: &str, threads: Option<usize>) -> Result<(Device, String)> {
        let why = match name {
            "cpu" => "asked for",
            "auto" => "this build runs on CPUs",
            _ if name == "cuda" || name.starts_with("cuda:") => {
                return Err(Error::new(Kind::Device, format!("--device {name}: this build has no CUDA part"))
                    .hint("use --device cpu"));
            }
            _ => {
                return Err(
                    Error::usage(format!("--device {name}: no such device")).hint("the choices are auto and cpu")
                );
            }
        };
        let cpu = Cpu::new(threads)?;
        let line = format!("cpu ({why}; {} threads, {})", cpu.threads(), cpu.isa().name());
        Ok((Device::Cpu(cpu), line))
    }

    /// Its name in records: `cpu`.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".into(),
        }
    }

    /// The name of the processor, where the system tells.
    pub fn model_name(&self) -> Option<String> {
        match self {
            Device::Cpu(_) => cpu::model_name(),
        }
    }

    /// Threads that compute, where that means something.
    pub fn threads(&self) -> Option<usize> {
        match self {
            Device::Cpu(cpu) => Some(cpu.threads()),
        }
    }

    /// Runs `work` where the device's threads are: on the CPU, inside its pool.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Device::Cpu(cpu) => cpu.install(work),
        }
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Device::Cpu(_) => Ok(Tensor::from_storage(rows, cols, Storage::Cpu(AlignedVec::zeros(rows * cols)))),
        }
    }

    /// A tensor with these values.
    ///
    /// # Errors
    /// When their number is not rows x cols.
    pub fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        let mut tensor = self.zeros(rows, cols)?;
        self.write(&mut tensor, values)?;
        Ok(tensor)
    }

    /// Replaces the elements shown.
    ///
    /// # Errors
    /// When the number of values is another.
    pub fn write(&self, tensor: &mut Tensor, values: &[f32]) -> Result<()> {
        if values.len() != tensor.len() {
            let (rows, cols) = tensor.shape();
            return Err(Error::shape(format!("upload: {} values for a tensor of {rows} x {cols}", values.len())));
        }
        match self {
            Device::Cpu(_) => tensor.cpu_mut()?.copy_from_slice(values),
        }
        Ok(())
    }

    /// The elements shown.
    ///
    /// # Errors
    /// When the device fails.
    pub fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        match self {
            Device::Cpu(_) => Ok(tensor.cpu()?.to_vec()),
        }
    }

    /// Puts a split where the device reads it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn images(&self, split: Split) -> Result<Images> {
        match self {
            Device::Cpu(_) => Ok(Images { images: split.images, labels: split.labels }),
        }
    }

    /// Room for a batch of up to `batch` images.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn batch(&self, batch: usize) -> Result<Batch> {
        Ok(Batch { x: self.zeros(batch, PIXELS)?, labels: Vec::with_capacity(batch) })
    }

    /// Fills the batch with the images `rows` of the split, normalised.
    ///
    /// # Errors
    /// When the batch has no room for so many, or an index is beyond the split.
    pub fn gather(&self, from: &Images, rows: &[u32], into: &mut Batch) -> Result<()> {
        if let Some(bad) = rows.iter().find(|&&row| row as usize >= from.len()) {
            return Err(Error::shape(format!("gather: image {bad} of {}", from.len())));
        }
        into.x.set_rows(rows.len())?;
        into.labels.resize(rows.len(), 0);
        match self {
            Device::Cpu(cpu) => ops::gather(cpu, &from.images, &from.labels, rows, into.x.cpu_mut()?, &mut into.labels),
        }
        Ok(())
    }

    /// The library GEMM: c = op(a, b) + beta c.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, beta: f32, c: &mut Tensor) -> Result<()> {
        match self {
            Device::Cpu(cpu) => {
                let a = View::new(a.cpu()?, a.rows(), a.cols());
                let b = View::new(b.cpu()?, b.rows(), b.cols());
                let (a, b) = match layout {
                    Layout::Nt => (a, b.t()),
                    Layout::Nn => (a, b),
                    Layout::Tn => (a.t(), b),
                };
                c.expect("gemm", "c", a.rows, b.cols)?;
                gemm(cpu, a, b, beta, c.cpu_mut()?)
            }
        }
    }

    /// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N). Ten outputs take a loop of their own.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear(&self, x: &Tensor, w: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
        let (outputs, inputs) = w.shape();
        x.expect("linear", "x", x.rows(), inputs)?;
        b.expect("linear", "bias", 1, outputs)?;
        y.expect("linear", "y", x.rows(), outputs)?;
        match self {
            Device::Cpu(cpu) if outputs == CLASSES => {
                ops::head_forward(cpu, x.cpu()?, w.cpu()?, b.cpu()?, y.cpu_mut()?);
                Ok(())
            }
            Device::Cpu(cpu) => {
                linear(cpu, x.cpu()?, w.cpu()?, b.cpu()?, y.cpu_mut()?);
                Ok(())
            }
        }
    }

    /// dx = dy W: (B, N) @ (N, K) -> (B, K).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear_dx(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor) -> Result<()> {
        dy.expect("linear dx", "dy", dy.rows(), w.rows())?;
        dx.expect("linear dx", "dx", dy.rows(), w.cols())?;
        match self {
            Device::Cpu(cpu) if w.rows() == CLASSES => {
                ops::head_backward_dx(cpu, dy.cpu()?, w.cpu()?, dx.cpu_mut()?);
                Ok(())
            }
            Device::Cpu(_) => self.gemm(Layout::Nn, dy, w, 0.0, dx),
        }
    }

    /// dW = dy^T x: (N, B) @ (B, K) -> (N, K), and db = column sums of dy.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear_dw(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor, db: &mut Tensor) -> Result<()> {
        dy.expect("linear dw", "dy", x.rows(), dw.rows())?;
        x.expect("linear dw", "x", dy.rows(), dw.cols())?;
        db.expect("linear dw", "db", 1, dw.rows())?;
        match self {
            Device::Cpu(cpu) if dw.rows() == CLASSES => {
                ops::head_backward_dw(cpu, dy.cpu()?, x.cpu()?, dw.cpu_mut()?, db.cpu_mut()?);
                Ok(())
            }
            Device::Cpu(cpu) => {
                ops::column_sums(cpu, dy.cpu()?, db.cpu_mut()?);
                self.gemm(Layout::Tn, dy, x, 0.0, dw)
            }
        }
    }

    /// Softmax cross-entropy over (B, 10) logits: adds to the tally, and writes dlogits of the mean loss when wanted.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn softmax_cross_entropy(
        &self,
        logits: &Tensor,
        labels: &[u8],
        dlogits: Option<&mut Tensor>,
        tally: &mut Tally,
    ) -> Result<()> {
        logits.expect("softmax cross-entropy", "logits", labels.len(), CLASSES)?;
        match self {
            Device::Cpu(_) => {
                let dlogits = match dlogits {
                    Some(d) => {
                        d.expect("softmax cross-entropy", "dlogits", labels.len(), CLASSES)?;
                        Some(d.cpu_mut()?)
                    }
                    None => None,
                };
                ops::softmax_cross_entropy(logits.cpu()?, labels, dlogits, &mut tally.loss_sum, &mut tally.correct);
            }
        }
        tally.count += labels.len() as u64;
        Ok(())
    }

    /// One step of SGD on a parameter that has a gradient; a parameter without one is left alone.
    ///
    /// # Errors
    /// When the velocity cannot be made.
    pub fn sgd(&self, step: &SgdStep, param: &mut Param) -> Result<()> {
        let Param { value, velocity, grad: Some(grad), decays } = param else { return Ok(()) };
        let velocity = self.velocity(velocity, value.shape())?;
        match self {
            Device::Cpu(cpu) => ops::sgd(cpu, step, *decays, value.cpu_mut()?, velocity.cpu_mut()?, grad.cpu()?),
        }
        Ok(())
    }

    /// The velocity of a parameter, made of zeros when it is not there yet.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn velocity<'a>(&self, slot: &'a mut Option<Tensor>, shape: (usize, usize)) -> Result<&'a mut Tensor> {
        if slot.is_none() {
            *slot = Some(self.zeros(shape.0, shape.1)?);
        }
        slot.as_mut().ok_or_else(|| Error::shape("velocity: no tensor"))
    }

    /// Sum of squares of a tensor.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sum_of_squares(&self, tensor: &Tensor) -> Result<f64> {
        match self {
            Device::Cpu(cpu) => Ok(ops::sum_of_squares(cpu, tensor.cpu()?)),
        }
    }
}
