//! The kernels' own text, compiled as C++ and run on the CPU, against f64 and against the CPU's sampler.
//!
//! Shapes, batches and the order of threads are drawn from seeds. All memory that a kernel does not have to read begins as
//! NaN and has guards around it, so reading or writing where it should not shows. With `KERNELS_ON=gpu` all of it runs on
//! a GPU.

#![expect(unsafe_code, reason = "kernels are called through their C interface")]
#![expect(clippy::float_cmp, reason = "values that are only moved are exact")]

mod attention;
mod cpu_run;
mod device;
mod fp8;
mod logits;
mod memory;
mod model;
mod on_gpu;
mod parallel;
mod products;
mod rows;
