//! The backend over the time model: answers at once, and returns when the step would have been done.

use std::sync::Arc;
use std::time::Duration;

use super::pace::{Pace, WallClock};
use super::time_model::{StepShape, TimeModel};
use super::tokens::{Tokens, mix};
use crate::backend::{
    Backend, BackendError, BackendInfo, KvLayout, SleepLevel, Step, StepOutput, StepSequence,
};
use crate::faults::Faults;

/// A model on a GPU, as far as the outside can tell.
#[derive(Debug)]
pub struct SimBackend {
    info: BackendInfo,
    time: TimeModel,
    tokens: Tokens,
    faults: Arc<Faults>,
    speedup: f64,
    pace: Pace,
    clock: WallClock,
    block_size: u32,
    /// What the step under way brings, and until when to wait for it.
    answers: StepOutput,
    ends_at: Option<Duration>,
}

impl SimBackend {
    /// Answers with `tokens` at the speed of `time`, divided by `speedup`. `faults` may slow it down.
    pub fn new(time: TimeModel, speedup: f64, tokens: Tokens, faults: Arc<Faults>) -> Self {
        let (model, gpu, gpus) = (time.model(), time.gpu(), time.gpus());
        Self {
            info: BackendInfo {
                name: "sim",
                device: format!(
                    "{} on {gpus} x {}, {speedup} times as fast",
                    model.name, gpu.name
                ),
                kv_bytes_per_token: model.kv_bytes_per_token() as usize,
                kv_memory_bytes: Some(time.kv_memory()),
                layers: 1,
                ahead: false,
            },
            time,
            tokens,
            faults,
            speedup,
            pace: Pace::new(speedup),
            clock: WallClock::start(),
            block_size: 1,
            answers: StepOutput::default(),
            ends_at: None,
        }
    }

    /// Fills `out`, and says how long the step takes in simulated time. Waits for nothing.
    pub fn compute(&self, step: &Step, out: &mut StepOutput) -> Duration {
        out.clear();
        for sequence in &step.sequences {
            let spec = sequence
                .sample
                .and_then(|index| step.samples.get(index as usize));
            if let Some(spec) = spec {
                out.sampled.push(self.tokens.sample(step, sequence, spec));
            }
            if sequence.embed {
                out.embeddings.push(self.embedding(step, sequence));
            }
        }
        for row in &step.prompt_rows {
            let index = row.token as usize;
            let logprob = self.tokens.prompt_logprob(step, index, row.target, row.top);
            out.prompt_logprobs.push(logprob);
        }
        let shape = StepShape::of(step, self.block_size);
        self.time.step_time(&shape)
    }

    /// A vector of length one that depends on the context's end alone.
    fn embedding(&self, step: &Step, sequence: &StepSequence) -> Vec<f32> {
        let last = (sequence.tokens.end as usize).saturating_sub(1);
        let last = step.tokens.get(last).copied().unwrap_or(0);
        let seed = mix(u64::from(last) << 32 | u64::from(sequence.context_len));
        let width = self.time.model().hidden_size;
        let raw = (0..width).map(|index| (mix(seed ^ index) >> 40) as f32 / 8_388_608.0 - 1.0);
        let mut vector: Vec<f32> = raw.collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        for x in &mut vector {
            *x /= length;
        }
        vector
    }
}

impl Backend for SimBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.block_size = layout.block_size;
        Ok(())
    }

    fn sleep(&mut self, _level: SleepLevel) -> Result<(), BackendError> {
        Ok(())
    }

    /// The same model on a GPU of its own; faults are shared.
    fn another(&self) -> Result<Box<dyn Backend>, BackendError> {
        let (tokens, faults) = (self.tokens.clone(), Arc::clone(&self.faults));
        let another = Self::new(self.time, self.speedup, tokens, faults);
        Ok(Box::new(another))
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        let now = self.clock.now();
        let mut answers = std::mem::take(&mut self.answers);
        let time = self.compute(step, &mut answers);
        self.answers = answers;
        let time = time.mul_f64(self.faults.step_factor());
        self.ends_at = self.pace.begin(now, time);
        Ok(())
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        if let Some(deadline) = self.ends_at.take() {
            self.clock.wait_until(deadline);
        }
        self.pace.end(self.clock.now());
        std::mem::swap(&mut self.answers, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::sim::{Gpu, ModelShape};
    use crate::backend::{PromptRow, SampleSpec};

    fn backend(speedup: f64) -> SimBackend {
        let shape = ModelShape::named("llama-3.1-8b").unwrap();
        let time = TimeModel::new(shape, Gpu::named("h100").unwrap(), 1).unwrap();
        let tokens = Tokens::new((10..100).collect(), None, None);
        SimBackend::new(time, speedup, tokens, Arc::new(Faults::default()))
    }

    fn decode(context_len: u32) -> Step {
        Step {
            tokens: vec![17],
            positions: vec![context_len - 1],
            slots: vec![16],
            sequences: vec![StepSequence {
                tokens: 0..1,
                context_len,
                block_table: 0..0,
                sample: Some(0),
                embed: true,
            }],
            samples: vec![SampleSpec::greedy()],
            prompt_rows: vec![PromptRow {
                token: 0,
                target: 3,
                top: 2,
            }],
            ..Step::default()
        }
    }

    #[test]
    fn a_step_brings_what_was_asked_for() {
        let mut out = StepOutput::default();
        let time = backend(1.0).compute(&decode(100), &mut out);
        assert!(time > Duration::from_millis(5) && time < Duration::from_millis(10));
        assert!((10..100).contains(&out.sampled[0].token.unwrap()));
        assert_eq!(out.prompt_logprobs[0].top.len(), 2);
        assert_eq!(out.embeddings[0].len(), 4096);
        let length: f32 = out.embeddings[0].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_forward_takes_its_time_on_the_wall_clock() {
        let mut backend = backend(2.0);
        let step = decode(100);
        let mut out = StepOutput::default();
        let time = backend.compute(&step, &mut out) / 2;
        let before = backend.clock.now();
        backend.forward(&step, &mut out).unwrap();
        assert!(backend.clock.now() >= before + time);
        let plan = r#"{"slow_steps": 3.0}"#;
        backend.faults.set(plan.parse().unwrap());
        backend.forward(&step, &mut out).unwrap();
        assert!(backend.clock.now() >= before + time + time * 3);
    }
}
