//! What is different in a worker whose backend is simulated.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use tokenizers::Tokenizer;

use super::ServeError;
use crate::api::with_faults;
use crate::backend::sim::{SimBackend, TimeModel, Tokens};
use crate::backend::{BackendChoice, BackendError};
use crate::export::kv_events::FaultyEvents;
use crate::faults::Faults;
use crate::flags::{BackendName, Flags, SimFlags};
use crate::model::Model;
use crate::worker::EventSink;

/// A simulated device, and what goes wrong with the worker.
pub(super) struct Simulation {
    time: TimeModel,
    flags: SimFlags,
    faults: Arc<Faults>,
}

impl Simulation {
    /// The simulation that the flags ask for, if they do.
    ///
    /// # Errors
    /// When the model does not fit its GPUs, or flags of a simulation would change a real backend.
    pub(super) fn of(flags: &Flags) -> Result<Option<Self>, ServeError> {
        let sim = &flags.sim;
        if flags.backend != BackendName::Sim {
            return Ok(None);
        }
        let time = TimeModel::new(sim.sim_model, sim.sim_gpu, flags.fleet.tensor_parallel_size)
            .map_err(|error| start_error("sim", error.to_string()))?;
        Ok(Some(Self {
            time,
            flags: sim.clone(),
            faults: Arc::new(Faults::new(sim.sim_faults.clone())),
        }))
    }

    /// The folder's configuration, with the context of the simulated model.
    pub(super) fn model(&self, folder: &Path) -> Result<Model, ServeError> {
        let mut model = Model::open_without_weights(folder)?;
        model.config.max_position_embeddings = self.time.model().context as usize;
        Ok(model)
    }

    pub(super) fn backend(&self, model: &Model, tokenizer: &Tokenizer) -> BackendChoice {
        let vocab_size = u32::try_from(model.config.vocab_size).unwrap_or(u32::MAX);
        let mut words = Tokens::words_of(tokenizer, vocab_size);
        let ends = &model.generation.eos_token_ids;
        words.retain(|word| !ends.contains(word));
        let end = ends.first().copied();
        let tokens = Tokens::new(words, end, self.flags.sim_output_tokens);
        let faults = Arc::clone(&self.faults);
        let speedup = self.flags.sim_speedup;
        BackendChoice::Sim(Box::new(SimBackend::new(
            self.time, speedup, tokens, faults,
        )))
    }

    pub(super) fn sink(&self, inner: Box<dyn EventSink>) -> Box<dyn EventSink> {
        Box::new(FaultyEvents::new(inner, Arc::clone(&self.faults)))
    }

    pub(super) fn routes(&self, router: Router) -> Router {
        with_faults(router, Arc::clone(&self.faults))
    }
}

fn start_error(backend: &'static str, reason: String) -> ServeError {
    ServeError::Backend(BackendError::Start { backend, reason })
}
