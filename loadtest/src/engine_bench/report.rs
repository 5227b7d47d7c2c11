//! What is said of the measurements: a table for people, one JSON object of ratios for programs.

use std::fmt;

use serde_json::{Map, Value, json};

use super::measure::LongPrompt;
use super::model::BenchModel;
use super::peers::Peer;
use super::{EngineBenchOptions, median, percentile};

/// Tokens a second of one engine in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    pub(super) decode_1: f64,
    pub(super) decode_8: f64,
    pub(super) prefill: f64,
}

/// One turn of everybody. `engines` has the worker in bf16, the worker in int8, then the peers.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// Bytes a second.
    pub(super) bandwidth: f64,
    pub(super) engines: Vec<Engine>,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub(super) struct Report {
    parameters: u64,
    model_bytes: u64,
    threads: u32,
    /// Names with versions, in the order of [`Round::engines`].
    names: Vec<(String, String)>,
    pub(super) rounds: Vec<Round>,
    /// Seconds to the first token of a prompt, new and again.
    pub(super) cached: (f64, f64),
    pub(super) long_prompt: LongPrompt,
    /// Seconds of each scrape.
    pub(super) scrapes: Vec<f64>,
    /// Streamed tokens a second of the simulated backend.
    pub(super) sim_tokens: Option<f64>,
}

const BF16: usize = 0;
const INT8: usize = 1;

impl Report {
    pub(super) fn new(model: &BenchModel, options: &EngineBenchOptions, peers: &[Peer]) -> Self {
        let own = env!("CARGO_PKG_VERSION");
        let mut names = vec![
            ("pointsman".to_owned(), own.to_owned()),
            ("pointsman_int8".to_owned(), own.to_owned()),
        ];
        names.extend(peers.iter().map(|p| (p.name.clone(), p.version.clone())));
        Self {
            parameters: model.parameters,
            model_bytes: model.bytes,
            threads: options.threads,
            names,
            rounds: Vec::new(),
            cached: (0.0, 0.0),
            long_prompt: LongPrompt::default(),
            scrapes: Vec::new(),
            sim_tokens: None,
        }
    }

    pub(super) fn to_json(&self) -> String {
        let engines: Map<String, Value> = self
            .names
            .iter()
            .enumerate()
            .map(|(index, (name, version))| {
                let value = json!({
                    "version": version,
                    "decode_1_tokens_per_s": rounded(self.middle(index, |e| e.decode_1)),
                    "decode_8_tokens_per_s": rounded(self.middle(index, |e| e.decode_8)),
                    "prefill_512_tokens_per_s": rounded(self.middle(index, |e| e.prefill)),
                });
                (name.clone(), value)
            })
            .collect();
        let long = &self.long_prompt;
        json!({
            "parameters": self.parameters,
            "weight_bytes": self.model_bytes,
            "threads": self.threads,
            "rounds": self.rounds.len(),
            "memory_gb_per_s": rounded(self.bandwidth().map(|bytes| bytes / 1e9)),
            "engines": engines,
            "ratios": self.ratios(),
            "ttft_2000_uncached_s": rounded(Some(self.cached.0)),
            "ttft_2000_cached_s": rounded(Some(self.cached.1)),
            "gap_p99_without_long_prompt_s": rounded(Some(long.gap_without)),
            "gap_p99_beside_long_prompt_s": rounded(Some(long.gap_with)),
            "ttft_16000_beside_chats_s": rounded(Some(long.first_token)),
            "scrape_p50_s": rounded(median(&self.scrapes)),
            "scrape_p99_s": rounded(percentile(&self.scrapes, 0.99)),
            "sim_streamed_tokens_per_s": rounded(self.sim_tokens),
        })
        .to_string()
    }

    /// What the goals are about.
    fn ratios(&self) -> Value {
        let mut ratios = Map::new();
        let mut put = |name: String, value: Option<f64>| {
            ratios.insert(name, rounded(value));
        };
        put("decode_1_of_bandwidth".to_owned(), self.bandwidth_share());
        for (index, (name, _)) in self.names.iter().enumerate().skip(INT8 + 1) {
            let against = |value: fn(&Engine) -> f64| self.ratio(BF16, index, value);
            put(format!("decode_1_to_{name}"), against(|e| e.decode_1));
            put(format!("decode_8_to_{name}"), against(|e| e.decode_8));
            put(format!("prefill_512_to_{name}"), against(|e| e.prefill));
        }
        let int8 = self.ratio(INT8, BF16, |e| e.decode_1);
        put("int8_decode_1_to_bf16".to_owned(), int8);
        let (uncached, cached) = self.cached;
        put(
            "ttft_uncached_to_cached".to_owned(),
            Some(uncached / cached),
        );
        let long = &self.long_prompt;
        let gap = long.gap_with / long.gap_without;
        put(
            "gap_p99_beside_long_prompt_to_without".to_owned(),
            Some(gap),
        );
        Value::Object(ratios)
    }

    /// Median over the rounds of how `one` compares with `other`.
    fn ratio(&self, one: usize, other: usize, value: fn(&Engine) -> f64) -> Option<f64> {
        let ratios = self.rounds.iter().filter_map(|round| {
            let (one, other) = (round.engines.get(one)?, round.engines.get(other)?);
            Some(value(one) / value(other))
        });
        median(&ratios.collect::<Vec<_>>())
    }

