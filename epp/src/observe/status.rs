//! What the picker is doing right now, as plain values: what the status page shows and
//! `/debug/status` returns.
//!
//! Whoever knows the rooms fills a [`StatusView`]; what of it deserves attention is worked out
//! here, so that page and JSON say the same.

use serde::Serialize;
use serde_json::Value;

use super::decisions::Numbered;

/// The whole.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct StatusView {
    pub build: BuildView,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    pub uptime_ms: u64,
    pub pools: Vec<PoolView>,
    pub config: ConfigView,
    pub leases: LeasesView,
    /// Access-log entries by kind.
    pub access_log: Vec<(String, u64)>,
    /// The newest first.
    pub decisions: Vec<Numbered>,
}

/// The build that runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BuildView {
    pub version: &'static str,
    pub commit: &'static str,
}

impl Default for BuildView {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("POINTSMAN_COMMIT").unwrap_or("unknown"),
        }
    }
}

/// One pool.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct PoolView {
    pub name: String,
    pub endpoints: Vec<EndpointView>,
    /// 1 and above hold requests back; `None` where nothing measures it.
    pub saturation: Option<f64>,
    pub index: IndexView,
    /// Highest priority first; empty without flow control.
    pub bands: Vec<BandView>,
}

/// One endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct EndpointView {
    pub name: String,
    pub address: String,
    /// `prefill`, `decode`, ... by its labels; empty where it does everything.
    pub role: String,
    pub labels: Vec<(String, String)>,
    pub healthy: bool,
    /// Why it is not, where that is known.
    pub problem: Option<String>,
    pub waiting: u32,
    pub running: u32,
    /// 0 to 1.
    pub kv_usage: f32,
    pub in_flight_requests: u32,
    pub in_flight_tokens: u32,
    /// Share of its latest prompts' tokens that were cached, 0 to 1; `None` before the first.
    pub cached_share: Option<f64>,
    /// Age of its last metrics page in milliseconds; `None` = never read.
    pub page_age_ms: Option<u64>,
    /// Requests that may be there although nothing was heard of them in time.
    pub expired_leases: u64,
}

/// The prefix index of a pool.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct IndexView {
    pub entries: u64,
    pub bytes: u64,
    /// Share of prompt tokens found, 0 to 1; `None` before the first prompt.
    pub hit_ratio: Option<f64>,
}

/// One priority band.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct BandView {
    pub priority: i32,
    pub waiting: u64,
    pub bytes: u64,
    /// 0 = no limit.
    pub requests_limit: u64,
    /// 0 = no limit.
    pub bytes_limit: u64,
    /// The longest, at most [`QUEUES_SHOWN`].
    pub queues: Vec<QueueView>,
}

/// Queues of one band that the page shows.
pub const QUEUES_SHOWN: usize = 20;

/// What waits of one tenant.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct QueueView {
    pub fairness_id: String,
    pub waiting: u64,
    pub bytes: u64,
    /// How long its oldest request has waited.
    pub oldest_ms: u64,
}

/// The configuration.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct ConfigView {
    /// A file, or in words where it came from.
    pub source: String,
    /// Milliseconds since 1970.
    pub loaded_at_unix_ms: u64,
    pub reloads_applied: u64,
    pub reloads_refused: u64,
    /// Why the latest change was refused; `None` when it was not.
    pub last_error: Option<String>,
    pub warnings: Vec<String>,
    /// With every default filled in.
    pub resolved: Value,
}

/// Requests counted against endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct LeasesView {
    pub active: u64,
    /// Since the start.
    pub expired: u64,
    /// In the last minutes: what the page warns of.
    pub expired_lately: u64,
}

/// How much a problem matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Requests fail or wait.
    Bad,
    /// Something is not as it should be, and requests are served.
    Warning,
}

/// Something that deserves attention.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    pub severity: Severity,
    pub text: String,
}

/// A metrics page that is older than this is a problem, although its endpoint counts as healthy.
const STALE_MS: u64 = 10_000;

/// Unhealthy endpoints that are named one by one.
const NAMED_MAX: usize = 5;

impl StatusView {
    /// What deserves attention, the worst first.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for pool in &self.pools {
            problems_of(pool, &mut problems);
        }
        if let Some(error) = &self.config.last_error {
            let text = format!(
                "The changed configuration was refused; the one before it is in force. {error}"
            );
            problems.push(warning(text));
        }
        if self.leases.expired_lately > 0 {
            let count = self.leases.expired_lately;
            problems.push(warning(format!(
                "{count} {} lately: nothing was heard of requests in time. Does the gateway send its access log here?",
                if count == 1 { "lease expired" } else { "leases expired" }
            )));
        }
        problems.sort_by_key(|problem| problem.severity);
        problems
    }

    /// The view and its problems as one object.
    pub fn to_json(&self) -> Value {
        #[derive(Serialize)]
        struct WithProblems<'a> {
            problems: Vec<Problem>,
            #[serde(flatten)]
            view: &'a StatusView,
        }
        let problems = self.problems();
        // Only maps with keys that JSON lacks could fail.
        serde_json::to_value(WithProblems {
            problems,
            view: self,
        })
        .unwrap_or_default()
    }
}

