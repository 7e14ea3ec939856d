//! The operations that a device offers to the network. The SwiGLU implementations bring kernels of their own.

pub mod cpu;
pub mod cuda;
pub mod precision;

pub use precision::Precision;

use crate::{
    Error, Result,
    data::{CLASSES, PIXELS, Split},
    tensor::{AlignedVec, Param, Storage, Tensor},
};
use cpu::{
    Cpu,
    gemm::{View, gemm},
    linear::linear,
    ops,
};
use cuda::{Buffer, Cuda, Element, context::Memory};
use precision::{from_bf16, to_bf16};

/// A place where tensors live and products are computed. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Device {
    /// Main memory, and every core.
    Cpu(Cpu),
    /// An NVIDIA GPU, computing in one precision.
    Cuda(Cuda),
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
    /// The factor is the one that [`Device::clip`] left on the device, and `scale` is not read.
    pub device_scale: bool,
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
    labels: Labels,
}

#[derive(Debug)]
enum Labels {
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
    /// The device that `name` asks for (`auto`, `cpu`, `cuda`, `cuda:N`), and one line that says which it is and why.
    ///
    /// # Errors
    /// When there is no such device. `cuda` never falls back to the CPU; `auto` does, and says why.
    pub fn open(name: &str, threads: Option<usize>) -> Result<(Device, String)> {
        let ordinal = match name {
            "cpu" => return Device::open_cpu(threads, "asked for"),
            "auto" => {
                return match Cuda::open(0) {
                    Ok(cuda) => Device::on_gpu(cuda, "found"),
                    Err(_) if !cuda::driver::Driver::is_installed() => {
                        Device::open_cpu(threads, "no NVIDIA driver found")
                    }
                    // What to do about it is `doctor`'s to say.
                    Err(error) => Device::open_cpu(threads, &format!("no GPU to use: {error}")),
                };
            }
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok()),
        };
        match ordinal {
            Some(ordinal) => Device::on_gpu(Cuda::open(ordinal)?, "asked for"),
            None => Err(Error::usage(format!("--device {name}: no such device"))
                .hint("the choices are auto, cpu, cuda and cuda:N, N being a number that mnist-swiglu doctor shows")),
        }
    }

    fn open_cpu(threads: Option<usize>, why: &str) -> Result<(Device, String)> {
        let cpu = Cpu::new(threads)?;
        let line = format!("cpu ({why}; {} threads, {})", cpu.threads(), cpu.isa().name());
        Ok((Device::Cpu(cpu), line))
    }

    fn on_gpu(cuda: Cuda, why: &str) -> Result<(Device, String)> {
        let gpu = cuda.context().gpu();
        let (major, minor) = gpu.capability;
        let line = format!("cuda:{} ({why}; {}, compute capability {major}.{minor})", gpu.ordinal, gpu.name);
        Ok((Device::Cuda(cuda), line))
    }

    /// The same device, computing in `precision`. A CPU computes in fp32 alone: [`Precision::check`] refuses the others.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Device {
        match self {
            Device::Cpu(cpu) => Device::Cpu(cpu.clone()),
            Device::Cuda(cuda) => Device::Cuda(cuda.with_precision(precision)),
        }
    }

    /// Its name in records: `cpu`, `cuda:0`.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(_) => "cpu".into(),
            Device::Cuda(cuda) => format!("cuda:{}", cuda.context().gpu().ordinal),
        }
    }

    /// The name of the processor, where the system tells.
    pub fn model_name(&self) -> Option<String> {
        match self {
            Device::Cpu(_) => cpu::model_name(),
            Device::Cuda(cuda) => Some(cuda.context().gpu().name.clone()),
        }
    }

    /// Threads that compute, where that means something.
    pub fn threads(&self) -> Option<usize> {
        match self {
            Device::Cpu(cpu) => Some(cpu.threads()),
            Device::Cuda(_) => None,
        }
    }

    /// Runs `work` where the device's threads are: on the CPU, inside its pool.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Device::Cpu(cpu) => cpu.install(work),
            Device::Cuda(_) => work(),
        }
    }

    /// Images of a forward pass when a split of `images` is evaluated.
    pub fn evaluation_batch(&self, images: usize) -> usize {
        match self {
            Device::Cpu(_) => images.min(1000),
            // As many as MNIST's test images: few launches, and room enough on any GPU.
            Device::Cuda(_) => images.min(10_000),
        }
    }

    /// A tensor of fp32 zeros: parameters, logits, gradients of weights.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Device::Cpu(_) => Ok(Tensor::from_storage(rows, cols, Storage::Cpu(AlignedVec::zeros(rows * cols)))),
            Device::Cuda(cuda) => Ok(Tensor::on_cuda(rows, cols, cuda.buffer(rows * cols, Element::F32)?)),
        }
    }

    /// A tensor of zeros for activations, which lower precisions keep in fewer bytes.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn activations(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Device::Cpu(_) => self.zeros(rows, cols),
            Device::Cuda(cuda) => Ok(Tensor::on_cuda(rows, cols, cuda.buffer(rows * cols, cuda.element())?)),
        }
    }

    /// A parameter of zeros, with the copy that products read where the precision needs one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn param(&self, rows: usize, cols: usize, decays: bool) -> Result<Param> {
        let mut param = Param::new(self.zeros(rows, cols)?, decays);
        if let Device::Cuda(cuda) = self
            && cuda.element() == Element::Bf16
            && decays
        {
            param.copy = Some(self.activations(rows, cols)?);
        }
        Ok(param)
    }

    /// Replaces a parameter's weights, and the copy that products read.
    ///
    /// # Errors
    /// When the number of values is another.
    pub fn write_param(&self, param: &mut Param, values: &[f32]) -> Result<()> {
        self.write(&mut param.value, values)?;
        param.copy.as_mut().map_or(Ok(()), |copy| self.write(copy, values))
    }

    /// Activations with these values, rounded to what they are kept in.
    ///
    /// # Errors
    /// When their number is not rows x cols.
    pub fn upload_activations(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Tensor> {
        let mut tensor = self.activations(rows, cols)?;
        self.write(&mut tensor, values)?;
        Ok(tensor)
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
            Device::Cuda(_) => match tensor.cuda()? {
                Buffer { memory, element: Element::F32 } => memory.write(values)?,
                Buffer { memory, element: Element::Bf16 } => {
                    memory.write(&values.iter().copied().map(to_bf16).collect::<Vec<u16>>())?;
                }
            },
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
            Device::Cuda(_) => match tensor.cuda()? {
                Buffer { memory, element: Element::F32 } => memory.read(tensor.len()),
                Buffer { memory, element: Element::Bf16 } => {
                    Ok(memory.read::<u16>(tensor.len())?.into_iter().map(from_bf16).collect())
                }
            },
        }
    }

    /// Puts a split where the device reads it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn images(&self, split: Split) -> Result<Images> {
        let count = split.labels.len();
        let storage = match self {
            Device::Cpu(_) => ImageStorage::Cpu { images: split.images, labels: split.labels },
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
        Ok(Batch { x: self.activations(batch, PIXELS)?, labels })
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
                cuda.gather((images, labels), rows, &mut into.x, labels_out)
            }
            _ => Err(Error::shape("gather: the images, the batch and the device are not of one kind")),
        }
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
            Device::Cuda(cuda) => {
                let (k, rows) = if layout == Layout::Tn { a.shape() } else { (a.cols(), a.rows()) };
                let (b_k, cols) = if layout == Layout::Nt { (b.cols(), b.rows()) } else { b.shape() };
                if k != b_k {
                    return Err(Error::shape(format!(
                        "gemm {layout:?}: a is {:?} and b is {:?}: they share no K",
                        a.shape(),
                        b.shape()
                    )));
                }
                c.expect("gemm", "c", rows, cols)?;
                cuda.gemm(layout, a, b, beta, c)
            }
        }
    }

    /// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear(&self, x: &Tensor, w: &Param, b: &Param, y: &mut Tensor) -> Result<()> {
        let (outputs, inputs) = w.value.shape();
        x.expect("linear", "x", x.rows(), inputs)?;
        b.value.expect("linear", "bias", 1, outputs)?;
        y.expect("linear", "y", x.rows(), outputs)?;
        match self {
            Device::Cpu(cpu) => {
                linear(cpu, x.cpu()?, w.value.cpu()?, b.value.cpu()?, y.cpu_mut()?);
                Ok(())
            }
            Device::Cuda(cuda) => {
                self.gemm(Layout::Nt, x, w.operand(), 0.0, y)?;
                cuda.add_bias(&b.value, y)
            }
        }
    }

    /// dW = dy^T x: (N, B) @ (B, K) -> (N, K), and db = column sums of dy: into their buffers, and, when a step is given,
    /// from there into the weights.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        (w, b): (&mut Param, &mut Param),
        step: Option<&SgdStep>,
    ) -> Result<()> {
        dy.expect("linear backward", "dy", x.rows(), w.value.rows())?;
        x.expect("linear backward", "x", dy.rows(), w.value.cols())?;
        let shape = w.value.shape();
        self.gemm(Layout::Tn, dy, x, 0.0, self.velocity(&mut w.grad, shape)?)?;
        if let Device::Cuda(cuda) = self {
            cuda.bias_gradient(dy, b, step)?;
            return step.map_or(Ok(()), |step| cuda.sgd(step, w));
        }
        if let Device::Cpu(cpu) = self {
            let shape = b.value.shape();
            ops::column_sums(cpu, dy.cpu()?, self.velocity(&mut b.grad, shape)?.cpu_mut()?);
        }
        let Some(step) = step else { return Ok(()) };
        self.sgd(step, w)?;
        self.sgd(step, b)
    }

    /// logits = z W^T + b for ten classes: (B, H) @ (H, 10) -> (B, 10). A product would waste most of its tile.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head(&self, z: &Tensor, w: &Param, b: &Param, logits: &mut Tensor) -> Result<()> {
        w.value.expect("head", "weight", CLASSES, z.cols())?;
        b.value.expect("head", "bias", 1, CLASSES)?;
        logits.expect("head", "logits", z.rows(), CLASSES)?;
        match self {
            Device::Cpu(cpu) => {
                ops::head_forward(cpu, z.cpu()?, w.value.cpu()?, b.value.cpu()?, logits.cpu_mut()?);
                Ok(())
            }
            Device::Cuda(cuda) => cuda.head_forward(z, &w.value, &b.value, logits),
        }
    }

    /// The head, softmax cross-entropy over its logits, and dlogits of the mean loss when wanted. Losses and hits are added
    /// to the tally; in a step that is being captured they go to its log instead. A GPU writes no logits: it is one kernel.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head_loss(
        &self,
        z: &Tensor,
        (w, b): (&Param, &Param),
        batch: &Batch,
        logits: &mut Tensor,
        dlogits: Option<&mut Tensor>,
        tally: &mut Tally,
    ) -> Result<()> {
        z.expect("head loss", "z", batch.x.rows(), w.value.cols())?;
        if let Some(dlogits) = &dlogits {
            dlogits.expect("head loss", "dlogits", z.rows(), CLASSES)?;
        }
        match (self, &batch.labels) {
            (Device::Cpu(_), Labels::Cpu(labels)) => {
                self.head(z, w, b, logits)?;
                let dlogits = dlogits.map(Tensor::cpu_mut).transpose()?;
                ops::softmax_cross_entropy(logits.cpu()?, labels, dlogits, &mut tally.loss_sum, &mut tally.correct);
                tally.count += labels.len() as u64;
                Ok(())
            }
            (Device::Cuda(cuda), Labels::Cuda(labels)) => {
                cuda.head_loss(z, (&w.value, &b.value), labels, dlogits, tally)
            }
            _ => Err(Error::shape("head loss: the batch is on another device")),
        }
    }

    /// dz = dlogits W: (B, 10) @ (10, H) -> (B, H); dW = dlogits^T z: (10, B) @ (B, H) -> (10, H) and db: into their
    /// buffers or, when a step is given, into the weights.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head_backward(
        &self,
        z: &Tensor,
        (w, b): (&mut Param, &mut Param),
        dlogits: &Tensor,
        dz: &mut Tensor,
        step: Option<&SgdStep>,
    ) -> Result<()> {
        dlogits.expect("head backward", "dlogits", z.rows(), CLASSES)?;
        dz.expect("head backward", "dz", z.rows(), z.cols())?;
        w.value.expect("head backward", "weight", CLASSES, z.cols())?;
        match self {
            Device::Cpu(cpu) => {
                ops::head_backward_dx(cpu, dlogits.cpu()?, w.value.cpu()?, dz.cpu_mut()?);
                let (w_shape, b_shape) = (w.value.shape(), b.value.shape());
                let dw = self.velocity(&mut w.grad, w_shape)?.cpu_mut()?;
                let db = self.velocity(&mut b.grad, b_shape)?.cpu_mut()?;
                ops::head_backward_dw(cpu, dlogits.cpu()?, z.cpu()?, dw, db);
                let Some(step) = step else { return Ok(()) };
                self.sgd(step, w)?;
                self.sgd(step, b)
            }
            Device::Cuda(cuda) => cuda.head_backward(z, (w, b), dlogits, dz, step),
        }
    }

    /// One step of SGD on a parameter that has a gradient; a parameter without one is left alone.
    ///
    /// # Errors
    /// When the velocity cannot be made.
    pub fn sgd(&self, step: &SgdStep, param: &mut Param) -> Result<()> {
        match self {
            Device::Cpu(cpu) => {
                let Param { value, velocity, grad: Some(grad), decays, .. } = param else { return Ok(()) };
                let velocity = self.velocity(velocity, value.shape())?;
                ops::sgd(cpu, step, *decays, value.cpu_mut()?, velocity.cpu_mut()?, grad.cpu()?);
                Ok(())
            }
            Device::Cuda(cuda) => cuda.sgd(step, param),
        }
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

    /// Clips the norm of all gradients together to `bound`, as PyTorch does: `step` is changed to scale them. The norm,
    /// where it is known at once (a captured step leaves it on the device).
    ///
    /// # Errors
    /// When the device fails.
    pub fn clip(&self, grads: &[&Tensor], bound: f32, step: &mut SgdStep) -> Result<Option<f64>> {
        match self {
            Device::Cpu(cpu) => {
                let mut sum = 0.0;
                for grad in grads {
                    sum += ops::sum_of_squares(cpu, grad.cpu()?);
                }
                let norm = sum.sqrt();
                step.scale = (f64::from(bound) / (norm + 1e-6)).min(1.0) as f32;
                Ok(Some(norm))
            }
            Device::Cuda(cuda) => {
                step.device_scale = true;
                cuda.clip(grads, bound)
            }
        }
    }
}
