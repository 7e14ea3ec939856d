//! The operations of the network on a GPU: what [`Device`](crate::device::Device) offers, as launches. Shapes were checked
//! there. kernels/README.md lists what each kernel takes; here stands what it is given.

use super::{
    Cuda, Element,
    blas::{Blas, Operand},
    context::Memory,
    epoch::Place,
    lock,
    modules::{
        Arg::{Count, Float, Int, Pointer},
        Grid,
    },
};
use crate::{
    Error, Kind, Result,
    data::{PIXEL_SCALE, PIXEL_SHIFT, PIXELS},
    device::{Layout, Rows, SgdStep},
    tensor::{Param, Tensor},
};

/// Partial sums of a tensor's squares: enough blocks to fill any chip.
const PARTIALS: usize = 1024;

pub(super) fn grid(blocks: usize, threads: usize) -> Grid {
    Grid::new(blocks, threads, 0)
}

/// A dimension, as kernels take it.
pub(crate) fn int(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::shape(format!("{value} is too large for a kernel")))
}

fn operand(tensor: &Tensor) -> Result<Operand> {
    let buffer = tensor.cuda()?;
    Ok(Operand { pointer: buffer.memory.pointer(), element: buffer.element, shape: tensor.shape() })
}

pub(crate) fn pointer(tensor: &Tensor) -> Result<u64> {
    Ok(tensor.cuda()?.memory.pointer())
}

/// The kernel that reads a gradient of these elements.
fn for_element(of_f32: &'static str, of_bf16: &'static str, grad: &Tensor) -> Result<&'static str> {
    Ok(match grad.cuda()?.element {
        Element::F32 => of_f32,
        Element::Bf16 => of_bf16,
    })
}

impl Cuda {
    /// Whether rows of so many elements, of activations and of fp32 parameters both, all start on 16 bytes.
    pub fn is_aligned(&self, cols: usize) -> bool {
        cols.is_multiple_of(16 / self.element().bytes())
    }

    /// That a tensor holds this precision's activations: kernels trust it.
    ///
    /// # Errors
    /// When it holds others.
    pub(crate) fn expect_activation(&self, op: &str, operand: &str, tensor: &Tensor) -> Result<u64> {
        let buffer = tensor.cuda()?;
        if buffer.element == self.element() {
            return Ok(buffer.memory.pointer());
        }
        Err(Error::shape(format!(
            "{op}: {operand} holds {:?}, but {} computes on {:?}",
            buffer.element,
            self.precision().name(),
            self.element()
        )))
    }

