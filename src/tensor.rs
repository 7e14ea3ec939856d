//! The tensor: a shape, and storage on a device. Always two-dimensional and row-major; a vector is one row.

use crate::{Error, Result, device::cuda::Buffer};

/// Numbers of a tensor, where they live.
#[derive(Debug)]
pub enum Storage {
    /// In main memory.
    Cpu(AlignedVec),
    /// On an NVIDIA GPU.
    Cuda(Buffer),
}

/// A row-major matrix of f32 on a device.
///
/// It has room for `capacity` rows and shows the first `rows` of them, so that the buffers of a training step are
/// allocated once and serve the ragged last batch too.
#[derive(Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    capacity: usize,
    storage: Storage,
}

impl Tensor {
    pub(crate) fn from_storage(rows: usize, cols: usize, storage: Storage) -> Self {
        Tensor { rows, cols, capacity: rows, storage }
    }

    pub(crate) fn on_cuda(rows: usize, cols: usize, buffer: Buffer) -> Self {
        Tensor::from_storage(rows, cols, Storage::Cuda(buffer))
    }

    /// Rows shown.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Elements shown.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether no element is shown.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows the first `rows` rows.
    ///
    /// # Errors
    /// When there is no room for so many.
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        if rows > self.capacity {
            let (capacity, cols) = (self.capacity, self.cols);
            return Err(Error::shape(format!("a tensor with room for {capacity} x {cols} cannot show {rows} rows")));
        }
        self.rows = rows;
        Ok(())
    }

    /// The elements shown, in main memory.
    ///
    /// # Errors
    /// When the tensor lives on another device.
    pub fn cpu(&self) -> Result<&[f32]> {
        match &self.storage {
            Storage::Cpu(values) => Ok(&values.as_slice()[..self.rows * self.cols]),
            Storage::Cuda(_) => Err(elsewhere("a GPU", "main memory")),
        }
    }

    /// The elements shown, in main memory, to be written.
    ///
    /// # Errors
    /// When the tensor lives on another device.
    pub fn cpu_mut(&mut self) -> Result<&mut [f32]> {
        match &mut self.storage {
            Storage::Cpu(values) => Ok(&mut values.as_mut_slice()[..self.rows * self.cols]),
            Storage::Cuda(_) => Err(elsewhere("a GPU", "main memory")),
        }
    }

    /// The elements on the GPU; kernels write through it as well, in the order of the stream.
    ///
    /// # Errors
    /// When the tensor lives on another device.
    pub fn cuda(&self) -> Result<&Buffer> {
        match &self.storage {
            Storage::Cuda(buffer) => Ok(buffer),
            Storage::Cpu(_) => Err(elsewhere("main memory", "a GPU")),
        }
    }

    /// What a kernel wrote of it the other way round will not be read.
    pub fn forget_along(&self) {
        if let Storage::Cuda(Buffer { along: Some(along), .. }) = &self.storage {
            let _ = along.take();
        }
    }

    /// Checks the shape, for operations that are about to read or write the tensor.
    ///
    /// # Errors
    /// Names the operation and the operand, the shape found and the shape wanted.
    pub fn expect(&self, op: &str, operand: &str, rows: usize, cols: usize) -> Result<()> {
        if self.shape() == (rows, cols) {
            return Ok(());
        }
        Err(Error::shape(format!("{op}: {operand} is {} x {}, but should be {rows} x {cols}", self.rows, self.cols)))
    }
}

fn elsewhere(is: &str, wanted: &str) -> Error {
    Error::shape(format!("the tensor lives in {is}, and the operation reads it in {wanted}"))
}

/// A weight or bias with what training keeps beside it.
#[derive(Debug)]
pub struct Param {
    /// The weight: (out, in), or (1, out) for a bias.
    pub value: Tensor,
    /// Momentum of SGD, of the same shape; absent until the parameter is trained.
    pub velocity: Option<Tensor>,
    /// Gradient, of the same shape; absent where none is kept (frozen, or applied in the kernel that makes it). Where `copy` is
    /// bf16 it is bf16 too, that of the head excepted.
    pub grad: Option<Tensor>,
    /// What products read where they do not read `value` itself: the weight in bf16. Whoever changes `value` changes it too.
    pub copy: Option<Tensor>,
    /// Weight decay applies (not to biases).
    pub decays: bool,
}

impl Param {
    /// A parameter without gradient and velocity.
    pub fn new(value: Tensor, decays: bool) -> Self {
        Param { value, velocity: None, grad: None, copy: None, decays }
    }

    /// What products read.
    pub fn operand(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or(&self.value)
    }
}

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of f32 that begins at a cache line, so that no vector load straddles two.
#[derive(Debug, Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedVec {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        AlignedVec { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// Makes room for at least `len` elements; what was there is kept, what is new is zero.
    pub fn grow(&mut self, len: usize) {
        if len > self.len {
            self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
            self.len = len;
        }
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `Line` is sixteen f32 without padding (64 bytes, align 64), and `len <= 16 * lines.len()`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }
}
