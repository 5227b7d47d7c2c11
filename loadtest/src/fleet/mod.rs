//! Workers with simulated GPUs, and what may stand before them: Envoy alone, Envoy with epp, another router.
//!
//! `peers` and `validate` measure in the same way: cold workers, something that routes, one load, and what all of it
//! used. This is what they have in common.

mod front;
mod workers;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_engine::backend::sim::{Gpu, ModelShape, TimeModel};

pub(crate) use front::{Front, Policy};
pub(crate) use workers::Fleet;

/// Flags of a fleet.
#[derive(Clone, Debug, clap::Args)]
pub struct FleetOptions {
    /// Workers of the fleet.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Fleet", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,

    /// The model that the workers run, as `engine --sim-model` names it.
    #[arg(
        long = "sim-model",
        value_name = "NAME",
        default_value = "llama-3.1-70b",
        help_heading = "Fleet"
    )]
    pub model: String,

    /// The GPU that they run it on, as `engine --sim-gpu` names it.
    #[arg(
        long = "sim-gpu",
        value_name = "NAME",
        default_value = "h100",
        help_heading = "Fleet"
    )]
    pub gpu: String,

    /// GPUs of a worker.
    #[arg(long = "sim-gpus", value_name = "N", default_value_t = 4, help_heading = "Fleet", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub gpus: u32,

    /// Simulated seconds in a real one. All else (HTTP, routers, the load generator) stays as slow as it is, so a fast
    /// fleet measures that rather than the routing.
    #[arg(long = "sim-speedup", value_name = "FACTOR", default_value_t = 1.0, help_heading = "Fleet", value_parser = speedup)]
    pub speedup: f64,

    /// Tokens of a KV block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, help_heading = "Fleet", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_size: u32,
}

impl FleetOptions {
    /// The seconds that such a worker takes.
    pub(crate) fn time(&self) -> Result<TimeModel> {
        let model = ModelShape::named(&self.model);
        let model = model.with_context(|| format!("no model {:?}", self.model))?;
        let gpu = Gpu::named(&self.gpu).with_context(|| format!("no GPU {:?}", self.gpu))?;
        Ok(TimeModel::new(model, gpu, self.gpus)?)
    }

    /// What the fleet is, in words.
    pub(crate) fn text(&self) -> String {
        let speed = if (self.speedup - 1.0).abs() < f64::EPSILON {
            String::new()
        } else {
            format!(", {} times as fast", self.speedup)
        };
        format!(
            "{} workers, {} on {} x {}{speed}",
            self.workers, self.model, self.gpus, self.gpu
        )
    }

    /// The time on the wall that so much simulated time takes.
    pub(crate) fn on_the_wall(&self, simulated: Duration) -> Result<Duration> {
        let seconds = simulated.as_secs_f64() / self.speedup;
        let time = Duration::try_from_secs_f64(seconds);
        let time = time.ok().filter(|time| !time.is_zero());
        ensure!(
            time.is_some() || simulated.is_zero(),
            "{simulated:?} at {} times the speed is no time",
            self.speedup
        );
        Ok(time.unwrap_or_default())
    }
}

fn speedup(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.01..=1_000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.01 to 1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        fleet: FleetOptions,
    }

    fn fleet(flags: &str) -> Result<FleetOptions, clap::Error> {
        let line = ["x"].into_iter().chain(flags.split_whitespace());
        Line::try_parse_from(line).map(|line| line.fleet)
    }

    #[test]
    fn a_fleet_is_what_there_is() {
        let options = fleet("--sim-speedup 4").unwrap();
        assert!(options.time().is_ok());
        assert_eq!(
            options.text(),
            "8 workers, llama-3.1-70b on 4 x h100, 4 times as fast"
        );
        let second = Duration::from_secs(1);
        assert_eq!(options.on_the_wall(second).unwrap(), second / 4);
        assert!(fleet("--sim-gpu abacus").unwrap().time().is_err());
        // 141 GB of weights on one GPU of 80.
        assert!(fleet("--sim-gpus 1").unwrap().time().is_err());
        for wrong in ["--workers 0", "--sim-speedup 0", "--sim-speedup nan"] {
            assert!(fleet(wrong).is_err(), "{wrong}");
        }
    }
}
