//! A rank's histograms: of its steps, and of its requests once they have ended.

use pointsman_proto::series;

use super::buckets::{
    CHOICES_BUCKETS, FINE_BUCKETS, FIRST_TOKEN_BUCKETS, PREEMPTIONS_BUCKETS, REQUEST_TIME_BUCKETS,
    STEP_TOKENS_BUCKETS, TOKEN_GAP_BUCKETS, one_two_five,
};
use super::cells::Histogram;
use super::rank::Registrar;
use super::{INTER_TOKEN_LATENCY_SECONDS, STEP_DURATION_SECONDS};
use crate::worker::{RequestReport, StepReport};

/// What a step adds to.
#[derive(Clone, Debug)]
pub(super) struct StepSamples {
    first_token: Histogram,
    pub(super) token_gap: Histogram,
    token_gap_fine: Histogram,
    duration: Histogram,
    tokens: Histogram,
}

impl StepSamples {
    pub(super) fn new(on: &mut Registrar<'_>) -> Self {
        let first_token = (
            series::TIME_TO_FIRST_TOKEN_SECONDS,
            "Arrival to first token.",
        );
        let token_gap = (
            series::INTER_TOKEN_LATENCY_SECONDS,
            "One token to the next.",
        );
        let fine = [
            (
                INTER_TOKEN_LATENCY_SECONDS,
                "One token to the next, from 50 microseconds.",
            ),
            (
                STEP_DURATION_SECONDS,
                "A step, from its forming to its tokens.",
            ),
        ];
        let tokens = (
            series::ITERATION_TOKENS_TOTAL,
            "Tokens computed in one step.",
        );
        let [first_token] = on.histograms(&FIRST_TOKEN_BUCKETS, [first_token]);
        let [token_gap] = on.histograms(&TOKEN_GAP_BUCKETS, [token_gap]);
        let [token_gap_fine, duration] = on.histograms(&FINE_BUCKETS, fine);
        let [tokens] = on.histograms(&STEP_TOKENS_BUCKETS, [tokens]);
        Self {
            first_token,
            token_gap,
            token_gap_fine,
            duration,
            tokens,
        }
    }

    pub(super) fn record(&self, report: &StepReport) {
        let took = report.finished_at.saturating_sub(report.started_at);
        self.duration.record(took.as_secs_f64());
        self.tokens.record(f64::from(report.batched_tokens));
        for wait in &report.first_token_waits {
            self.first_token.record(wait.as_secs_f64());
        }
        for gap in &report.inter_token_gaps {
            self.token_gap.record(gap.as_secs_f64());
            self.token_gap_fine.record(gap.as_secs_f64());
        }
    }
}

/// What a request that ended adds to.
#[derive(Clone, Debug)]
pub(super) struct RequestSamples {
    times: Times,
    token: Histogram,
    sizes: Sizes,
    preemptions: Histogram,
    choices: Histogram,
}

#[derive(Clone, Debug)]
struct Times {
    total: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
}

/// In tokens.
#[derive(Clone, Debug)]
struct Sizes {
    prompt: Histogram,
    computed: Histogram,
    generated: Histogram,
    max: Histogram,
    longest: Histogram,
}

impl RequestSamples {
    pub(super) fn new(on: &mut Registrar<'_>, context_tokens: u32) -> Self {
        let times = Times::new(on);
        let token = (
            series::REQUEST_TIME_PER_OUTPUT_TOKEN_SECONDS,
            "Decode time per token after the first, by request.",
        );
        let [token] = on.histograms(&TOKEN_GAP_BUCKETS, [token]);
        let sizes = Sizes::new(on, context_tokens);
        let preemptions = (series::REQUEST_NUM_PREEMPTIONS, "Preemptions of a request.");
        let [preemptions] = on.histograms(&PREEMPTIONS_BUCKETS, [preemptions]);
        let choices = (series::REQUEST_PARAMS_N, "The n of a request.");
        let [choices] = on.histograms(&CHOICES_BUCKETS, [choices]);
        Self {
            times,
            token,
            sizes,
            preemptions,
            choices,
        }
    }

    /// Phases that a request never completed have no sample.
    pub(super) fn record(&self, report: &RequestReport) {
        let (times, sizes) = (&self.times, &self.sizes);
        let total = report.finished_at.saturating_sub(report.arrived_at);
        times.total.record(total.as_secs_f64());
        sizes.prompt.record(f64::from(report.prompt_tokens));
        sizes.generated.record(f64::from(report.generated_tokens));
        sizes.max.record(f64::from(report.max_tokens));
        self.preemptions.record(f64::from(report.preemptions));
        let phases = report.phases();
        if let Some(queue) = phases.queue {
            times.queue.record(queue.as_secs_f64());
            let computed = report.prompt_tokens.saturating_sub(report.cached_tokens);
            sizes.computed.record(f64::from(computed));
        }
        let (Some(prefill), Some(decode)) = (phases.prefill, phases.decode) else {
            return;
        };
        times.prefill.record(prefill.as_secs_f64());
        times.inference.record((prefill + decode).as_secs_f64());
        times.decode.record(decode.as_secs_f64());
        if report.generated_tokens > 1 {
            let tokens = f64::from(report.generated_tokens - 1);
            self.token.record(decode.as_secs_f64() / tokens);
        }
    }

    /// All choices of a prompt have ended.
    pub(super) fn answered(&self, choices: usize, longest: u32) {
        self.choices.record(choices as f64);
        self.sizes.longest.record(f64::from(longest));
    }
}

impl Times {
    fn new(on: &mut Registrar<'_>) -> Self {
        let named = [
            (series::E2E_REQUEST_LATENCY_SECONDS, "Arrival to end."),
            (
                series::REQUEST_QUEUE_TIME_SECONDS,
                "Arrival to first scheduled.",
            ),
            (
                series::REQUEST_PREFILL_TIME_SECONDS,
                "First scheduled to first token.",
            ),
            (
                series::REQUEST_DECODE_TIME_SECONDS,
                "First token to last token.",
            ),
            (
                series::REQUEST_INFERENCE_TIME_SECONDS,
                "First scheduled to last token.",
            ),
        ];
        let [total, queue, prefill, decode, inference] =
            on.histograms(&REQUEST_TIME_BUCKETS, named);
        Self {
            total,
            queue,
            prefill,
            decode,
            inference,
        }
    }
}

impl Sizes {
    fn new(on: &mut Registrar<'_>, context_tokens: u32) -> Self {
        let named = [
            (series::REQUEST_PROMPT_TOKENS, "Prompt tokens of a request."),
            (
                series::REQUEST_PREFILL_KV_COMPUTED_TOKENS,
                "Prompt tokens of a request that were computed.",
            ),
            (
                series::REQUEST_GENERATION_TOKENS,
                "Generated tokens of a request.",
            ),
            (
                series::REQUEST_PARAMS_MAX_TOKENS,
                "The max_tokens of a request.",
            ),
            (
                series::REQUEST_MAX_NUM_GENERATION_TOKENS,
                "Generated tokens of the longest choice of a prompt.",
            ),
        ];
        let bounds = one_two_five(f64::from(context_tokens));
        let [prompt, computed, generated, max, longest] = on.histograms(&bounds, named);
        Self {
            prompt,
            computed,
            generated,
            max,
            longest,
        }
    }
}
