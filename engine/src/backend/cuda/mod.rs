//! NVIDIA devices: what is there, and the kernels. The library is loaded at run time, so one binary runs with and without
//! a GPU.
//!
//! The kernels' text runs on the CPU as well, where `tests` compare it with f64 and with the CPU backend.

pub mod answers;
pub mod arrays;
pub mod backend;
pub mod built;
pub mod device;
pub mod forward;
pub mod gpu;
pub mod graphs;
pub mod kernels;
pub mod library;
pub mod nccl;
pub mod nvrtc;
pub mod ops;
pub mod plan;
pub mod probe;
pub mod resources;
pub mod ring;
#[cfg(test)]
mod tests;
pub mod weights;