    /// x and labels of the images that `rows` names, normalised; or, where the log of a captured step has its epoch laid out,
    /// nothing but the place where they are.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gather(
        &self,
        (images, labels): (&Memory, &Memory),
        rows: Rows<'_>,
        x: &mut Tensor,
        labels_out: &Memory,
    ) -> Result<Option<Place>> {
        let count = rows.count();
        let log = self.recording();
        if log.as_ref().is_some_and(|log| log.epoch().is_some()) {
            match rows {
                Rows::Next(_) => return Ok(Some(Place { first: 0, moves: true })),
                Rows::At { first, .. } => return Ok(Some(Place { first: first as i64, moves: false })),
                Rows::Listed(_) => {}
            }
        }
        let (order, step) = match (rows, log) {
            (Rows::Listed(rows), None) => {
                let order = self.scratch("order", rows.len() * 4)?;
                if !self.is_planning() {
                    self.upload_words(order, rows)?;
                }
                (order, 0)
            }
            (Rows::Next(_), Some(log)) => (log.order_pointer(), log.step_pointer()),
            (Rows::At { first, .. }, Some(log)) => (log.order_pointer() + first as u64 * 4, 0),
            (_, None) if self.is_planning() => (0, 0),
            (rows, _) => {
                return Err(Error::new(
                    Kind::Device,
                    format!("gather: {rows:?} does not fit what the device is doing"),
                ));
            }
        };
        let configuration = self.configuration("batch_gather.cu", true, &[]);
        let args = [
            Pointer(images.pointer()),
            Pointer(labels.pointer()),
            Pointer(order),
            Pointer(step),
            Pointer(self.expect_activation("gather", "x", x)?),
            Pointer(labels_out.pointer()),
            Int(int(count)?),
            Int(int(PIXELS)?),
            Float(PIXEL_SCALE),
            Float(PIXEL_SHIFT),
        ];
        let blocks = (count * PIXELS.div_ceil(4)).div_ceil(256);
        // SAFETY: the arguments are the kernel's; indices were checked (`Listed`) or are a permutation (the log's order).
        unsafe { self.launch(&configuration, "batch_gather", grid(blocks, 256), &args)? };
        Ok(None)
    }

    fn upload_words(&self, target: u64, words: &[u32]) -> Result<()> {
        let context = self.context();
        context.bind()?;
        // SAFETY: the scratch memory is as long; the source lives until the synchronisation.
        unsafe { cudarc::driver::result::memcpy_htod_async(target, words, context.stream()) }
            .map_err(|cause| context.failed("be copied to", cause))?;
        context.synchronize()
    }

    /// The library product c = op(a, b) + beta c.
    ///
    /// # Errors
    /// When cuBLAS refuses.
    pub fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, beta: f32, c: &mut Tensor) -> Result<()> {
        let (a, b, c) = (operand(a)?, operand(b)?, operand(c)?);
        // SAFETY: the shapes were checked by `Device::gemm`, and the tensors live on this device.
        unsafe { self.gemm_operands(layout, a, b, beta, c) }
    }

    /// The library product of parts of matrices, whose shapes the caller has checked.
    ///
    /// # Errors
    /// When cuBLAS refuses.
    ///
    /// # Safety
    /// As [`super::blas::Blas::gemm`].
    pub(crate) unsafe fn gemm_operands(
        &self,
        layout: Layout,
        a: Operand,
        b: Operand,
        beta: f32,
        c: Operand,
    ) -> Result<()> {
        let mut blas = lock(&self.shared.blas);
        // A plan starts it too: no later moment of a run has the time.
        let blas = match &mut *blas {
            Some(blas) => blas,
            none => none.insert(Blas::new(self.context())?),
        };
        if self.is_planning() {
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { blas.gemm(layout, self.precision(), (a, b), beta, c) }
    }

    /// y += bias, each row.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add_bias(&self, bias: &Tensor, y: &mut Tensor) -> Result<()> {
        let (rows, cols) = y.shape();
        let configuration = self.configuration("bias.cu", self.is_aligned(cols), &[]);
        let args = [
            Pointer(self.expect_activation("bias", "y", y)?),
            Pointer(pointer(bias)?),
            Int(int(rows)?),
            Int(int(cols)?),
        ];
        let blocks = (rows * cols.div_ceil(4)).div_ceil(256);
        // SAFETY: the arguments are the kernel's, and shapes were checked.
        unsafe { self.launch(&configuration, "bias_add", grid(blocks, 256), &args) }
    }

    /// Column sums of dy into the bias' gradient, or straight into a step on the bias.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bias_gradient(&self, dy: &Tensor, bias: &mut Param, step: Option<&SgdStep>) -> Result<()> {
        let (rows, cols) = dy.shape();
        let configuration = self.configuration("bias.cu", self.is_aligned(cols), &[]);
        let dy = Pointer(self.expect_activation("bias gradient", "dy", dy)?);
        let sizes = [Int(int(rows)?), Int(int(cols)?)];
        let launch = grid(cols.div_ceil(32), 1024);
        match step {
            Some(step) => {
                let step = step.for_param(bias.decays);
                let (value, velocity) = (pointer(&bias.value)?, pointer(self.velocity_of(bias)?)?);
                let args = [&[dy, Pointer(value), Pointer(velocity)], &self.sgd_args(&step)?[..], &sizes].concat();
                // SAFETY: the arguments are the kernel's, and shapes were checked.
                unsafe { self.launch(&configuration, "bias_gradient_sgd", launch, &args) }
            }
            None => {
                let grad = Pointer(pointer(self.grad_of(bias)?)?);
                let args = [&[dy, grad][..], &sizes].concat();
                // SAFETY: as above.
                unsafe { self.launch(&configuration, "bias_gradient", launch, &args) }
            }
        }
    }

    /// What every kernel that applies SGD takes: lr, scale, momentum, weight decay, Nesterov.
    pub(crate) fn sgd_args(&self, step: &SgdStep) -> Result<[super::modules::Arg; 5]> {
        let [rate, scale] = self.scalars(step)?;
        Ok([rate, scale, Float(step.momentum), Float(step.weight_decay), Int(i32::from(step.nesterov))])
    }

    /// The velocity of a parameter, made of zeros when it is not there yet.
    pub(crate) fn velocity_of<'a>(&self, param: &'a mut Param) -> Result<&'a Tensor> {
        Ok(self.beside(param.value.shape(), Element::F32, &mut param.velocity)?)
    }

    /// The gradient's buffer of a bias or of the head, whose kernels write fp32; made when it is first asked for.
    pub(crate) fn grad_of<'a>(&self, param: &'a mut Param) -> Result<&'a Tensor> {
        Ok(self.beside(param.value.shape(), Element::F32, &mut param.grad)?)
    }

    /// The gradient's buffer of a weight, made when it is first asked for: bf16 where products read a copy in bf16.
    pub(crate) fn weight_grad_of<'a>(&self, param: &'a mut Param) -> Result<&'a mut Tensor> {
        let element = param.copy.as_ref().map_or(Ok(Element::F32), |copy| Ok::<_, Error>(copy.cuda()?.element))?;
        self.beside(param.value.shape(), element, &mut param.grad)
    }

    fn beside<'a>(
        &self,
        (rows, cols): (usize, usize),
        element: Element,
        slot: &'a mut Option<Tensor>,
    ) -> Result<&'a mut Tensor> {
        if slot.is_none() {
            *slot = Some(Tensor::on_cuda(rows, cols, self.buffer(rows * cols, element)?));
        }
        slot.as_mut().ok_or_else(|| Error::shape("no tensor beside the parameter"))
    }

    /// One step of SGD over a whole parameter from its gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sgd(&self, step: &SgdStep, param: &mut Param) -> Result<()> {
        let Some(grad) = &param.grad else { return Ok(()) };
        let name = for_element("sgd_update", "sgd_update_bf16", grad)?;
        let (grad, count) = (pointer(grad)?, param.value.len());
        let step = step.for_param(param.decays);
        let velocity = pointer(self.velocity_of(param)?)?;
        let copy = param.copy.as_ref().map_or(Ok(0), pointer)?;
        let head = [Pointer(pointer(&param.value)?), Pointer(velocity), Pointer(grad), Pointer(copy)];
        let args = [&head[..], &self.sgd_args(&step)?, &[Count(count as u64)]].concat();
        let configuration = self.configuration("sgd.cu", true, &[]);
        // SAFETY: the arguments are the kernel's; all four are as long as the parameter.
        unsafe { self.launch(&configuration, name, grid(count.div_ceil(1024), 256), &args) }
    }

    /// Clips the norm of all gradients together to `bound`: the scale goes where the kernels of the step read it. The norm,
    /// when somebody can wait for it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clip(&self, grads: &[&Tensor], bound: f32) -> Result<Option<f64>> {
        let configuration = self.configuration("reduce.cu", true, &[]);
        let partials = self.scratch("partials", grads.len() * PARTIALS * 4)?;
        let mut used = 0;
        for grad in grads {
            let blocks = grad.len().div_ceil(4 * 256).clamp(1, PARTIALS);
            let name = for_element("sum_squares", "sum_squares_bf16", grad)?;
            let args = [Pointer(pointer(grad)?), Pointer(partials + used as u64 * 4), Count(grad.len() as u64)];
            // SAFETY: the arguments are the kernel's; each tensor has a stretch of partials of its own.
            unsafe { self.launch(&configuration, name, grid(blocks, 256), &args)? };
            used += blocks;
        }
        let norm = self.scratch("norm", 8)?;
        let scale = self.shared.scalars.pointer() + 4;
        let args = [Pointer(partials), Int(int(used)?), Float(bound), Pointer(norm), Pointer(scale)];
        // SAFETY: the arguments are the kernel's.
        unsafe { self.launch(&configuration, "clip_scale", grid(1, 256), &args)? };
        if !self.is_eager() {
            return Ok(None);
        }
        Ok(Some(f64::from(f32::from_bits(self.read_two_words(norm)?[0]))))
    }

    /// Two words of device memory, after all before them on the stream.
    pub(super) fn read_two_words(&self, source: u64) -> Result<[u32; 2]> {
        let context = self.context();
        context.bind()?;
        let mut words = [0_u32; 2];
        // SAFETY: the source has eight bytes; the target lives until the synchronisation.
        unsafe { cudarc::driver::result::memcpy_dtoh_async(&mut words, source, context.stream()) }
            .map_err(|cause| context.failed("be copied from", cause))?;
        context.synchronize()?;
        Ok(words)
    }
}
