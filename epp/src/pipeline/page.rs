//! Counts that the rooms keep themselves, written to the page at the moment of a scrape.
//!
//! The fleet, the tokenizers and the indexes count in atomics of their own and know nothing of
//! metrics; here their counts get names. A count with a name in the field has that name, the rest
//! is ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Pool;
use super::assembly::Counts;
use crate::fleet::kv_events::{Count, KvEventCounters};
use crate::fleet::scrape::ScrapeCounters;
use crate::index::IndexStats;
use crate::index::approximate::{Counters, PickStats};
use crate::observe::exposition::{Labels, Page, Sample};
use crate::observe::family::{Family, Kind, Legacy, was};
use crate::tokens::TokensStats;

const INDEX_SIZE: Family = Family::gauge(
    "llm_d_epp_prefix_indexer_size",
    &[],
    "Blocks in the prefix index, each counted once per endpoint.",
)
.also(&[was("inference_extension_prefix_indexer_size", &[])]);
const ADMISSIONS: Family = Family::counter(
    "llm_d_epp_kv_cache_index_admissions_total",
    &[],
    "Blocks taken into the index of KV events.",
)
.also(&[was("kvcache_index_admissions_total", &[])]);
const EVICTIONS: Family = Family::counter(
    "llm_d_epp_kv_cache_index_evictions_total",
    &[],
    "Blocks taken out of the index of KV events.",
)
.also(&[was("kvcache_index_evictions_total", &[])]);
const EVENT_ERRORS: Family = Family::counter(
    "llm_d_epp_kv_cache_events_zmq_errors_total",
    &["pod_identifier", "operation"],
    "Failures of event subscriptions, of all endpoints together.",
);
const POLL_ERRORS: Family = Family::counter(
    "llm_d_epp_datalayer_poll_errors_total",
    &["source_type"],
    "Metrics pages that could not be read.",
)
.also(&[was(
    "llm_d_inference_scheduler_datalayer_poll_errors_total",
    &[("source_type", "source_type")],
)]);
const EXTRACT_ERRORS: Family = Family::counter(
    "llm_d_epp_datalayer_extract_errors_total",
    &["source_type", "extractor_type"],
    "Metrics pages without the series of their engine.",
)
.also(&[Legacy {
    labels: &[
        ("source_type", "source_type"),
        ("extractor_type", "extractor_type"),
    ],
    ..was(
        "llm_d_inference_scheduler_datalayer_extract_errors_total",
        &[],
    )
}]);

/// Appends the state of the rooms, summed over all pools.
pub fn render_pools(pools: &[Arc<Pool>], counts: &Counts, page: &mut Page) {
    let (mut index, mut picks) = (IndexStats::default(), PickStats::default());
    let mut tokens = TokensStats::default();
    let corrections = Counters::default();
    for pool in pools {
        index += pool.index.stats();
        picks += pool.approximate.stats();
        tokens += pool.tokens.stats();
        corrections.add(pool.approximate.counters());
    }
    render_index(&index, page);
    render_approximate(&picks, &corrections, page);
    render_kv_events(&counts.kv_events, page);
    render_scrapes(&counts.scrapes, page);
    render_tokens(&tokens, page);
}

/// Appends the state of the prefix index.
fn render_index(stats: &IndexStats, page: &mut Page) {
    page.single(&INDEX_SIZE, Sample::Count(stats.blocks as u64));
    page.single(&ADMISSIONS, Sample::Count(stats.stored));
    page.single(&EVICTIONS, Sample::Count(stats.removed));
    gauge(
        page,
        "pointsman_prefix_index_runs",
        "Stretches of prompts that the prefix index keeps as one.",
        stats.runs,
    );
    gauge(
        page,
        "pointsman_prefix_index_bytes",
        "Memory of the prefix index.",
        stats.bytes,
    );
    gauge(
        page,
        "pointsman_prefix_index_orphans",
        "Blocks that wait for their parent.",
        stats.orphans,
    );
    counter(
        page,
        "pointsman_prefix_index_stored_blocks_total",
        "Blocks taken into the prefix index.",
        stats.stored,
    );
    counter(
        page,
        "pointsman_prefix_index_removed_blocks_total",
        "Blocks taken out of the prefix index.",
        stats.removed,
    );
    counter(
        page,
        "pointsman_prefix_index_dropped_orphans_total",
        "Waiting blocks dropped at their bound.",
        stats.orphans_dropped,
    );
    counter(
        page,
        "pointsman_prefix_index_refused_blocks_total",
        "Blocks refused by a full prefix index.",
        stats.refused_blocks,
    );
    counter(
        page,
        "pointsman_prefix_index_refused_events_total",
        "Events refused because they do not fit.",
        stats.refused_events,
    );
    counter(
        page,
        "pointsman_prefix_index_stale_events_total",
        "Events of an earlier life of their endpoint.",
        stats.stale_events,
    );
}

