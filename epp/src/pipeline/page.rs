//! Counts that the rooms keep themselves, written to the page at the moment of a scrape.
//!
//! The fleet, the tokenizers and the index count in atomics of their own and know nothing of
//! metrics; here their counts get names. A count with a name in the field has that name, the rest
//! is ours.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::fleet::kv_events::{Count, KvEventCounters};
use crate::fleet::scrape::ScrapeCounters;
use crate::index::IndexStats;
use crate::tokens::TokensStats;

/// Appends the state of the prefix index.
pub fn render_index(stats: &IndexStats, page: &mut String) {
    gauge(
        page,
        "llm_d_epp_prefix_indexer_size",
        "Blocks in the prefix index, each counted once per endpoint.",
        stats.blocks,
    );
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

/// Appends what came over the KV-event subscriptions.
pub fn render_kv_events(counters: &KvEventCounters, page: &mut String) {
    for (name, help, count) in events_taken(counters)
        .into_iter()
        .chain(events_missed(counters))
    {
        counter(page, name, help, count.get());
    }
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
pub fn render_scrapes(counters: &ScrapeCounters, page: &mut String) {
    let of = |value: &AtomicU64| value.load(Relaxed);
    counter(
        page,
        "pointsman_scrape_pages_total",
        "Metrics pages read from workers.",
        of(&counters.pages),
    );
    let name = "llm_d_epp_datalayer_poll_errors_total";
    heading(
        page,
        "counter",
        name,
        "Metrics pages that could not be read.",
    );
    let _ = writeln!(
        page,
        "{name}{{source_type=\"metrics-data-source\"}} {}",
        of(&counters.errors)
    );
    counter(
        page,
        "pointsman_scrape_unreadable_total",
        "Metrics pages without the series of their engine.",
        of(&counters.unreadable),
    );
}

/// Appends what the tokenizers did.
pub fn render_tokens(stats: &TokensStats, page: &mut String) {
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

fn gauge(page: &mut String, name: &str, help: &str, value: usize) {
    heading(page, "gauge", name, help);
    // Writing to a string cannot fail.
    let _ = writeln!(page, "{name} {value}");
}

fn counter(page: &mut String, name: &str, help: &str, value: u64) {
    heading(page, "counter", name, help);
    let _ = writeln!(page, "{name} {value}");
}

fn heading(page: &mut String, kind: &str, name: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_help_type_and_value_under_a_name_of_its_own() {
        let mut page = String::new();
        render_index(
            &IndexStats {
                blocks: 3,
                ..IndexStats::default()
            },
            &mut page,
        );
        render_kv_events(&KvEventCounters::default(), &mut page);
        render_scrapes(&ScrapeCounters::default(), &mut page);
        render_tokens(&TokensStats::default(), &mut page);
        assert!(
            page.contains("\nllm_d_epp_prefix_indexer_size 3\n"),
            "{page}"
        );
        let lines: Vec<&str> = page.lines().collect();
        let mut names = Vec::new();
        for series in lines.chunks(3) {
            let name = series[2].split(['{', ' ']).next().unwrap();
            assert!(
                series[0].starts_with(&format!("# HELP {name} ")),
                "{}",
                series[0]
            );
            assert!(
                series[1].starts_with(&format!("# TYPE {name} ")),
                "{}",
                series[1]
            );
            assert!(!names.contains(&name), "{name} twice");
            names.push(name);
        }
    }
}