fn problems_of(pool: &PoolView, problems: &mut Vec<Problem>) {
    let name = &pool.name;
    let sick: Vec<&EndpointView> = pool
        .endpoints
        .iter()
        .filter(|endpoint| !endpoint.healthy)
        .collect();
    if pool.endpoints.is_empty() {
        problems.push(bad(format!(
            "Pool {name} has no endpoints: every request is answered with 503."
        )));
    } else if sick.len() == pool.endpoints.len() {
        problems.push(bad(format!("No endpoint of pool {name} answers.")));
    }
    for endpoint in sick.iter().take(NAMED_MAX) {
        let why = endpoint
            .problem
            .as_deref()
            .unwrap_or("does not answer its metrics page");
        problems.push(warning(format!(
            "Endpoint {} of pool {name} is unhealthy: {why}.",
            endpoint.name
        )));
    }
    if sick.len() > NAMED_MAX {
        let more = sick.len() - NAMED_MAX;
        problems.push(warning(format!(
            "{more} more endpoints of pool {name} are unhealthy."
        )));
    }
    if let Some(saturation) = pool.saturation.filter(|saturation| *saturation >= 1.0) {
        problems.push(bad(format!(
            "Pool {name} is saturated ({saturation:.2}): requests wait or are refused."
        )));
    }
    let is_stale = |endpoint: &&EndpointView| {
        endpoint.healthy && endpoint.page_age_ms.is_some_and(|age_ms| age_ms > STALE_MS)
    };
    let stale = pool.endpoints.iter().filter(is_stale).count();
    if stale > 0 {
        problems.push(warning(format!(
            "Pool {name}: the signals of {stale} healthy endpoint(s) are older than 10 s."
        )));
    }
}

fn bad(text: String) -> Problem {
    Problem {
        severity: Severity::Bad,
        text,
    }
}

fn warning(text: String) -> Problem {
    Problem {
        severity: Severity::Warning,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(healthy: &[bool]) -> PoolView {
        let endpoint = |(number, healthy): (usize, &bool)| EndpointView {
            name: format!("e{number}"),
            healthy: *healthy,
            page_age_ms: Some(20),
            ..EndpointView::default()
        };
        PoolView {
            name: "p".to_owned(),
            endpoints: healthy.iter().enumerate().map(endpoint).collect(),
            saturation: Some(0.5),
            ..PoolView::default()
        }
    }

    fn texts(view: &StatusView) -> Vec<String> {
        let problems = view.problems();
        problems.into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn nothing_wrong_is_no_problem() {
        let view = StatusView {
            pools: vec![pool(&[true, true])],
            ..StatusView::default()
        };
        assert_eq!(texts(&view), Vec::<String>::new());
    }

    #[test]
    fn problems_come_worst_first_and_each_is_named() {
        let mut pool = pool(&[true, false]);
        pool.saturation = Some(1.0);
        pool.endpoints[0].page_age_ms = Some(60_000);
        let mut view = StatusView {
            pools: vec![pool],
            ..StatusView::default()
        };
        view.config.last_error = Some("no such plugin".to_owned());
        view.leases.expired_lately = 2;
        let texts = texts(&view);
        let starts = [
            "Pool p is saturated (1.00)",
            "Endpoint e1 of pool p is unhealthy",
            "Pool p: the signals of 1",
            "The changed configuration was refused",
            "2 leases expired lately",
        ];
        assert_eq!(texts.len(), starts.len(), "{texts:#?}");
        for (text, start) in texts.iter().zip(starts) {
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn many_sick_endpoints_are_counted_not_listed() {
        let view = StatusView {
            pools: vec![pool(&[false; 9])],
            ..StatusView::default()
        };
        let texts = texts(&view);
        assert_eq!(texts.len(), 1 + NAMED_MAX + 1);
        assert_eq!(texts.first().unwrap(), "No endpoint of pool p answers.");
        assert!(texts.last().unwrap().starts_with("4 more"));
    }

    #[test]
    fn a_pool_without_endpoints_is_bad() {
        let view = StatusView {
            pools: vec![pool(&[])],
            ..StatusView::default()
        };
        assert_eq!(view.to_json()["problems"][0]["severity"], "bad");
    }
}
