//! The first step: the body is read, and what the request is called, how urgent it is and which
//! model it really gets follows from that, its headers and the pool's rules.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_proto::headers;

use super::exchange::{InFlight, Running};
use super::policy::Policy;
use super::pool::{Pool, Rules};
use super::{Shared, mixed};
use crate::clock::unix_nanos;
use crate::ext_proc::{Intake, Refusal, RequestHead};
use crate::observe::request_series::{DEFAULT_FAIRNESS_ID, RequestLabels};
use crate::request::model_rewrite::requested_model;
use crate::request::{InferenceRequest, ParseError, Parsers, RequestLine, rewrite};
use crate::schedule::{MediaItem, SubsetEntry};

/// Larger bodies are read on another thread, so that one of them does not hold up the other
/// requests of this one.
const INLINE_BODY_BYTES: usize = 256 << 10;

/// Reads a request into an exchange.
pub(super) async fn begin(
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    intake: Intake,
    seed: u64,
) -> Result<InFlight, Refusal> {
    let begun_us = shared.clock.now_us();
    let policy = pool.policy.load_full();
    let body_bytes: usize = intake.body.iter().map(Vec::len).sum();
    let request = read(&policy, &intake, body_bytes).await?;
    shared
        .metrics
        .process
        .read_seconds
        .record(shared.seconds_since(begun_us));
    let Intake {
        head, body, subset, ..
    } = intake;
    let rules = pool.rules.load();
    let target = target_model(&shared, &rules, &head, &request, seed);
    let rewritten = match (&target, &request.model_span) {
        (Some(target), Some(span)) => spliced(&body, span.clone(), target)?,
        _ => None,
    };
    drop(body);
    // A model that cannot be written into the body is not the one that the worker will see.
    let target_model: Arc<str> = match target.filter(|_| rewritten.is_some()) {
        Some(target) => Arc::from(target),
        None => Arc::from(request.model.as_str()),
    };
    let fairness_id = fairness_id(&policy, &head);
    let priority = rules.objectives.priority(|name| head.get(name));
    let series = shared.metrics.request(&RequestLabels {
        model: &request.model,
        target_model: &target_model,
        fairness_id: &fairness_id,
        priority,
    });
    series.total.increment(1);
    series.request_size.record(body_bytes as f64);
    let subset = subset.filter(|_| shared.options.use_subset_hint);
    let spans = shared.spans.as_ref();
    let span =
        spans.and_then(|spans| spans.begin(head.get("traceparent"), head.get("tracestate"), now()));
    Ok(InFlight {
        request_id: request_id(&head, seed),
        is_named_by_client: head.contains(headers::REQUEST_ID),
        subset: subset.map(|entries| {
            let entries = entries.iter().filter_map(|entry| SubsetEntry::parse(entry));
            entries.collect()
        }),
        slo_ttft_ms: slo(&head, [headers::SLO_TTFT_MS, headers::SLO_TTFT_MS_ALIAS]),
        slo_tpot_ms: slo(&head, [headers::SLO_TPOT_MS, headers::SLO_TPOT_MS_ALIAS]),
        media: request.media.iter().map(media_item).collect(),
        tie_seed: seed,
        begun_us,
        body_bytes: body_bytes as u64,
        model: Arc::from(request.model.as_str()),
        target_model,
        fairness_id,
        priority,
        _running: Running::new(Arc::clone(&series)),
        series,
        rewritten,
        permit: None,
        picked: None,
        decision: None,
        first_byte_us: None,
        span,
        head,
        request,
        policy,
        pool: Arc::clone(&pool),
        shared,
    })
}

/// The wall clock as the tracing library wants it.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos())
}

