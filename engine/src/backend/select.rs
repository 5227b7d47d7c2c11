//! Which backend runs: said by a flag, or found out.

use tracing::info;

use super::cpu::{CpuBackend, CpuOptions};
use super::cuda::probe::{Probed, probe};
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
    let reason = match choice {
        BackendChoice::Sim(backend) => return Ok(selected(backend, "asked for")),
        BackendChoice::Cpu => "asked for".to_owned(),
        BackendChoice::Auto => match probe() {
            Probed::NoDriver => "no CUDA driver".to_owned(),
            Probed::NoDevice => "a CUDA driver, but no device".to_owned(),
            Probed::Failed(error) => format!("the CUDA driver does not work: {error}"),
            Probed::Devices { count, name } => {
                format!("{count} CUDA device(s) ({name}), but this build has no CUDA kernels")
            }
        },
    };
    let backend = CpuBackend::new(model, cpu)?;
    Ok(selected(Box::new(backend), &reason))
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
