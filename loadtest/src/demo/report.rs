//! What came out of the two passes: a table for people, one JSON line for scripts, and the verdict.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::SHAPE;
use super::phase::TurnResult;

/// One pass over all conversations.
#[derive(Clone, Debug, Default)]
pub(super) struct PhaseSummary {
    pub(super) name: &'static str,
    pub(super) requests: usize,
    pub(super) failures: Vec<String>,
    pub(super) ttft_p50: Duration,
    pub(super) ttft_p90: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    /// In the order of the workers.
    pub(super) requests_per_worker: Vec<usize>,
}

impl PhaseSummary {
    pub(super) fn new(
        name: &'static str,
        results: Vec<TurnResult>,
        workers: &[SocketAddr],
    ) -> Self {
        let mut summary = Self {
            name,
            requests: SHAPE.conversations * SHAPE.turns,
            requests_per_worker: vec![0; workers.len()],
            ..Self::default()
        };
        let mut ttfts = Vec::with_capacity(results.len());
        for TurnResult {
            conversation,
            turn,
            outcome,
        } in results
        {
            let answer = match outcome {
                Ok(answer) => answer,
                Err(error) => {
                    let place = format!("{name}, chat {}, turn {}", conversation + 1, turn + 1);
                    summary.failures.push(format!("{place}: {error:#}"));
                    continue;
                }
            };
            ttfts.push(answer.ttft);
            summary.prompt_tokens += u64::from(answer.prompt_tokens);
            summary.cached_tokens += u64::from(answer.cached_tokens);
            let address = answer
                .served_by
                .and_then(|address| address.parse::<SocketAddr>().ok());
            let worker = workers.iter().position(|worker| Some(*worker) == address);
            if let Some(worker) = worker {
                summary.requests_per_worker[worker] += 1;
            }
        }
        ttfts.sort_unstable();
        summary.ttft_p50 = percentile(&ttfts, 50);
        summary.ttft_p90 = percentile(&ttfts, 90);
        summary
    }

    /// Prompt tokens that came out of a cache, 0 to 1.
    pub(super) fn cached_share(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    fn succeeded(&self) -> usize {
        self.requests_per_worker.iter().sum()
    }
}

/// Nearest rank: the smallest value that at least `percent` of a hundred do not exceed. Zero without values.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Both passes.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) round_robin: PhaseSummary,
    pub(super) epp: PhaseSummary,
    pub(super) workers: usize,
    pub(super) envoy: String,
}

impl Comparison {
    /// Every request was answered by one of the workers, and epp reused more than round robin.
    pub(super) fn passed(&self) -> bool {
        self.failed() == 0 && self.epp.cached_share() > self.round_robin.cached_share()
    }

    fn requests(&self) -> usize {
        self.round_robin.requests + self.epp.requests
    }

    /// Requests without a whole answer. Those that a failure kept from being sent count too.
    fn failed(&self) -> usize {
        self.requests() - self.round_robin.succeeded() - self.epp.succeeded()
    }

    /// The last line of `--check`.
    pub(super) fn to_json(&self, logs: &Path) -> String {
        let mut object = serde_json::json!({
            "demo": if self.passed() { "ok" } else { "failed" },
            "requests": self.requests(),
            "failed": self.failed(),
            "workers": self.workers,
            "envoy": self.envoy,
            "cached_share_epp": rounded(self.epp.cached_share()),
            "cached_share_round_robin": rounded(self.round_robin.cached_share()),
        });
        if !self.passed() {
            let first = self
                .round_robin
                .failures
                .first()
                .or(self.epp.failures.first());
            let reason = first.map_or("epp reused no more than round robin", String::as_str);
            object["error"] = reason.into();
            object["logs"] = logs.display().to_string().into();
        }
        object.to_string()
    }
}

/// The last line of `--check` when it did not come to a comparison. `logs` is null where there are none.
pub(super) fn error_json(error: &anyhow::Error, logs: Option<&str>) -> String {
    let error = format!("{error:#}");
    serde_json::json!({"demo": "failed", "error": error, "logs": logs}).to_string()
}

fn rounded(share: f64) -> f64 {
    (share * 10_000.0).round() / 10_000.0
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, chats) = (self.round_robin.requests, SHAPE.conversations);
        writeln!(formatter, "\n{chats} chats, {requests} requests, twice:\n")?;
        let [when, p50, p90] = ["", "TTFT p50", "TTFT p90"];
        let [cached, spread] = ["cached prompt tokens", "requests per worker"];
        writeln!(
            formatter,
            "{when:<12}{p50:>10}{p90:>10}{cached:>22}   {spread}"
        )?;
        for pass in [&self.round_robin, &self.epp] {
            let spread: Vec<String> = pass
                .requests_per_worker
                .iter()
                .map(ToString::to_string)
                .collect();
            let cached = format!("{:.1} %", pass.cached_share() * 100.0);
            let (name, spread) = (pass.name, spread.join(" / "));
            let (p50, p90) = (milliseconds(pass.ttft_p50), milliseconds(pass.ttft_p90));
            writeln!(
                formatter,
                "{name:<12}{p50:>10}{p90:>10}{cached:>22}   {spread}"
            )?;
        }
        for failure in self.round_robin.failures.iter().chain(&self.epp.failures) {
            writeln!(formatter, "failed: {failure}")?;
        }
        write!(formatter, "\n{}", self.meaning())
    }
}

