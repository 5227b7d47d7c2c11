//! What a request asks of the sampling of its next token, as entries of the step's flat arrays.

use super::sequence::{Sequence, range};
use crate::backend::{SampleSpec, Step};

impl Sequence {
    /// Appends the request's sample to `step`: of the token that comes after `ahead` more than are known.
    pub(super) fn push_sample(&self, ahead: usize, eos: &[u32], step: &mut Step) {
        let sampling = &self.sampling;
        let history = step.history.len();
        let penalised = sampling.has_penalties();
        if penalised {
            step.history.extend_from_slice(&self.tokens);
        }
        let output = if penalised {
            history + self.prompt_len
        } else {
            history
        };
        let banned = step.banned.len();
        self.push_banned(ahead, eos, &mut step.banned);
        let (biases, allowed, asked) = (step.biases.len(), step.allowed.len(), step.asked.len());
        step.biases.extend_from_slice(&sampling.logit_bias);
        step.allowed.extend_from_slice(&sampling.allowed_token_ids);
        step.asked.extend_from_slice(&sampling.logprob_token_ids);
        step.samples.push(SampleSpec {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: self.seed,
            position: (self.generated() + ahead) as u32,
            logprobs: sampling.logprobs,
            prompt: range(history, output),
            output: range(output, step.history.len()),
            banned: range(banned, step.banned.len()),
            biases: range(biases, step.biases.len()),
            allowed: range(allowed, step.allowed.len()),
            asked: range(asked, step.asked.len()),
        });
    }

    fn push_banned(&self, ahead: usize, eos: &[u32], banned: &mut Vec<u32>) {
        let sampling = &self.sampling;
        // `min_tokens` counts the token that is about to be sampled, so it may be a stop token only as the
        // (min_tokens + 1)th.
        if self.below_min_tokens(ahead) {
            if !sampling.ignore_eos {
                banned.extend_from_slice(eos);
            }
            banned.extend_from_slice(&sampling.stop_token_ids);
        }
        // As in vLLM, a bad word is looked for in the output alone: one that begins in the prompt may be finished.
        let output = &self.tokens[self.prompt_len..];
        let last_tokens = sampling.bad_words.iter().filter_map(|word| {
            let (last, others) = word.split_last()?;
            output.ends_with(others).then_some(*last)
        });
        banned.extend(last_tokens);
    }
}
