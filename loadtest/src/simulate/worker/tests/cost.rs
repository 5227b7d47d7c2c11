//! What a worker costs to simulate: `cargo test --profile demo -p pointsman-loadtest --lib worker::tests::cost --
//! --ignored --nocapture`.
//!
//! The load is like Mooncake's conversations: prompts of 12,000 tokens of which 40 % are cached, answers of 340.

use super::*;

const REQUESTS: u32 = 3_000;
/// A worker takes two of them a second with some twenty under way; three are more than it can do.
const EVERY: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(330)];

/// Nanoseconds that this thread has computed.
fn cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[derive(Clone, Copy, Default)]
struct Spent {
    prompts: u64,
    hashes: u64,
    adds: u64,
    steps: u64,
}

fn measure(options: &WorkerOptions, every: Duration, follows: bool, own: u32) -> String {
    let mut worker = SimWorker::new(options.clone()).unwrap();
    let mut out = Vec::new();
    let (mut spent, mut running, mut events) = (Spent::default(), 0_u64, 0);
    for key in 0..REQUESTS {
        let at = every * key;
        let start = cpu();
        if follows {
            follow(&mut worker, at, &mut out);
        }
        worker.advance(at, &mut out);
        events += out.drain(..).count();
        running += u64::from(worker.stats().running);
        let stepped = cpu();
        let mut asked = request(key, u64::from(key % 16), own * 2 / 3, own, 340);
        let written = cpu();
        options.digests(&asked.prompt, &mut asked.digests);
        let hashed = cpu();
        worker.add(asked, at).unwrap();
        let added = cpu();
        spent.steps += stepped - start;
        spent.prompts += written - stepped;
        spent.hashes += hashed - written;
        spent.adds += added - hashed;
    }
    let steps = worker.steps();
    let each = |nanos: u64| nanos as f64 / 1e3 / f64::from(REQUESTS);
    format!(
        "{:>5} {:>5} {:>6} {:>6} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.0} {:>8.1} {:>6.0} % {:>7.1} {:>7.1}",
        options.scheduler.block_size,
        own * 5 / 3,
        options.skip,
        follows,
        each(spent.prompts),
        each(spent.hashes),
        each(spent.adds),
        each(spent.steps),
        spent.steps as f64 / steps.made.max(1) as f64,
        steps.made as f64 / f64::from(REQUESTS),
        100.0 * steps.skipped as f64 / steps.made.max(1) as f64,
        running as f64 / f64::from(REQUESTS),
        f64::from(events as u32) / f64::from(REQUESTS),
    )
}

#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "its output is what it is for")]
fn cpu_per_request() {
    eprintln!("microseconds a request, but nanoseconds a step");
    eprintln!(
        "block  size   skip follow   prompt     hash      add  advance  ns/step    steps  skipped running  events"
    );
    for block_size in [16, 64] {
        for (every, own) in [(EVERY[0], 7_200), (EVERY[1], 7_200), (EVERY[0], 600)] {
            for (skip, follows) in [(false, false), (true, false), (true, true)] {
                let options = WorkerOptions {
                    skip,
                    ..options(block_size)
                };
                eprintln!("{}", measure(&options, every, follows, own));
            }
        }
    }
}
