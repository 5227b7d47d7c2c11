//! The second half of a step: its outcome taken in.

use std::ops::Range;
use std::time::Duration;

use super::schedule::Planned;
use super::{Finish, RequestReport, Scheduler, SequenceNumber, StepReport, TokenUpdate};
use crate::backend::{Sampled, StepOutput};

/// What a step brought. Reused: [`Scheduler::complete`] clears it first.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One update for each request that got a token or ended.
    pub updates: Vec<(SequenceNumber, TokenUpdate)>,
    /// Reports of those that ended.
    pub finished: Vec<RequestReport>,
    /// The step as a whole.
    pub report: StepReport,
}

impl Outcome {
    fn clear(&mut self) {
        self.updates.clear();
        self.finished.clear();
        self.report.batched_tokens = 0;
        self.report.batched_requests = 0;
        self.report.prefill_tokens = 0;
        self.report.first_token_waits.clear();
        self.report.inter_token_gaps.clear();
    }
}

impl Scheduler {
    /// Takes in what the step under way has brought: of two, the one that was formed first.
    ///
    /// Blocks are published here and not when they are planned: a reader of the KV events may count on them.
    pub fn complete(&mut self, output: &mut StepOutput, now: Duration, outcome: &mut Outcome) {
        outcome.clear();
        self.pool.transferred();
        let layers = self.config.layers;
        let slice = self.step.slice.as_ref();
        if slice.is_some_and(|slice| slice.end < layers) {
            // Nothing is computed whole.
            self.planned.clear();
        }
        self.slices.stepped(slice, layers);
        let planned = std::mem::take(&mut self.planned);
        let mut rows = output.prompt_logprobs.drain(..);
        let mut embeddings = output.embeddings.drain(..);
        for part in &planned {
            let mut rows = rows.by_ref().take(part.filled.rows as usize);
            let embedding = part.filled.embed.then(|| embeddings.next()).flatten();
            // A request that ended since is gone, and what the step brought for it with it. One that was preempted since
            // computes it again.
            let sequence = self.sequences.get_mut(&part.number);
            let Some(sequence) = sequence.filter(|sequence| part.is_of(sequence)) else {
                rows.for_each(drop);
                continue;
            };
            outcome.report.batched_tokens += part.tokens as u32;
            outcome.report.batched_requests += 1;
            let prefix_cache = self.config.prefix_cache.as_ref();
            sequence.advance(part.tokens, prefix_cache, &mut self.pool);
            sequence.take_prompt_logprobs(&mut rows);
            let update = if sequence.lacks_prompt_logprobs() {
                let reason = "the backend computed no prompt log probabilities";
                self.end_with_error(part.number, reason, now, outcome)
            } else if part.filled.embed {
                self.take_embedding(part.number, embedding, now, outcome)
            } else {
                let sampled = sample_of(part, &mut output.sampled);
                sampled.and_then(|sampled| self.take_sampled(part.number, sampled, now, outcome))
            };
            outcome
                .updates
                .extend(update.map(|update| (part.number, update)));
        }
        drop((rows, embeddings));
        self.planned = planned;
        self.planned.clear();
        self.learn(now, &mut outcome.report);
        outcome.report.started_at = self.step.started_at;
        outcome.report.finished_at = now;
        self.take_up_next(now);
        outcome.report.stats = self.stats();
    }

    /// Notes what the step took.
    fn learn(&mut self, now: Duration, report: &mut StepReport) {
        let took = now.saturating_sub(self.step.started_at);
        let (load, share) = (self.step.load, self.share());
        let tokens = load.prompt_tokens as f64 * share;
        // A part counts when it is computed, with its last slice.
        let ends = |slice: &Range<u32>| slice.end >= self.config.layers;
        if self.step.slice.as_ref().is_none_or(ends) {
            report.prefill_tokens = load.prompt_tokens as u32;
        }
        report.preempted = self.step.preempted;
        let expected = self.cost.decode_seconds(load) * share;
        report.expected_without_prefill = Duration::try_from_secs_f64(expected).unwrap_or_default();
        if tokens > 0.0 || self.slices.request().is_some() {
            self.rate.observe(tokens, took);
        }
        // Logits of whole prompts cost what prompts do not cost otherwise.
        if !self.step.prompt_logprobs {
            self.cost.observe_share(load, share, took.as_secs_f64());
        }
        if self.step.load.prompt_tokens > 0 {
            self.prompt_tokens_before = self.step.load.prompt_tokens as usize;
        }
    }

    /// The share of the layers that the step had.
    fn share(&self) -> f64 {
        self.step.slice.as_ref().map_or(1.0, |slice| {
            f64::from(slice.end - slice.start) / f64::from(self.config.layers)
        })
    }

    fn take_sampled(
        &mut self,
        number: SequenceNumber,
        sampled: Sampled,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Option<TokenUpdate> {
        let Some(token) = sampled.token else {
            let reason = "the model produced no finite logit";
            return self.end_with_error(number, reason, now, outcome);
        };
        let sequence = self.sequences.get_mut(&number)?;
        let appended = sequence.append(token, now, &self.config.eos_token_ids);
        let update = TokenUpdate {
            token: Some(token),
            logprob: sampled.logprob,
            cached_tokens: sequence.cached_tokens.unwrap_or(0),
            prompt_logprobs: std::mem::take(&mut sequence.prompt_logprobs),
            finish: appended.finish.clone(),
            ..TokenUpdate::default()
        };
        self.totals.generated_tokens += 1;
        if appended.first_token_wait.is_some() {
            self.totals.prompt_tokens += sequence.prompt_len as u64;
            self.totals.prompt_tokens_cached += u64::from(update.cached_tokens);
            self.totals.prompt_tokens_cached_host += u64::from(sequence.cached_tokens_host);
        }
        let report = &mut outcome.report;
        report.first_token_waits.extend(appended.first_token_wait);
        report.inter_token_gaps.extend(appended.inter_token_gap);
        if let Some(finish) = appended.finish {
            let sequence = self.remove(number)?;
            outcome.finished.push(sequence.report(finish, now));
        }
        Some(update)
    }

    /// Ends a request whose whole prompt is computed and that wants nothing else.
    fn take_embedding(
        &mut self,
        number: SequenceNumber,
        embedding: Option<Vec<f32>>,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Option<TokenUpdate> {
        if embedding.is_none() {
            let reason = "the backend computed no embedding";
            return self.end_with_error(number, reason, now, outcome);
        }
        let sequence = self.sequences.get(&number)?;
        self.totals.prompt_tokens_cached_host += u64::from(sequence.cached_tokens_host);
        let (update, report) = self.abort(number, Finish::Stop { token: None }, now)?;
        self.totals.prompt_tokens += u64::from(report.prompt_tokens);
        self.totals.prompt_tokens_cached += u64::from(report.cached_tokens);
        outcome.finished.push(report);
        Some(TokenUpdate {
            embedding,
            ..update
        })
    }

    fn end_with_error(
        &mut self,
        number: SequenceNumber,
        reason: &str,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Option<TokenUpdate> {
        let (update, report) = self.abort(number, Finish::Error(reason.to_owned()), now)?;
        outcome.finished.push(report);
        Some(update)
    }
}

/// The sample that `part` asked for; without a token when the backend brought none.
fn sample_of(part: &Planned, sampled: &mut [Sampled]) -> Option<Sampled> {
    let index = part.filled.sample? as usize;
    let sampled = sampled.get_mut(index).map(std::mem::take);
    Some(sampled.unwrap_or_default())
}
