//! Measures how many tokens a second a running worker streams.
//!
//! ```text
//! engine --model engine/demo-model --served-model-name m --backend sim --sim-speedup 1000 --max-num-seqs 256 &
//! cargo run --release --example stream_rate -- 127.0.0.1:8000 256 2000 [pid of the worker]
//! ```

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

#[expect(
    unreachable_pub,
    reason = "the file is the load tester's, where its items are reached"
)]
#[path = "../../loadtest/src/engine_bench/stream_rate.rs"]
mod stream_rate;

use std::error::Error;

use stream_rate::{StreamRate, stream_rate};

/// Ticks of `/proc/<pid>/stat` in a second; Linux has had no other value for decades.
const TICKS_PER_S: f64 = 100.0;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let load = StreamRate {
        address: next("127.0.0.1:8000").parse()?,
        streams: next("256").parse()?,
        max_tokens: next("2000").parse()?,
        model: "m".to_owned(),
    };
    let worker = next("self");
    let before = (cpu_s(&worker)?, cpu_s("self")?);
    let streamed = stream_rate(&load).await?;
    let after = (cpu_s(&worker)?, cpu_s("self")?);
    println!(
        "{:.0} tokens/s: {} tokens in {:.2} s, {:.2} tokens a read; cpu worker {:.2} s, client {:.2} s",
        streamed.rate(),
        streamed.tokens,
        streamed.elapsed.as_secs_f64(),
        streamed.tokens as f64 / streamed.reads as f64,
        after.0 - before.0,
        after.1 - before.1,
    );
    Ok(())
}

/// User and system time of a process so far.
fn cpu_s(pid: &str) -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .map_or(Ok(0), |field| field.parse::<u64>())
    };
    Ok((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_S)
}
