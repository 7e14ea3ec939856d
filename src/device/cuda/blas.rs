//! cuBLAS: the library products.

use std::{ffi::c_void, sync::Arc};

use cudarc::cublas::{
    result::{self, CublasError},
    sys as blas,
};

use super::{
    Element,
    context::{Context, Memory},
    library::Library,
};
use crate::{
    Error, Kind, Result,
    device::{Layout, Precision},
};

/// NVIDIA's advice for Hopper; other generations need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle on the context's stream.
#[derive(Debug)]
pub struct Blas {
    handle: blas::cublasHandle_t,
    /// One workspace for the handle's life: no allocation inside a product, and the same result each time.
    _workspace: Memory,
    context: Arc<Context>,
}

// SAFETY: the handle is used through `&self` from one thread at a time: `Cuda` locks around it.
unsafe impl Send for Blas {}

/// An operand on the device.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Its address.
    pub pointer: u64,
    /// Its elements.
    pub element: Element,
    /// Rows, columns.
    pub shape: (usize, usize),
}

impl Operand {
    fn kind(self) -> blas::cudaDataType {
        match self.element {
            Element::F32 => blas::cudaDataType::CUDA_R_32F,
            Element::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        }
    }
}

impl Blas {
    /// Loads cuBLAS.
    ///
    /// # Errors
    /// [`Kind::Device`] when it is not installed or does not start.
    pub fn new(context: &Arc<Context>) -> Result<Blas> {
        Library::Cublas.load()?;
        context.bind()?;
        let workspace = context.allocate(WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(|cause| failed("start", cause))?;
        let blas = Blas { handle, _workspace: workspace, context: context.clone() };
        // SAFETY: handle, stream and workspace live as long as `blas`; the streams of both APIs are one type.
        unsafe {
            result::set_stream(handle, context.stream().cast()).map_err(|cause| failed("take a stream", cause))?;
            blas::cublasSetWorkspace_v2(handle, blas._workspace.pointer() as *mut c_void, WORKSPACE_BYTES)
                .result()
                .map_err(|cause| failed("take a workspace", cause))?;
        }
        Ok(blas)
    }

    /// c = op(a, b) + beta c, row-major. With (M, N) = c's shape and K from the operands.
    ///
    /// # Errors
    /// When cuBLAS refuses.
    ///
    /// # Safety
    /// The shapes fit each other by `layout`, and the addresses are good for them.
    pub unsafe fn gemm(
        &self,
        layout: Layout,
        precision: Precision,
        (a, b): (Operand, Operand),
        beta: f32,
        c: Operand,
    ) -> Result<()> {
        use blas::{
            cublasComputeType_t as Compute, cublasOperation_t::CUBLAS_OP_N as N, cublasOperation_t::CUBLAS_OP_T as T,
        };
        let (m, n) = c.shape;
        // cuBLAS is column-major: it computes c^T = b^T a^T, of which each matrix is ours read without a transposition.
        let (op_b, op_a, k) = match layout {
            Layout::Nt => (T, N, a.shape.1),
            Layout::Nn => (N, N, a.shape.1),
            Layout::Tn => (N, T, a.shape.0),
        };
        let compute = match precision {
            Precision::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            // fp32 without tensor cores: cuBLAS uses TF32 only where it is asked to, and emulates fp32 on no GPU before Blackwell.
            Precision::Fp32 | Precision::Fp32Emulated | Precision::Bf16 => Compute::CUBLAS_COMPUTE_32F,
        };
        let size = |value: usize| {
            i32::try_from(value).map_err(|_| Error::shape(format!("gemm: {value} is too large for cuBLAS")))
        };
        let (m, n, k) = (size(m)?, size(n)?, size(k)?);
        let (lda, ldb) = (size(a.shape.1)?, size(b.shape.1)?);
        let alpha = 1.0_f32;
        self.context.bind()?;
        // SAFETY: the caller vouches for shapes and addresses; alpha and beta are read before the call returns.
        unsafe {
            result::gemm_ex(
                self.handle,
                op_b,
                op_a,
                n,
                m,
                k,
                (&raw const alpha).cast(),
                b.pointer as *const c_void,
                b.kind(),
                ldb,
                a.pointer as *const c_void,
                a.kind(),
                lda,
                (&raw const beta).cast(),
                c.pointer as *mut c_void,
                c.kind(),
                n,
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|cause| failed(&format!("multiply ({m}, {k}) and ({k}, {n})"), cause))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: the handle was made once, in `new`, and nothing of it is under way. A failure has nobody to hear it.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

fn failed(doing: &str, cause: CublasError) -> Error {
    Error::new(Kind::Device, format!("cuBLAS cannot {doing}"))
        .hint("mnist-swiglu doctor shows which cuBLAS is used; pip install --upgrade nvidia-cublas brings another")
        .because(cause)
}