/// Appends the state of the approximate index.
fn render_approximate(stats: &PickStats, counters: &Counters, page: &mut Page) {
    let of = |value: &AtomicU64| value.load(Relaxed);
    gauge(
        page,
        "pointsman_approximate_index_blocks",
        "Blocks that endpoints are believed to hold by earlier picks, each counted once per endpoint.",
        stats.blocks,
    );
    gauge(
        page,
        "pointsman_approximate_index_keys",
        "Distinct prefixes in the approximate index.",
        stats.keys,
    );
    gauge(
        page,
        "pointsman_approximate_index_runs",
        "Stretches of prompts that the approximate index keeps as one.",
        stats.runs,
    );
    gauge(
        page,
        "pointsman_approximate_index_bytes",
        "Memory of the approximate index.",
        stats.bytes,
    );
    gauge(
        page,
        "pointsman_approximate_index_endpoints",
        "Endpoints that the approximate index knows.",
        stats.endpoints,
    );
    counter(
        page,
        "pointsman_approximate_index_shortfalls_total",
        "Responses that clearly had less cached than earlier picks let believe.",
        of(&counters.shortfalls),
    );
    counter(
        page,
        "pointsman_approximate_index_corrected_blocks_total",
        "Blocks no longer believed to be held because responses said so.",
        of(&counters.corrected_blocks),
    );
    counter(
        page,
        "pointsman_approximate_index_failed_picks_total",
        "Picks taken back because their requests failed or were served elsewhere.",
        of(&counters.failed_picks),
    );
}

/// Appends what came over the KV-event subscriptions.
fn render_kv_events(counters: &KvEventCounters, page: &mut Page) {
    for (name, help, count) in events_taken(counters)
        .into_iter()
        .chain(events_missed(counters))
    {
        counter(page, name, help, count.get());
    }
    let failures = [
        ("connect", counters.connect_failures.get()),
        ("receive", counters.malformed_batches.get()),
        ("replay", counters.replay_failures.get()),
    ];
    let failures = failures
        .map(|(operation, count)| (Labels::new(EVENT_ERRORS.labels, &["", operation]), count));
    let series = failures
        .iter()
        .map(|(labels, count)| (labels, Sample::Count(*count)));
    page.write(&EVENT_ERRORS, series);
}

type Row<'a> = (&'static str, &'static str, &'a Count);

fn events_taken(counters: &KvEventCounters) -> [Row<'_>; 10] {
    [
        (
            "llm_d_epp_kv_cache_events_messages_received_total",
            "Event batches taken over, live and replayed.",
            &counters.batches,
        ),
        (
            "llm_d_epp_kv_cache_events_subscriber_reconnections_total",
            "Connections made to event publishers.",
            &counters.connects,
        ),
        (
            "pointsman_kv_events_connect_failures_total",
            "Connections to event publishers that could not be made.",
            &counters.connect_failures,
        ),
        (
            "pointsman_kv_events_total",
            "Events handed to the prefix index.",
            &counters.events,
        ),
        (
            "pointsman_kv_events_duplicate_batches_total",
            "Event batches that came again.",
            &counters.duplicate_batches,
        ),
        (
            "pointsman_kv_events_unknown_total",
            "Events skipped because their tag is unknown.",
            &counters.unknown_events,
        ),
        (
            "pointsman_kv_events_unindexed_total",
            "Events skipped because their blocks make no prefix that could be asked for.",
            &counters.unindexed_events,
        ),
        (
            "pointsman_kv_events_malformed_total",
            "Events skipped because they cannot be read.",
            &counters.malformed_events,
        ),
        (
            "pointsman_kv_events_malformed_batches_total",
            "Event batches that could not be read.",
            &counters.malformed_batches,
        ),
        (
            "pointsman_kv_events_rank_mismatches_total",
            "Event batches that name another rank than their publisher's.",
            &counters.rank_mismatches,
        ),
    ]
}

