//! The operations that a device offers to the network. The SwiGLU implementations bring kernels of their own.
//!
//! | module | what it holds |
//! |---|---|
//! | this one | which devices there are; tensors on them |
//! | [`images`] | images, batches, and what is counted over a batch |
//! | [`network`] | products, stem, head and loss, SGD |
//! | [`precision`], [`sgd`] | the numbers of the products; the rule of the optimiser |
//! | [`cpu`], [`cuda`] | how each device does it |

pub mod cpu;
pub mod cuda;
pub mod images;
pub mod network;
pub mod precision;
pub mod sgd;

pub use images::{Batch, Images, Rows, Tally};
pub use precision::Precision;
pub use sgd::SgdStep;

use crate::{
    Error, Result,
    tensor::{AlignedVec, Param, Storage, Tensor},
};
use cpu::Cpu;
use cuda::{Buffer, Cuda, Element};
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

    /// A tensor of fp32 zeros: parameters, logits, velocities.
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

    /// [`Device::activations`] for the gradient of a linear layer's output: with room for it the other way round, where kernels want it so.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn linear_gradient(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Device::Cpu(_) => self.zeros(rows, cols),
            Device::Cuda(cuda) => Ok(Tensor::on_cuda(rows, cols, cuda.gradient_buffer(rows, cols)?)),
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
                Buffer { memory, element: Element::F32, .. } => memory.write(values)?,
                Buffer { memory, element: Element::Bf16, .. } => {
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
                Buffer { memory, element: Element::F32, .. } => memory.read(tensor.len()),
                Buffer { memory, element: Element::Bf16, .. } => {
                    Ok(memory.read::<u16>(tensor.len())?.into_iter().map(from_bf16).collect())
                }
            },
        }
    }
}
