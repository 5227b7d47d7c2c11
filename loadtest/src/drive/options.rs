//! The flags of `loadtest drive`.

use std::path::PathBuf;
use std::time::Duration;

use super::prompt::Form;
use crate::workload::generate::Kind;
use crate::workload::tokens::Vocabulary;
use crate::workload::trace::Extent;

/// How requests of an open loop are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// Independent of one another, at the rate on average.
    Poisson,
    /// At even steps.
    Fixed,
    /// At the workload's own times.
    Trace,
}

/// What a reader of `loadtest drive --help` wants to type.
pub const EXAMPLES: &str = "\
Examples:
  Chats at four rates, and how many requests a second meet the objective:
    loadtest drive --url http://127.0.0.1:8080 --workload multi-turn --rates 1,2,4,8 --duration 120s \\
      --slo-ttft 500ms --slo-itl 50ms --out before.json --html before.html

  The first thousand requests of a recorded trace, twice as fast as recorded:
    loadtest drive --url http://127.0.0.1:8080 --trace conversation_trace.jsonl --requests 1000 --rate-scale 2

  Sixteen agents at once, in small contexts:
    loadtest drive --url http://127.0.0.1:8080 --workload agents --concurrency 16 \\
      --parameters '{\"turns\": 5, \"context_most\": 8000}'

  Over TLS, with an authority of one's own:
    loadtest drive --url https://gateway.example.com --form chat --ca-file ca.pem --rates 1,2

  What has changed:
    loadtest drive --compare before.json after.json --html changes.html
";

/// Flags of `loadtest drive`.
#[derive(Clone, Debug, clap::Args)]
pub struct DriveOptions {
    /// The endpoint, as in http://127.0.0.1:8000 or https://example.com, without /v1.
    #[arg(long, value_name = "URL", required_unless_present = "compare")]
    pub url: Option<String>,

    /// The model to ask for [default: the first that /v1/models names].
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// Sent as `Authorization: Bearer KEY`.
    #[arg(
        long,
        value_name = "KEY",
        env = "OPENAI_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,

    /// PEM file of the authorities that vouch for the server of an https:// URL, in place of the platform's roots.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Take any certificate from the server of an https:// URL. Prompts and the API key may go to anyone.
    #[arg(long, conflicts_with = "ca_file")]
    pub insecure: bool,

    /// Token ids to /v1/completions (exact lengths and prefixes), or text to /v1/chat/completions.
    #[arg(long, value_enum, default_value_t = Form::Tokens)]
    pub form: Form,

    /// The token ids that prompts are made of, the last one excluded.
    #[arg(long, value_name = "FIRST..END", default_value = "100..1000", value_parser = vocabulary)]
    pub vocabulary: Vocabulary,

    /// Answers of exactly the planned length: sends `ignore_eos` and `min_tokens`, and counts another length as an
    /// error [default: true for --form tokens, false for --form chat].
    #[arg(long, value_name = "BOOL")]
    pub ignore_eos: Option<bool>,

    #[command(flatten)]
    pub load: LoadOptions,

    /// Objective: time to the first token, such as 500ms.
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Results")]
    pub slo_ttft: Option<Duration>,

    /// Objective: mean time between two tokens of a request, such as 50ms.
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Results")]
    pub slo_itl: Option<Duration>,

    /// Write the report as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub out: Option<PathBuf>,

    /// Write the report, or the comparison, as one HTML file.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub html: Option<PathBuf>,

    /// Write a JSON object for each request.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub requests_out: Option<PathBuf>,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long, help_heading = "Results")]
    pub json: bool,

    /// Send nothing; hold two reports against each other.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], help_heading = "Results")]
    pub compare: Vec<PathBuf>,
}

/// What is sent, and when. Every command that sends load takes these.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadOptions {
    /// Traffic made from the seed.
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value = "shared-prompts",
        conflicts_with = "trace",
        help_heading = "Workload"
    )]
    pub workload: Kind,

    /// What differs from the kind's defaults, as JSON: '{"turns": 6, "answer": {"mean": 50, "sigma": 0, "most": 50}}'.
    #[arg(
        long,
        value_name = "JSON",
        conflicts_with = "trace",
        help_heading = "Workload"
    )]
    pub parameters: Option<String>,

    /// Recorded traffic: Mooncake's format (.jsonl) or Azure's (.csv), also packed (.zst).
    #[arg(long, value_name = "FILE", help_heading = "Workload")]
    pub trace: Option<PathBuf>,

    /// What of the trace is left out: a number of requests, or a time as in 60s.
    #[arg(
        long,
        value_name = "EXTENT",
        requires = "trace",
        help_heading = "Workload"
    )]
    pub skip: Option<Extent>,

    /// Tokens of a prefix block of the trace [default: 512].
    #[arg(long, value_name = "TOKENS", requires = "trace", help_heading = "Workload", value_parser = clap::value_parser!(u32).range(1..))]
    pub block_tokens: Option<u32>,

    /// Equal seeds send equal requests; another one shares no prefix with it.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Workload")]
    pub seed: u64,

    /// How many requests a run has at most [default: 200 in a closed loop].
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub requests: Option<usize>,

    /// Nothing is begun after it, such as 90s [default: 60s in an open loop without --requests or --trace].
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Load")]
    pub duration: Option<Duration>,

    /// Requests a second; several rates, as in 1,2,4, are as many runs [default: 1, or the trace's own].
    #[arg(
        long,
        visible_alias = "rates",
        value_name = "RATES",
        value_delimiter = ',',
        help_heading = "Load"
    )]
    pub rate: Vec<f64>,

    /// [default: poisson; with --trace and no --rate the trace's times]
    #[arg(long, value_enum, help_heading = "Load")]
    pub arrivals: Option<Arrivals>,

    /// The workload's own times so many times as fast; several are as many runs.
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', conflicts_with_all = ["rate", "concurrency"], requires = "trace", help_heading = "Load")]
    pub rate_scale: Vec<f64>,

    /// A closed loop: always so many at once, the next when one ends; several are as many runs.
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with_all = ["rate", "arrivals"], help_heading = "Load")]
    pub concurrency: Vec<usize>,

    /// The most requests at once in an open loop. One more is not sent, and counted as an error.
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Load")]
    pub in_flight_max: usize,

    /// How long an answer may take, from when its request was due.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = time, help_heading = "Load")]
    pub timeout: Duration,
}

/// `500ms`, `30s`, `5m`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let parsed = units.into_iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    parsed.ok_or_else(|| "not a time such as 500ms, 30s or 5m".to_owned())
}

/// `100..1000`.
fn vocabulary(text: &str) -> Result<Vocabulary, String> {
    let bounds = text.split_once("..").and_then(|(first, end)| {
        let first: u32 = first.parse().ok()?;
        let count = end.parse::<u32>().ok()?.checked_sub(first)?;
        (count > 0).then_some(Vocabulary { first, count })
    });
    bounds.ok_or_else(|| "not a range of token ids such as 100..1000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ranges_are_read() {
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(time("2m"), Ok(Duration::from_mins(2)));
        assert!(time("5").is_err() && time("-1s").is_err());
        assert_eq!(vocabulary("5..7"), Ok(Vocabulary { first: 5, count: 2 }));
        assert!(vocabulary("7..7").is_err() && vocabulary("7").is_err());
    }
}
