//! The running requests behind one response: submitted together, read as they come, dropped together.
//!
//! `n` choices are `n` requests, so the engine needs to know nothing of choices: the first computes the prompt, and
//! the prefix cache serves the others as far as blocks are full. Choice `c` of a seeded request has the seed plus
//! `c`, so that choices differ and stay reproducible.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use pointsman_proto::headers::EXPECTED_TIMEOUT_MS;
use pointsman_proto::openai::{ErrorBody, Usage};

use super::Api;
use super::caller::Caller;
use super::choice::{Choice, Delta, End};
use super::error::ApiError;
use super::sampling::Checked;
use crate::export::metrics::MetricsPage;
use crate::export::requests::{About, RequestRecords};
use crate::sample::SamplingParams;
use crate::scheduler::{NewRequest, TokenUpdate};
use crate::worker::RequestStream;

/// Characters of a client's request id that are kept.
const REQUEST_ID_CHARS_MAX: usize = 256;

/// Header with the client's id of the request.
pub(super) const REQUEST_ID_HEADER: &str = "x-request-id";
/// Header under which `observe` hands on the id that it made for a request without one; never a client's.
pub(super) const MADE_REQUEST_ID_HEADER: &str = "x-pointsman-made-request-id";
/// Header with the request's priority.
pub(super) const PRIORITY_HEADER: &str = "x-vllm-priority";

/// What stands in every response and chunk of a request.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// How long the request may take. A gateway that gives up on it by then would only have it computed in vain.
    pub(super) deadline: Option<Duration>,
    pub(super) caller: Caller,
}

impl Head {
    /// `prefix` and the client's id, from the header or else the body, or else a random one.
    pub(super) fn new(
        prefix: &str,
        headers: &HeaderMap,
        body_id: Option<&str>,
        model: String,
    ) -> Self {
        let named = header(headers, REQUEST_ID_HEADER).or(body_id);
        let named = named.filter(|id| !id.is_empty());
        let id = match named.or_else(|| header(headers, MADE_REQUEST_ID_HEADER)) {
            Some(id) => id.chars().take(REQUEST_ID_CHARS_MAX).collect(),
            None => format!("{:032x}", rand::random::<u128>()),
        };
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self {
            id: format!("{prefix}-{id}"),
            created,
            model,
            deadline: deadline(headers),
            caller: Caller::new(headers),
        }
    }
}

/// The time that Envoy gives the request, if it says; 0 is Envoy's word for no limit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let ms = header(headers, EXPECTED_TIMEOUT_MS)?.trim().parse().ok()?;
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// A header's value as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Updates that are taken from one stream at once.
const UPDATES_AT_ONCE: usize = 64;

/// The running requests of one response. Dropping it aborts those that have not ended.
///
/// Updates are taken from the streams as many at a time as are there, so that a reader that fell behind catches up
/// with few wake-ups and few writes. What is taken and not passed on yet is bounded by [`UPDATES_AT_ONCE`] for each
/// choice; the rest waits in the streams.
pub(super) struct Generation {
    choices: Vec<Choice>,
    running: Vec<Running>,
    /// Updates that were taken, by choice; none is a stream that broke off.
    ready: VecDeque<(usize, Option<TokenUpdate>)>,
    /// Kept for its memory.
    taken: Vec<TokenUpdate>,
    prompt_tokens: u32,
    choices_per_prompt: usize,
    metrics: MetricsPage,
    /// The data-parallel rank of each prompt, in their order.
    ranks: Vec<u32>,
    stream_interval: u32,
}

/// A choice that has not ended.
struct Running {
    index: usize,
    stream: RequestStream,
}

impl Generation {
    /// Submits `n` requests for each prompt; all of them or, on an error, none.
    pub(super) fn submit(
        api: &Api,
        head: &Head,
        prompts: Vec<Vec<u32>>,
        checked: &Checked,
    ) -> Result<Self, ApiError> {
        let id: Arc<str> = Arc::from(head.id.as_str());
        let mut this = Self {
            choices: Vec::new(),
            running: Vec::new(),
            ready: VecDeque::new(),
            taken: Vec::new(),
            prompt_tokens: 0,
            choices_per_prompt: checked.n,
            metrics: api.metrics.clone(),
            ranks: Vec::new(),
            stream_interval: api.config.stream_interval,
        };
        let asked = head.caller.rank()?;
        for prompt in prompts {
            // The choices of a prompt share its blocks, so they run where those are.
            let rank = api.engine.choose(asked)?;
            this.ranks.push(rank);
            this.prompt_tokens = this.prompt_tokens.saturating_add(prompt.len() as u32);
            for choice in 0..checked.n {
                let sampling =
                    checked.for_prompt(choice, prompt.len(), api.engine.max_model_len())?;
                let about = |records: &RequestRecords| {
                    records.watch(about(head, rank, checked.n, &sampling))
                };
                let watch = api.config.requests.as_ref().map(about);
                let request = NewRequest {
                    cache_salt: checked.cache_salt.clone(),
                    priority: checked.priority,
                    deadline: head.deadline,
                    data_parallel_rank: Some(rank),
                    ..NewRequest::new(Arc::clone(&id), prompt.clone(), sampling)
                };
                let stream = api.submit(request, watch)?;
                let index = this.choices.len();
                let choice = Choice::new(Arc::clone(&api.encoder), &prompt, &checked.text);
                this.choices
                    .push(choice.with_pieces(Arc::clone(&api.pieces)));
                this.running.push(Running { index, stream });
            }
        }
        Ok(this)
    }

