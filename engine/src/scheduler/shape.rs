//! Steps for a simulator in virtual time: decided and completed like any other, but never written out.
//!
//! What a step takes depends on a handful of sums ([`StepShape`]). The arrays that a backend computes with are most of
//! the work of forming a step, and nobody would read them.

use std::time::Duration;

use super::{Scheduler, SequenceNumber};
use crate::backend::sim::StepShape;
use crate::backend::{Sampled, StepOutput};

impl Scheduler {
    /// [`Scheduler::schedule`] without a [`Step`](crate::backend::Step): forms the next step and says what its time
    /// depends on; none when there is nothing to compute.
    pub fn schedule_shape(&mut self, now: Duration) -> Option<StepShape> {
        if !self.plan(now) {
            return None;
        }
        let mut shape = StepShape::default();
        for planned in &mut self.planned {
            let Some(sequence) = self.sequences.get(&planned.number) else {
                continue;
            };
            sequence.count_in(&mut self.step.load, planned.tokens);
            planned.preemptions = sequence.preemptions;
            planned.filled = sequence.asks(planned.tokens, shape.sampled as u32);
            self.step.prompt_logprobs |= planned.filled.rows > 0;
            let context = sequence.computed + planned.tokens;
            let sampled = planned.filled.sample.is_some();
            shape.add(planned.tokens as u32, context as u32, sampled);
        }
        let block_size = u64::from(self.config.block_size);
        self.pool.take_transfers(|_| shape.copied += block_size);
        Some(shape)
    }

    /// Answers the samples of the step that was formed last: `token` gets a request and how many tokens it generated
    /// before. [`Scheduler::complete`] takes the output in.
    pub fn answer(
        &self,
        output: &mut StepOutput,
        mut token: impl FnMut(SequenceNumber, u32) -> u32,
    ) {
        output.clear();
        for planned in &self.planned {
            // The place of the sample of a request that was aborted since stays, or all behind it would shift.
            let generated = self.sequences.get(&planned.number);
            let place = generated.map(|sequence| sequence.generated() as u32);
            if planned.filled.sample.is_some() {
                output.sampled.push(Sampled {
                    token: place.map(|place| token(planned.number, place)),
                    logprob: None,
                });
            }
        }
    }
}
