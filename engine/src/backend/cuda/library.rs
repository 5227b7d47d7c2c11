//! Products of many rows by cuBLASLt, with algorithms chosen once for each shape and kept.
//!
//! The library works on columns: `y = x·wᵀ` of rows is, of columns, `Y = Wᵀ·X` with W `[k, n]`, X `[k, m]`, Y `[n, m]`. Its
//! search for an algorithm takes longer than a small product, so it is asked once for each weight's shape and each power
//! of two of rows; what it proposes is timed on the product at hand, and the fastest stays.

#![expect(unsafe_code, reason = "the library is called through its C interface")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::{result, sys};
use cudarc::driver;

use super::device::{Activation, Product};
use super::kernels::Address;

/// What the library may use beside the matrices; what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Algorithms that are timed for a shape.
const CANDIDATES: usize = 8;

/// A library on one stream.
#[derive(Debug)]
pub struct Library {
    handle: sys::cublasLtHandle_t,
    stream: driver::sys::CUstream,
    workspace: driver::sys::CUdeviceptr,
    element: sys::cudaDataType,
    algorithms: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
}

/// What an algorithm is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    n: u32,
    k: u32,
    y_stride: u32,
    wide: bool,
    /// Rows up to the next power of two.
    rows: u32,
}

// SAFETY: the handle and the stream are used by one thread at a time, the one that owns this.
unsafe impl Send for Library {}

/// One product's description; freed when it is dropped.
struct Description {
    matmul: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

/// Where its matrices are.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub y: Address,
    pub x: Address,
    pub weight: Address,
}

impl Library {
    /// Makes a handle. The stream's context must be current, and must stay for as long as this lives.
    ///
    /// # Errors
    /// When the library is not there, or has no memory.
    pub fn new(stream: driver::sys::CUstream, activation: Activation) -> Result<Self, String> {
        // SAFETY: only NVIDIA's library is loaded, by its own name.
        if !unsafe { sys::is_culib_present() } {
            return Err("the cuBLASLt library is not there".to_owned());
        }
        // SAFETY: memory of this context, which is never given back.
        let workspace = unsafe { driver::result::malloc_sync(WORKSPACE_BYTES) };
        Ok(Self {
            handle: result::create_handle().map_err(|error| error.to_string())?,
            stream,
            workspace: workspace.map_err(|error| error.to_string())?,
            element: match activation {
                Activation::Bf16 => sys::cudaDataType::CUDA_R_16BF,
                Activation::F16 => sys::cudaDataType::CUDA_R_16F,
            },
            algorithms: HashMap::new(),
        })
    }

    /// Begins a product.
    ///
    /// # Errors
    /// When the library has no algorithm for it, or fails.
    pub fn multiply(&mut self, product: Product, at: Places) -> Result<(), String> {
        let description = self.describe(product).map_err(|error| error.to_string())?;
        let key = Key {
            n: product.n,
            k: product.k,
            y_stride: product.y_stride,
            wide: product.wide,
            rows: product.m.next_power_of_two(),
        };
        // Not every algorithm takes all numbers of rows that round up to the same.
        if let Some(algorithm) = self.algorithms.get(&key)
            && self.run(&description, at, algorithm).is_ok()
        {
            return Ok(());
        }
        let algorithm = self.fastest(&description, at)?;
        self.algorithms.entry(key).or_insert(algorithm);
        self.run(&description, at, &algorithm)
    }