fn events_missed(counters: &KvEventCounters) -> [Row<'_>; 8] {
    [
        (
            "pointsman_kv_events_gaps_total",
            "Jumps in the sequence numbers of events.",
            &counters.gaps,
        ),
        (
            "pointsman_kv_events_lost_batches_total",
            "Event batches that no replay brought back.",
            &counters.lost_batches,
        ),
        (
            "pointsman_kv_events_replays_total",
            "Replays asked for.",
            &counters.replays,
        ),
        (
            "pointsman_kv_events_replay_failures_total",
            "Times that catching up was given up.",
            &counters.replay_failures,
        ),
        (
            "pointsman_kv_events_truncated_replays_total",
            "Replays that did not reach back to the first batch.",
            &counters.truncated_replays,
        ),
        (
            "pointsman_kv_events_without_replay_total",
            "Publishers found without a replay address.",
            &counters.without_replay,
        ),
        (
            "pointsman_kv_events_resets_total",
            "Times that all blocks of a rank were dropped.",
            &counters.resets,
        ),
        (
            "pointsman_kv_events_refused_ranks_total",
            "Ranks left out because their endpoint names too many.",
            &counters.refused_ranks,
        ),
    ]
}

/// Appends how reading the workers' metrics goes.
fn render_scrapes(counters: &ScrapeCounters, page: &mut Page) {
    let of = |value: &AtomicU64| value.load(Relaxed);
    counter(
        page,
        "pointsman_scrape_pages_total",
        "Metrics pages read from workers.",
        of(&counters.pages),
    );
    let source = "metrics-data-source";
    let poll = Labels::new(POLL_ERRORS.labels, &[source]);
    let errors = Sample::Count(of(&counters.errors));
    page.write(&POLL_ERRORS, std::iter::once((&poll, errors)));
    let extract = Labels::new(EXTRACT_ERRORS.labels, &[source, "core-metrics-extractor"]);
    let unreadable = Sample::Count(of(&counters.unreadable));
    page.write(&EXTRACT_ERRORS, std::iter::once((&extract, unreadable)));
    counter(
        page,
        "pointsman_scrape_unreadable_total",
        "Metrics pages without the series of their engine.",
        of(&counters.unreadable),
    );
}

/// Appends what the tokenizers did.
fn render_tokens(stats: &TokensStats, page: &mut Page) {
    counter(
        page,
        "pointsman_tokenized_prompts_total",
        "Prompts turned into token ids.",
        stats.encoded,
    );
    counter(
        page,
        "pointsman_tokenizer_cache_hits_total",
        "Prompts whose token ids were all remembered.",
        stats.cache_hits,
    );
    counter(
        page,
        "pointsman_tokenizer_pooled_prompts_total",
        "Prompts with too much unseen text to be encoded where they arrived.",
        stats.pooled,
    );
    counter(
        page,
        "pointsman_tokenizer_remembered_bytes_total",
        "Bytes of text whose token ids were remembered.",
        stats.remembered_bytes,
    );
    counter(
        page,
        "pointsman_tokenizer_encoded_bytes_total",
        "Bytes of text that were encoded.",
        stats.encoded_bytes,
    );
    counter(
        page,
        "pointsman_tokenizer_cache_evictions_total",
        "Pieces of text whose token ids were let go at the cache's bound.",
        stats.evicted,
    );
    gauge(
        page,
        "pointsman_tokenizer_cache_bytes",
        "Bytes of text and token ids that are remembered.",
        stats.cache_bytes as usize,
    );
}

fn gauge(page: &mut Page, name: &str, help: &str, value: usize) {
    page.value(Kind::Gauge, name, help, value as u64);
}

fn counter(page: &mut Page, name: &str, help: &str, value: u64) {
    page.value(Kind::Counter, name, help, value);
}

#[cfg(test)]
mod tests;
