//! NVIDIA devices: what is there. The library is loaded at run time, so one binary runs with and without a GPU.

pub mod probe;