/// A request whose body is not shown (a GET, or a gateway that sends headers only) is picked
/// without being understood.
async fn read(
    policy: &Arc<Policy>,
    intake: &Intake,
    body_bytes: usize,
) -> Result<InferenceRequest, Refusal> {
    let wrong = |error: ParseError| Refusal::bad_request(error.to_string());
    if intake.body.is_empty() {
        return Ok(InferenceRequest::passthrough());
    }
    if body_bytes <= INLINE_BODY_BYTES {
        return parse(&policy.parsers, &intake.head, &intake.body).map_err(wrong);
    }
    let (policy, head, body) = (
        Arc::clone(policy),
        Arc::clone(&intake.head),
        Arc::clone(&intake.body),
    );
    let reading = tokio::task::spawn_blocking(move || parse(&policy.parsers, &head, &body));
    match reading.await {
        Ok(read) => read.map_err(wrong),
        Err(_) => Err(Refusal::new(
            crate::ext_proc::RefusalCode::Internal,
            "the request could not be read",
        )),
    }
}

fn parse(
    parsers: &Parsers,
    head: &RequestHead,
    body: &[Vec<u8>],
) -> Result<InferenceRequest, ParseError> {
    let line = RequestLine {
        method: head.method(),
        path: head.path(),
        content_type: head.get("content-type"),
    };
    parsers.parse(&line, &joined(body))
}

/// A body that came in one piece is read where it lies; only one in several pieces is joined for
/// reading.
fn joined(chunks: &[Vec<u8>]) -> Cow<'_, [u8]> {
    match chunks {
        [] => Cow::Borrowed(&[]),
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.concat()),
    }
}

/// The model to write into the body, where it is another one.
fn target_model(
    shared: &Shared,
    rules: &Rules,
    head: &RequestHead,
    request: &InferenceRequest,
    seed: u64,
) -> Option<String> {
    request.model_span.as_ref()?;
    if let Some(chosen) = rules.rewrites.choose(&request.model, seed) {
        shared
            .metrics
            .model_rewritten(chosen.rewrite_name, &request.model, chosen.target_model);
        return (chosen.target_model != request.model).then(|| chosen.target_model.to_owned());
    }
    let asked = requested_model(|name| head.get(name))?;
    (asked != request.model).then(|| asked.to_owned())
}

fn spliced(
    body: &[Vec<u8>],
    span: std::ops::Range<usize>,
    target: &str,
) -> Result<Option<Vec<Vec<u8>>>, Refusal> {
    let mut chunks = body.to_vec();
    rewrite::splice(&mut chunks, span, &rewrite::json_string(target))
        .map_err(|error| Refusal::new(crate::ext_proc::RefusalCode::Internal, error.to_string()))?;
    Ok(Some(chunks))
}

/// The tenant: what the gateway says, else an agent's session where that is switched on.
fn fairness_id(policy: &Policy, head: &RequestHead) -> Arc<str> {
    let of = |name: &str| head.get(name).filter(|id| !id.trim().is_empty());
    let given = of(headers::FAIRNESS_ID).or_else(|| of(headers::FAIRNESS_ID_ALIAS));
    let session = || {
        let identity = policy.identity.as_ref()?;
        let mut own = identity.additional_session_headers.iter();
        own.find_map(|name| of(&name.to_ascii_lowercase()))
            .or_else(|| headers::AGENT_SESSIONS.into_iter().find_map(of))
    };
    Arc::from(given.or_else(session).unwrap_or(DEFAULT_FAIRNESS_ID))
}

/// A client's target, under the present name of its header or the older one.
fn slo(head: &RequestHead, names: [&str; 2]) -> Option<f64> {
    names.into_iter().find_map(|name| number(head.get(name)?))
}

fn number(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number)
}

/// The client's, or one of ours in the form of a UUID.
fn request_id(head: &RequestHead, seed: u64) -> String {
    if let Some(id) = head.get(headers::REQUEST_ID) {
        return id.to_owned();
    }
    let (high, low) = (mixed(seed ^ 1), mixed(seed ^ 2));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        (low >> 48) & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

fn media_item(item: &crate::request::MediaItem) -> MediaItem {
    MediaItem {
        modality: item.modality,
        hash: item.hash,
        bytes: item.bytes,
    }
}