impl Comparison {
    fn meaning(&self) -> String {
        let share = |pass: &PhaseSummary| pass.cached_share() * 100.0;
        let (epp, round_robin) = (share(&self.epp), share(&self.round_robin));
        let ratio = self.round_robin.ttft_p50.as_secs_f64() / self.epp.ttft_p50.as_secs_f64();
        let sooner = if ratio.is_finite() && ratio > 1.0 {
            format!(" The median first token came {ratio:.1} times as soon.")
        } else {
            String::new()
        };
        format!(
            "With epp {epp:.0} % of the prompt tokens were in the picked worker's cache, with round \
             robin {round_robin:.0} %.{sooner}"
        )
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;

    const WORKERS: [&str; 2] = ["127.0.0.1:8001", "127.0.0.1:8002"];

    fn answer(ttft_ms: u64, cached_tokens: u32, worker: usize) -> TurnResult {
        let answer = Answer {
            text: "A gateway.".to_owned(),
            finish_reason: "stop".to_owned(),
            ttft: Duration::from_millis(ttft_ms),
            total: Duration::from_millis(100),
            prompt_tokens: 100,
            completion_tokens: 4,
            cached_tokens,
            served_by: Some(WORKERS[worker].to_owned()),
        };
        TurnResult {
            conversation: 0,
            turn: 0,
            outcome: Ok(answer),
        }
    }

    fn summary(name: &'static str, results: Vec<TurnResult>) -> PhaseSummary {
        let requests = results.len();
        let workers = WORKERS.map(|worker| worker.parse().unwrap());
        PhaseSummary {
            requests,
            ..PhaseSummary::new(name, results, &workers)
        }
    }

    fn comparison(round_robin_cached: u32, epp_cached: u32) -> Comparison {
        Comparison {
            round_robin: summary(
                "round robin",
                vec![
                    answer(40, round_robin_cached, 0),
                    answer(80, round_robin_cached, 1),
                ],
            ),
            epp: summary(
                "epp",
                vec![answer(20, epp_cached, 1), answer(30, epp_cached, 1)],
            ),
            workers: 2,
            envoy: "1.40.0".to_owned(),
        }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(5));
        assert_eq!(percentile(&values, 90), Duration::from_millis(9));
        assert_eq!(percentile(&values[..1], 90), Duration::from_millis(1));
        assert_eq!(percentile(&[], 90), Duration::ZERO);
    }

    #[test]
    fn the_table_shows_both_passes() {
        let text = comparison(25, 75).to_string();
        let rows = concat!(
            "              TTFT p50  TTFT p90  cached prompt tokens   requests per worker\n",
            "round robin    40.0 ms   80.0 ms                25.0 %   1 / 1\n",
            "epp            20.0 ms   30.0 ms                75.0 %   0 / 2\n",
        );
        assert!(text.contains(rows), "{text}");
        assert!(
            text.ends_with("The median first token came 2.0 times as soon."),
            "{text}"
        );
    }

    #[test]
    fn a_better_epp_without_failures_passes() {
        let comparison = comparison(25, 75);
        assert!(comparison.passed());
        assert_eq!(
            comparison.to_json(Path::new("/logs")),
            concat!(
                r#"{"demo":"ok","requests":4,"failed":0,"workers":2,"envoy":"1.40.0","#,
                r#""cached_share_epp":0.75,"cached_share_round_robin":0.25}"#
            )
        );
    }

    #[test]
    fn an_equal_share_fails() {
        let comparison = comparison(50, 50);
        assert!(!comparison.passed());
        let json = comparison.to_json(Path::new("/logs"));
        assert!(
            json.contains(r#""demo":"failed""#) && json.contains("no more than"),
            "{json}"
        );
    }

    #[test]
    fn a_failed_request_fails_and_is_named() {
        let mut comparison = comparison(25, 75);
        let outcome = Err(anyhow::anyhow!("status 503"));
        let failed = TurnResult {
            conversation: 4,
            turn: 1,
            outcome,
        };
        comparison.epp = summary("epp", vec![answer(20, 75, 0), failed]);
        assert!(!comparison.passed());
        let json = comparison.to_json(Path::new("/logs"));
        assert!(json.contains(r#""failed":1"#), "{json}");
        assert!(json.contains("epp, chat 5, turn 2: status 503"), "{json}");
    }

    #[test]
    fn an_answer_of_a_stranger_counts_as_failed() {
        let mut stranger = answer(20, 75, 0);
        if let Ok(answer) = &mut stranger.outcome {
            answer.served_by = Some("127.0.0.1:1".to_owned());
        }
        let mut comparison = comparison(25, 75);
        comparison.epp = summary("epp", vec![stranger]);
        assert!(!comparison.passed());
    }
}