    fn describe(&self, product: Product) -> Result<Description, result::CublasError> {
        let Product {
            m,
            n,
            k,
            y_stride,
            wide,
        } = product;
        let [m, n, k] = [m, n, k].map(u64::from);
        let wide = if wide {
            sys::cudaDataType::CUDA_R_32F
        } else {
            self.element
        };
        let layout = |element, rows, columns, stride: u64| {
            result::create_matrix_layout(element, rows, columns, stride as i64)
        };
        let description = Description {
            matmul: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
            )?,
            weight: layout(self.element, k, n, k)?,
            x: layout(self.element, k, m, k)?,
            y: layout(wide, n, m, y_stride.into())?,
        };
        // CUBLAS_OP_T.
        let transpose = 1_i32;
        // SAFETY: the description was just made, and the attribute is of that size.
        unsafe {
            result::set_matmul_desc_attribute(
                description.matmul,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                ptr::from_ref(&transpose).cast(),
                size_of_val(&transpose),
            )?;
        }
        Ok(description)
    }

    /// Of what the library proposes, what takes the least time here.
    fn fastest(
        &self,
        description: &Description,
        at: Places,
    ) -> Result<sys::cublasLtMatmulAlgo_t, String> {
        let mut best: Option<(f32, sys::cublasLtMatmulAlgo_t)> = None;
        for candidate in self
            .proposals(description)
            .map_err(|error| error.to_string())?
        {
            // Once to load what it needs, once to be timed.
            let took = self
                .run(description, at, &candidate)
                .and_then(|()| self.time(|| self.run(description, at, &candidate)));
            if let Ok(took) = took
                && best.is_none_or(|(best, _)| took < best)
            {
                best = Some((took, candidate));
            }
        }
        let none = || "cuBLASLt has no algorithm for this product".to_owned();
        best.map(|(_, algorithm)| algorithm).ok_or_else(none)
    }

    fn proposals(
        &self,
        description: &Description,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
        let preference = result::create_matmul_pref()?;
        let mut found = [const { std::mem::MaybeUninit::uninit() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: the preference was just made and its attribute is of that size; the description's parts live; as many
        // results are written as are counted, of at most as many as there is room for.
        let outcome = unsafe {
            let set = result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                ptr::from_ref(&WORKSPACE_BYTES).cast(),
                size_of::<usize>(),
            );
            let outcome = set.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    description.matmul,
                    description.weight,
                    description.x,
                    description.y,
                    description.y,
                    preference,
                    CANDIDATES as i32,
                    found.as_mut_ptr().cast(),
                    &raw mut count,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            outcome
        };
        outcome?;
        let found = found.into_iter().take(count.max(0) as usize);
        Ok(found
            .map(|result| {
                let result: std::mem::MaybeUninit<sys::cublasLtMatmulHeuristicResult_t> = result;
                // SAFETY: one of those that were written.
                unsafe { result.assume_init() }.algo
            })
            .collect())
    }

    fn run(
        &self,
        description: &Description,
        at: Places,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), String> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |address: Address| address as *mut c_void;
        // SAFETY: all descriptions live until it returns; the matrices are the caller's word, and stay until the stream
        // has come to them, for the device frees no memory that work is under way in.
        unsafe {
            result::matmul(
                self.handle,
                description.matmul,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&zero).cast(),
                pointer(at.weight),
                description.weight,
                pointer(at.x),
                description.x,
                pointer(at.y),
                description.y,
                pointer(at.y),
                description.y,
                algorithm,
                pointer(self.workspace),
                WORKSPACE_BYTES,
                self.stream.cast(),
            )
        }
        .map_err(|error| error.to_string())
    }

    /// Milliseconds that work on the stream takes.
    fn time(&self, work: impl FnOnce() -> Result<(), String>) -> Result<f32, String> {
        use driver::result::event;
        let create = || event::create(driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
        let said = |error: driver::result::DriverError| error.to_string();
        let (begin, end) = (create().map_err(said)?, create().map_err(said)?);
        // SAFETY: the events were just made, are recorded on a stream of the same context, and destroyed once.
        unsafe {
            let measure = || -> Result<f32, String> {
                event::record(begin, self.stream).map_err(said)?;
                work()?;
                event::record(end, self.stream).map_err(said)?;
                event::synchronize(end).map_err(said)?;
                event::elapsed(begin, end).map_err(said)
            };
            let took = measure();
            let _ = (event::destroy(begin), event::destroy(end));
            took
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: they were made with it, and are not used again.
        unsafe {
            let _ = result::destroy_matmul_desc(self.matmul);
            for layout in [self.weight, self.x, self.y] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}