    fn middle(&self, index: usize, value: fn(&Engine) -> f64) -> Option<f64> {
        let values = self
            .rounds
            .iter()
            .filter_map(|round| round.engines.get(index));
        median(&values.map(value).collect::<Vec<_>>())
    }

    fn bandwidth(&self) -> Option<f64> {
        let all: Vec<f64> = self.rounds.iter().map(|round| round.bandwidth).collect();
        median(&all)
    }

    /// Bytes of weights read in a second by decoding alone, as a share of what memory gives.
    fn bandwidth_share(&self) -> Option<f64> {
        let shares = self.rounds.iter().filter_map(|round| {
            let engine = round.engines.get(BF16)?;
            Some(engine.decode_1 * self.model_bytes as f64 / round.bandwidth)
        });
        median(&shares.collect::<Vec<_>>())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "\n{:.1} million parameters, {} MB in bf16, {} threads, {} rounds; memory gives {:.1} GB/s\n",
            self.parameters as f64 / 1e6,
            self.model_bytes / 1_000_000,
            self.threads,
            self.rounds.len(),
            self.bandwidth().unwrap_or_default() / 1e9,
        )?;
        writeln!(
            out,
            "{:<28}{:>14}{:>14}{:>16}",
            "tokens/s, median", "decode × 1", "decode × 8", "prefill of 512"
        )?;
        for (index, (name, version)) in self.names.iter().enumerate() {
            writeln!(
                out,
                "{:<28}{:>14.1}{:>14.1}{:>16.0}",
                format!("{name} {version}"),
                self.middle(index, |e| e.decode_1).unwrap_or_default(),
                self.middle(index, |e| e.decode_8).unwrap_or_default(),
                self.middle(index, |e| e.prefill).unwrap_or_default(),
            )?;
        }
        let (uncached, cached) = self.cached;
        let long = &self.long_prompt;
        writeln!(
            out,
            "\nfirst token of 2,000: {:.1} ms new, {:.2} ms cached",
            uncached * 1e3,
            cached * 1e3
        )?;
        writeln!(
            out,
            "gaps of running chats, p99: {:.1} ms, and {:.1} ms while 16,000 tokens prefill ({:.1} s)",
            long.gap_without * 1e3,
            long.gap_with * 1e3,
            long.first_token,
        )?;
        writeln!(
            out,
            "scrapes beside running chats: {:.2} ms, p99 {:.2} ms",
            median(&self.scrapes).unwrap_or_default() * 1e3,
            percentile(&self.scrapes, 0.99).unwrap_or_default() * 1e3,
        )?;
        writeln!(
            out,
            "simulated backend: {:.0} streamed tokens/s",
            self.sim_tokens.unwrap_or_default()
        )
    }
}

/// Four significant digits: more would be noise.
fn rounded(value: Option<f64>) -> Value {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return Value::Null;
    };
    if value == 0.0 {
        return json!(0.0);
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    json!((value * scale).round() / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(speed: f64) -> Engine {
        Engine {
            decode_1: speed,
            decode_8: 4.0 * speed,
            prefill: 10.0 * speed,
        }
    }

    fn report() -> Report {
        let round = |bandwidth: f64, worker: f64| Round {
            bandwidth,
            engines: vec![engine(worker), engine(2.0 * worker), engine(50.0)],
        };
        let name = |name: &str| (name.to_owned(), "1".to_owned());
        Report {
            parameters: 100,
            model_bytes: 200,
            threads: 2,
            names: vec![name("pointsman"), name("pointsman_int8"), name("peer")],
            rounds: vec![
                round(20_000.0, 90.0),
                round(20_000.0, 60.0),
                round(10_000.0, 45.0),
            ],
            cached: (0.4, 0.01),
            long_prompt: LongPrompt {
                gap_without: 0.02,
                gap_with: 0.05,
                first_token: 14.0,
            },
            scrapes: vec![0.001, 0.003, 0.002],
            sim_tokens: None,
        }
    }

    #[test]
    fn ratios_are_medians_of_the_rounds_ratios() {
        let json: Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!(json["ratios"]["decode_1_to_peer"], 1.2);
        assert_eq!(json["ratios"]["decode_1_of_bandwidth"], 0.9);
        assert_eq!(json["ratios"]["int8_decode_1_to_bf16"], 2.0);
        assert_eq!(json["ratios"]["ttft_uncached_to_cached"], 40.0);
        assert_eq!(json["ratios"]["gap_p99_beside_long_prompt_to_without"], 2.5);
        assert_eq!(json["engines"]["peer"]["decode_8_tokens_per_s"], 200.0);
        assert_eq!(json["scrape_p50_s"], 0.002);
        assert_eq!(json["scrape_p99_s"], 0.003);
        assert!(json["sim_streamed_tokens_per_s"].is_null());
    }

    #[test]
    fn digits_beyond_the_fourth_are_dropped() {
        assert_eq!(rounded(Some(123.456)), json!(123.5));
        assert_eq!(rounded(Some(0.001_234_56)), json!(0.001_235));
        assert_eq!(rounded(Some(f64::NAN)), Value::Null);
    }
}
