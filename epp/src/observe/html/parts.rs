//! The parts of the status page, each one `section`.

use std::fmt::Write as _;

use super::super::decisions::{CandidateRecord, DecisionRecord, Numbered, ProfileRecord};
use super::super::status::{BandView, EndpointView, PoolView, Severity, StatusView};
use super::text::{Escaped, age, bytes, meter, share, time_of_day};

/// Decisions that the page shows; the JSON has all.
const DECISIONS_SHOWN: usize = 20;

/// Labels of one endpoint that are shown.
const LABELS_SHOWN: usize = 8;

// Writing to a string cannot fail: all results of `write!` below are let go.

pub(super) fn problems(view: &StatusView, html: &mut String) {
    html.push_str("<section id=\"problems\" aria-live=\"polite\">");
    let problems = view.problems();
    if problems.is_empty() {
        html.push_str("<p class=\"fine\">No problems.</p>");
    } else {
        html.push_str("<ul class=\"problems\">");
        for problem in &problems {
            let class = match problem.severity {
                Severity::Bad => "bad",
                Severity::Warning => "warning",
            };
            let text = Escaped(&problem.text);
            let _ = write!(html, "<li class=\"{class}\">{text}</li>");
        }
        html.push_str("</ul>");
    }
    html.push_str("</section>");
}

pub(super) fn pool(number: usize, pool: &PoolView, html: &mut String) {
    let name = Escaped(&pool.name);
    let healthy = pool.endpoints.iter().filter(|one| one.healthy).count();
    let _ = write!(
        html,
        "<section id=\"pool-{number}\"><h2>Pool {name}</h2><p>{healthy} of {} endpoints healthy",
        pool.endpoints.len()
    );
    if let Some(saturation) = pool.saturation {
        let class = if saturation >= 1.0 { "bad" } else { "soft" };
        let _ = write!(
            html,
            " · saturation <span class=\"{class}\">{saturation:.2}</span>"
        );
    }
    let _ = write!(
        html,
        " · prefix index {} blocks, {}, {} of prompts found</p>",
        pool.index.entries,
        bytes(pool.index.bytes),
        share(pool.index.hit_ratio)
    );
    html.push_str(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Endpoints\"><table>\
         <thead><tr><th>Endpoint</th><th>Address</th><th>Role, labels</th><th>State</th>\
         <th class=\"n\">Waiting</th><th class=\"n\">Running</th><th class=\"n\">KV cache</th>\
         <th class=\"n\">Ours</th><th class=\"n\">Our tokens</th><th class=\"n\">Cached</th>\
         <th class=\"n\">Page</th></tr></thead><tbody>",
    );
    // The sick first; each group in the pool's own order, so that rows do not jump.
    for is_healthy in [false, true] {
        for endpoint in pool
            .endpoints
            .iter()
            .filter(|one| one.healthy == is_healthy)
        {
            row(endpoint, html);
        }
    }
    html.push_str("</tbody></table></div>");
    if !pool.bands.is_empty() {
        bands(number, &pool.bands, html);
    }
    html.push_str("</section>");
}

fn row(endpoint: &EndpointView, html: &mut String) {
    let (class, state) = if endpoint.healthy {
        ("good", "healthy")
    } else {
        ("bad", endpoint.problem.as_deref().unwrap_or("unhealthy"))
    };
    let mut labels = String::new();
    for (key, value) in endpoint.labels.iter().take(LABELS_SHOWN) {
        let _ = write!(labels, " {}={}", Escaped(key), Escaped(value));
    }
    let _ = write!(
        html,
        "<tr><td class=\"name\">{}</td><td>{}</td><td class=\"wrap\">{}<span class=\"soft\">{labels}</span></td>\
         <td class=\"{class} wrap\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
        Escaped(&endpoint.name),
        Escaped(&endpoint.address),
        Escaped(&endpoint.role),
        Escaped(state),
        endpoint.waiting,
        endpoint.running,
        meter(f64::from(endpoint.kv_usage)),
        endpoint.in_flight_requests,
        endpoint.in_flight_tokens,
        share(endpoint.cached_share),
        age(endpoint.page_age_ms),
    );
}

fn bands(number: usize, bands: &[BandView], html: &mut String) {
    html.push_str(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Priority bands\"><table>\
         <caption>Priority bands</caption><thead><tr><th class=\"n\">Priority</th>\
         <th class=\"n\">Waiting</th><th class=\"n\">Limit</th><th class=\"n\">Bytes</th>\
         <th class=\"n\">Limit</th><th>Longest queues</th></tr></thead><tbody>",
    );
    for band in bands {
        let limit = |limit: u64, shown: String| match limit {
            0 => "none".to_owned(),
            _ => shown,
        };
        let _ = write!(
            html,
            "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"wrap\">",
            band.priority,
            band.waiting,
            limit(band.requests_limit, band.requests_limit.to_string()),
            bytes(band.bytes),
            limit(band.bytes_limit, bytes(band.bytes_limit)),
        );
        if !band.queues.is_empty() {
            let key = format!("band-{number}-{}", band.priority);
            let _ = write!(
                html,
                "<details data-key=\"{key}\"><summary>{} queues</summary><ul>",
                band.queues.len()
            );
            for queue in &band.queues {
                let _ = write!(
                    html,
                    "<li>{}: {} waiting, {}, the oldest for {}</li>",
                    Escaped(&queue.fairness_id),
                    queue.waiting,
                    bytes(queue.bytes),
                    age(Some(queue.oldest_ms)),
                );
            }
            html.push_str("</ul></details>");
        }
        html.push_str("</td></tr>");
    }
    html.push_str("</tbody></table></div>");
}