    /// The next addition to any of the choices, by index; none when all have ended.
    pub(super) async fn next(&mut self) -> Option<(usize, Delta)> {
        loop {
            if let Some(next) = self.next_ready() {
                return Some(next);
            }
            if self.running.is_empty() {
                return None;
            }
            poll_fn(|context| self.poll_ready(context)).await;
        }
    }

    /// The next addition if it is there already; none otherwise, which is not the end.
    pub(super) fn next_ready(&mut self) -> Option<(usize, Delta)> {
        let (index, update) = self.ready.pop_front()?;
        let Some(update) = update else {
            let reason = "the engine stopped before the answer was complete";
            let end = Some(End::Failed(Box::new(ErrorBody::internal(reason))));
            return Some((
                index,
                Delta {
                    end,
                    ..Delta::default()
                },
            ));
        };
        let delta = self.choices.get_mut(index)?.push(update);
        if let Some(End::Finished {
            by_stop_string: true,
            ..
        }) = &delta.end
        {
            self.stop(index);
        }
        Some((index, delta))
    }

    /// Frames of a stream carry this many tokens.
    pub(super) fn stream_interval(&self) -> u32 {
        self.stream_interval
    }

    /// Takes what is there from all streams.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (ready, taken) = (&mut self.ready, &mut self.taken);
        self.running.retain_mut(|Running { index, stream }| {
            let polled = stream.poll_many(context, taken, UPDATES_AT_ONCE);
            let ended = taken.last().is_some_and(|update| update.finish.is_some());
            ready.extend(taken.drain(..).map(|update| (*index, Some(update))));
            if polled == Poll::Ready(0) {
                ready.push_back((*index, None));
                return false;
            }
            !ended
        });
        if ready.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// A stop string ended the choice: whatever the engine went on to generate is not part of it.
    fn stop(&mut self, index: usize) {
        self.ready.retain(|(other, _)| *other != index);
        if let Some(at) = self
            .running
            .iter()
            .position(|running| running.index == index)
        {
            self.running.swap_remove(at).stream.stop();
        }
    }

    /// How many choices there are, of all prompts together.
    pub(super) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens so far. A prompt counts once, however many choices it has, and so do its cached tokens.
    pub(super) fn usage(&self) -> Usage {
        let generated = self.choices.iter().map(Choice::generated_tokens).sum();
        let first_choices = self.choices.iter().step_by(self.choices_per_prompt.max(1));
        Usage::new(
            self.prompt_tokens,
            generated,
            first_choices.map(Choice::cached_tokens).sum(),
        )
    }
}

impl Drop for Generation {
    /// Whatever the end was, it is one of the prompt's: the series has a sample for each.
    fn drop(&mut self) {
        let prompts = self.choices.chunks(self.choices_per_prompt.max(1));
        for (rank, choices) in self.ranks.iter().zip(prompts) {
            let longest = choices.iter().map(Choice::generated_tokens).max();
            self.metrics
                .answered(*rank, choices.len(), longest.unwrap_or(0));
        }
    }
}

/// What is told of a request once it has ended.
fn about(head: &Head, rank: u32, choices: usize, sampling: &SamplingParams) -> About {
    About {
        id: Arc::from(head.id.as_str()),
        model: head.model.clone(),
        session: head.caller.session.clone(),
        traceparent: head.caller.traceparent.clone(),
        tracestate: head.caller.tracestate.clone(),
        rank,
        choices: choices as u32,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_time_is_the_requests_deadline() {
        for (value, expected) in [
            ("1500", Some(Duration::from_millis(1500))),
            ("0", None),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED_TIMEOUT_MS, value.parse().unwrap());
            let head = Head::new("cmpl", &headers, Some("a"), "m".to_owned());
            assert_eq!(
                (head.deadline, head.id.as_str()),
                (expected, "cmpl-a"),
                "{value}"
            );
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
