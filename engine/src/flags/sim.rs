//! The flags of `--backend sim`.

use clap::Args;

use crate::backend::sim::{GPUS, Gpu, MODELS, ModelShape};
use crate::faults::{FaultPlan, FaultPlanError};

/// What is simulated, and what goes wrong with it.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Simulation (--backend sim)")]
pub struct SimFlags {
    /// Model whose time and memory are simulated: llama-3.1-8b, llama-3.1-70b, qwen3-8b, qwen3-32b, qwen3-30b-a3b,
    /// mistral-7b, phi-3-mini. --model gives the tokenizer only.
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b", value_parser = parse_model)]
    pub sim_model: ModelShape,

    /// GPU that is simulated: a100-80g, h100, h200, b200, l40s.
    #[arg(long, value_name = "NAME", default_value = "h100", value_parser = parse_gpu)]
    pub sim_gpu: Gpu,

    /// Simulated time passes this many times as fast as the wall clock; `inf` waits for nothing.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = parse_speedup)]
    pub sim_speedup: f64,

    /// Mean length of answers that end by themselves [default: answers go on until max_tokens].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub sim_output_tokens: Option<u32>,

    /// What goes wrong, as a JSON object: seed, refuse{probability, how: unavailable|disconnect},
    /// die{after_events, probability}, metrics_delay_ms, metrics_frozen, kv_events: none|hold|lose, slow_steps,
    /// unhealthy_every. POST /sim/faults changes it.
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = parse_faults, hide_default_value = true)]
    pub sim_faults: FaultPlan,
}

fn parse_model(name: &str) -> Result<ModelShape, String> {
    let known = || names(MODELS.iter().map(|model| model.name));
    ModelShape::named(name).ok_or_else(known)
}

fn parse_gpu(name: &str) -> Result<Gpu, String> {
    Gpu::named(name).ok_or_else(|| names(GPUS.iter().map(|gpu| gpu.name)))
}

fn names<'a>(known: impl Iterator<Item = &'a str>) -> String {
    format!("known are {}", known.collect::<Vec<_>>().join(", "))
}

fn parse_speedup(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 => Ok(factor),
        _ => Err("expected a positive number, or inf".to_owned()),
    }
}

fn parse_faults(json: &str) -> Result<FaultPlan, String> {
    json.parse()
        .map_err(|error: FaultPlanError| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::flags::Flags;

    fn parse(flags: &[&str]) -> Result<Flags, String> {
        let fixed = ["engine", "--model", "m", "--backend", "sim"];
        Flags::try_parse_from(fixed.iter().chain(flags)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_8b_model_on_one_h100_is_the_default() {
        let sim = parse(&[]).unwrap().sim;
        assert_eq!(
            (sim.sim_model.name, sim.sim_gpu.name),
            ("llama-3.1-8b", "h100")
        );
        assert_eq!(sim.sim_output_tokens, None);
        let fast = parse(&["--sim-speedup", "inf"]).unwrap().sim;
        assert!(fast.sim_speedup.is_infinite());
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let error = parse(&["--sim-model", "gpt-4"]).unwrap_err();
        assert!(error.contains("known are llama-3.1-8b, "), "{error}");
        let error = parse(&["--sim-gpu", "abacus"]).unwrap_err();
        assert!(error.contains("l40s"), "{error}");
        assert!(parse(&["--sim-speedup", "0"]).is_err());
        assert!(parse(&["--sim-speedup", "nan"]).is_err());
        let error = parse(&["--sim-faults", r#"{"slow": 2}"#]).unwrap_err();
        assert!(error.contains("slow"), "{error}");
    }
}