pub(super) fn decisions(view: &StatusView, html: &mut String) {
    html.push_str("<section id=\"decisions\"><h2>Latest picks</h2>");
    if view.decisions.is_empty() {
        html.push_str("<p class=\"soft\">No request has come yet.</p>");
    }
    for decision in view.decisions.iter().take(DECISIONS_SHOWN) {
        one_decision(decision, html);
    }
    html.push_str("</section>");
}

fn one_decision(numbered: &Numbered, html: &mut String) {
    let record = &numbered.record;
    let _ = write!(
        html,
        "<details data-key=\"decision-{}\"><summary>{} {} → {} <span class=\"soft\">{} prompt tokens, \
         picked in {} µs{}</span></summary>",
        numbered.id,
        time_of_day(record.at_unix_ms),
        Escaped(&record.model),
        Escaped(&picked(record)),
        record.prompt_tokens,
        record.pick_us,
        outcome(record),
    );
    let _ = write!(
        html,
        "<dl><dt>Request</dt><dd>{}</dd><dt>Pool</dt><dd>{}</dd><dt>Target model</dt><dd>{}</dd>\
         <dt>Tenant, priority</dt><dd>{}, {}</dd></dl>",
        Escaped(&record.request_id),
        Escaped(&record.pool),
        Escaped(&record.target_model),
        Escaped(&record.fairness_id),
        record.priority,
    );
    for profile in &record.profiles {
        one_profile(profile, html);
    }
    html.push_str("</details>");
}

fn picked(record: &DecisionRecord) -> String {
    if let Some(refused) = &record.refused {
        return format!("refused: {refused}");
    }
    let firsts = record
        .profiles
        .iter()
        .filter_map(|profile| profile.endpoints.first());
    firsts.map(String::as_str).collect::<Vec<_>>().join(" + ")
}

fn outcome(record: &DecisionRecord) -> String {
    let Some(outcome) = &record.outcome else {
        return String::new();
    };
    let ttft = outcome
        .ttft_ms
        .map(|ms| format!(", first token after {ms:.0} ms"));
    let cached = outcome
        .cached_tokens
        .map(|tokens| format!(", {tokens} tokens cached"));
    format!(
        "; status {}{}, ended after {:.0} ms{}",
        outcome.status,
        ttft.unwrap_or_default(),
        outcome.duration_ms,
        cached.unwrap_or_default()
    )
}

fn one_profile(profile: &ProfileRecord, html: &mut String) {
    let _ = write!(
        html,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Candidates\"><table>\
         <caption>Profile {}: {}</caption><thead><tr><th>Candidate</th><th class=\"n\">Total</th>\
         <th class=\"n\">Cached tokens</th>",
        Escaped(&profile.profile),
        Escaped(&profile.reason),
    );
    let scorers = profile
        .candidates
        .first()
        .map_or(&[][..], |candidate| &candidate.scores);
    for score in scorers {
        let _ = write!(
            html,
            "<th class=\"n\">{} × {}</th>",
            Escaped(score.scorer),
            score.weight
        );
    }
    html.push_str("</tr></thead><tbody>");
    for candidate in &profile.candidates {
        one_candidate(candidate, profile, html);
    }
    html.push_str("</tbody></table></div>");
    if profile.left_out > 0 {
        let _ = write!(
            html,
            "<p class=\"soft\">{} candidates with lower totals are not shown.</p>",
            profile.left_out
        );
    }
}

fn one_candidate(candidate: &CandidateRecord, profile: &ProfileRecord, html: &mut String) {
    let class = if profile.endpoints.contains(&candidate.endpoint) {
        " class=\"picked\""
    } else {
        ""
    };
    let _ = write!(
        html,
        "<tr{class}><td class=\"name\">{}</td><td class=\"n\">{:.3}</td><td class=\"n\">{}</td>",
        Escaped(&candidate.endpoint),
        candidate.total,
        candidate.cached_tokens
    );
    for score in &candidate.scores {
        let _ = write!(html, "<td class=\"n\">{:.3}</td>", score.value);
    }
    html.push_str("</tr>");
}

pub(super) fn traffic(view: &StatusView, html: &mut String) {
    let leases = &view.leases;
    let _ = write!(
        html,
        "<section id=\"traffic\"><h2>Requests in flight</h2><dl><dt>Counted now</dt><dd>{}</dd>\
         <dt>Expired since the start</dt><dd>{}</dd>",
        leases.active, leases.expired
    );
    for (kind, count) in &view.access_log {
        let _ = write!(
            html,
            "<dt>Access log: {}</dt><dd>{count}</dd>",
            Escaped(kind)
        );
    }
    html.push_str("</dl></section>");
}

pub(super) fn config(view: &StatusView, html: &mut String) {
    let config = &view.config;
    let _ = write!(
        html,
        "<section id=\"config\"><h2>Configuration</h2><dl><dt>From</dt><dd>{}</dd>\
         <dt>Loaded at</dt><dd>{}</dd><dt>Changes taken over</dt><dd>{}</dd>\
         <dt>Changes refused</dt><dd>{}</dd>",
        Escaped(&config.source),
        time_of_day(config.loaded_at_unix_ms),
        config.reloads_applied,
        config.reloads_refused,
    );
    if let Some(error) = &config.last_error {
        let _ = write!(
            html,
            "<dt>Last error</dt><dd class=\"bad\">{}</dd>",
            Escaped(error)
        );
    }
    for warning in &config.warnings {
        let _ = write!(html, "<dt>Warning</dt><dd>{}</dd>", Escaped(warning));
    }
    html.push_str("</dl>");
    if !config.resolved.is_null() {
        let text = format!("{:#}", config.resolved);
        let _ = write!(
            html,
            "<details data-key=\"config\"><summary>With every default</summary><pre tabindex=\"0\">{}</pre></details>",
            Escaped(&text)
        );
    }
    html.push_str("</section>");
}
