//! Tests of the status page as text; the browser's view of it is tested end to end.

use std::sync::Arc;

use serde_json::json;

use super::super::decisions::{
    CandidateRecord, DecisionRecord, Numbered, OutcomeRecord, ProfileRecord, ScoreRecord,
};
use super::super::status::{BandView, EndpointView, PoolView, QueueView};
use super::*;

const HOSTILE: &str = "</script><img src=x onerror=\"alert('1')\">&";

/// A view in which every text is this one.
fn filled(name: &str) -> StatusView {
    let text = || name.to_owned();
    let endpoint = EndpointView {
        name: text(),
        address: text(),
        role: text(),
        labels: vec![(text(), text())],
        problem: Some(text()),
        ..EndpointView::default()
    };
    let band = BandView {
        priority: 7,
        queues: vec![QueueView {
            fairness_id: text(),
            ..QueueView::default()
        }],
        ..BandView::default()
    };
    let record = DecisionRecord {
        request_id: text(),
        pool: text(),
        model: text(),
        target_model: text(),
        fairness_id: text(),
        profiles: vec![ProfileRecord {
            profile: text(),
            endpoints: vec![text()],
            reason: text(),
            candidates: vec![CandidateRecord {
                endpoint: text(),
                total: 1.5,
                cached_tokens: 48,
                scores: vec![ScoreRecord {
                    scorer: "queue-scorer",
                    weight: 2.0,
                    value: 0.75,
                }],
            }],
            left_out: 3,
        }],
        outcome: Some(OutcomeRecord {
            served: Some(text()),
            ..OutcomeRecord::default()
        }),
        ..DecisionRecord::default()
    };
    let refused = DecisionRecord {
        refused: Some(text()),
        ..DecisionRecord::default()
    };
    let mut view = StatusView {
        pools: vec![PoolView {
            name: text(),
            endpoints: vec![endpoint],
            bands: vec![band],
            ..PoolView::default()
        }],
        access_log: vec![(text(), 4)],
        decisions: [record, refused]
            .map(|record| Numbered {
                id: 1,
                record: Arc::new(record),
            })
            .to_vec(),
        ..StatusView::default()
    };
    view.config.source = text();
    view.config.last_error = Some(text());
    view.config.warnings = vec![text()];
    view.config.resolved = json!({ name: name });
    view
}

#[test]
fn hostile_names_stay_text() {
    let hostile = page(&filled(HOSTILE));
    let harmless = page(&filled("name"));
    for markup in ["<img", "onerror=\"", "</script>"] {
        assert_eq!(
            hostile.matches(markup).count(),
            harmless.matches(markup).count(),
            "{markup}"
        );
    }
    // As many elements and attributes as with a name that needs no escaping.
    for sign in ['<', '>', '"', '\''] {
        let count = |html: &str| html.matches(sign).count();
        assert_eq!(count(&hostile), count(&harmless), "{sign}");
    }
    assert!(hostile.contains("&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;&amp;"));
}

#[test]
fn the_page_shows_each_part() {
    let html = page(&filled("name"));
    for part in [
        "<li class=\"bad\">No endpoint of pool name answers.</li>",
        "<h2>Pool name</h2>",
        "queue-scorer × 2",
        "<td class=\"n\">0.750</td>",
        "3 candidates with lower totals are not shown.",
        "<dt>Last error</dt><dd class=\"bad\">name</dd>",
        "<dt>Access log: name</dt><dd>4</dd>",
        "1 queues",
    ] {
        assert!(html.contains(part), "{part}\n{html}");
    }
}

#[test]
fn problems_come_before_everything_else() {
    let html = sections(&filled("name"));
    assert!(html.starts_with("<section id=\"problems\""));
    assert!(
        sections(&StatusView::default()).contains("No problems."),
        "nothing wrong is said, too"
    );
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let html = page(&filled("name"));
    for reference in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!html.contains(reference), "{reference}");
    }
    assert!(html.contains("<noscript><meta http-equiv=\"refresh\""));
}

#[test]
fn two_looks_at_the_same_state_are_the_same_text() {
    assert_eq!(page(&filled("name")), page(&filled("name")));
}
