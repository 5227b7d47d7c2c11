//! Which backend runs: said by a flag, or found out.
//!
//! `auto` is the CPU even where there is a GPU: nothing has been measured on one yet, and until then it is asked for by
//! name.

use tracing::info;

use super::cpu::{CpuBackend, CpuOptions};
use super::cuda::backend::{CudaBackend, CudaOptions};
use super::cuda::gpu::Gpu;
use super::cuda::probe::{Probed, probe};
use super::cuda::weights::activation;
use super::sim::SimBackend;
use super::{Backend, BackendError};
use crate::model::Model;

/// What `--backend` says.
#[derive(Debug)]
pub enum BackendChoice {
    /// The best that this build has for this machine.
    Auto,
    /// The CPU, without asking for devices.
    Cpu,
    /// A GPU.
    Cuda(CudaOptions),
    /// No device: the time that one would take.
    Sim(Box<SimBackend>),
}

/// Makes the chosen backend for `model`, with the given options of the CPU backend (a number stands for that many
/// threads), and logs in one line what runs and why.
///
/// # Errors
/// When the backend cannot start, or does not compute this model's shape.
pub fn select(
    choice: BackendChoice,
    model: &Model,
    cpu: impl Into<CpuOptions>,
) -> Result<Box<dyn Backend>, BackendError> {
    let cpu = cpu.into();
    let reason = match choice {
        BackendChoice::Sim(backend) => return Ok(selected(backend, "asked for")),
        BackendChoice::Cuda(options) => return Ok(selected(cuda(model, options)?, "asked for")),
        BackendChoice::Cpu => "asked for".to_owned(),
        BackendChoice::Auto => match probe() {
            Probed::Devices { count, name } => {
                format!("{count} CUDA device(s) ({name}) are there for --backend cuda")
            }
            none => without(none),
        },
    };
    let backend = CpuBackend::group(model, cpu)?;
    Ok(selected(backend, &reason))
}

/// Why there is no device.
fn without(probed: Probed) -> String {
    match probed {
        Probed::NoDriver => "no CUDA driver".to_owned(),
        Probed::NoDevice => "a CUDA driver, but no device".to_owned(),
        Probed::Failed(error) => format!("the CUDA driver does not work: {error}"),
        Probed::Devices { .. } => "a device".to_owned(),
    }
}

fn cuda(model: &Model, options: CudaOptions) -> Result<Box<dyn Backend>, BackendError> {
    let start = |reason: String| BackendError::Start {
        backend: "cuda",
        reason,
    };
    let ranks = options.ranks.max(1);
    match probe() {
        Probed::Devices { count, .. } if (count as usize) < ranks => {
            return Err(start(format!(
                "{ranks} ranks were asked for, each on a GPU of its own, and there are {count}"
            )));
        }
        Probed::Devices { .. } => {}
        none => return Err(start(without(none))),
    }
    let tensors = model.tensors().map_err(|error| start(error.to_string()))?;
    let activation = activation(&tensors);
    let gpus = match ranks {
        1 => Gpu::new(activation).map(|gpu| vec![gpu]),
        ranks => Gpu::group(ranks, activation),
    };
    let gpus = gpus.map_err(|error| start(error.to_string()))?;
    CudaBackend::group(gpus, model, options)
}

fn selected(backend: Box<dyn Backend>, reason: &str) -> Box<dyn Backend> {
    let details = backend.info();
    info!(
        backend = details.name,
        device = details.device,
        reason,
        "backend selected"
    );
    backend
}
