//! Many steps at once come to what they come to one by one.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::backend::Sampled;
use crate::backend::sim::StepShape;

/// One request of a random load. All end by their length, as those of a simulation do.
#[derive(Clone, Debug)]
struct Load {
    family: u32,
    shared: u32,
    prompt: u32,
    answer: u32,
    arrives: u64,
    aborted: Option<u64>,
    deadline: Option<u64>,
    priority: i32,
    /// Ends by a token, maybe, so no run may have it.
    stops: bool,
}

impl Load {
    fn request(&self) -> NewRequest {
        let token = |i| match i {
            i if i < self.shared => i + 1,
            i => (i * 7 + self.family * 31) % VOCAB,
        };
        let sampling = SamplingParams {
            ignore_eos: !self.stops,
            ..SamplingParams::greedy(self.answer)
        };
        NewRequest {
            priority: self.priority,
            deadline: self.deadline.map(Duration::from_millis),
            ..request((0..self.prompt).map(token).collect(), sampling)
        }
    }
}

fn load() -> impl Strategy<Value = Load> {
    (
        (0_u32..3, 0_u32..24, 1_u32..40, 1_u32..60),
        (-1_i32..2, 0_u64..3_000),
        proptest::option::weighted(0.1, 0_u64..2_000),
        proptest::option::weighted(0.1, 1_u64..3_000),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(sizes, order, aborted, deadline, stops)| Load {
            family: sizes.0,
            shared: sizes.1,
            prompt: sizes.2,
            answer: sizes.3,
            priority: order.0,
            arrives: order.1,
            aborted,
            deadline,
            stops,
        })
}

fn limits() -> impl Strategy<Value = SchedulerConfig> {
    (
        (1_u32..9, 0_u32..40, 1_u32..8, 0_u32..20),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.1),
        proptest::option::weighted(0.6, 1.1_f64..4.0),
    )
        .prop_map(|(sizes, caching, events, host, slowdown)| {
            let (block_size, extra_blocks, seqs, extra_budget) = sizes;
            SchedulerConfig {
                block_size,
                // The largest prompt has 39 tokens.
                blocks: 1 + 39_u32.div_ceil(block_size) + extra_blocks,
                host_blocks: if host { 8 } else { 0 },
                max_num_seqs: seqs,
                max_num_batched_tokens: seqs + extra_budget,
                max_model_len: 100,
                prefix_cache: caching.then(|| HashRecipe::sha256_cbor("vllm-none-hash")),
                kv_events: caching && events,
                policy: Policy::Priority,
                max_decode_slowdown: slowdown,
                ..config()
            }
        })
}

/// Of requests of one number of generated tokens each, some generate the same, so that their blocks are merged.
fn token(number: SequenceNumber, place: u32) -> u32 {
    1 + (number as u32 % 3 * 5 + place) % (VOCAB - 1)
}

fn step_time(shape: &StepShape) -> Duration {
    let micros = 10_000 + 1_000 * shape.tokens + 200 * shape.sequences + 7 * shape.context;
    Duration::from_micros(micros + 3 * shape.pairs + 11 * shape.copied)
}

/// What the outside is told, in order, with the end of the step that brought it.
#[derive(Debug, Default, PartialEq)]
struct Told {
    events: Vec<(Duration, Event<BlockDigest>)>,
    reports: Vec<String>,
    /// Sorted by the reader: within one step their order says nothing.
    gaps: Vec<Duration>,
}

/// Whichever way it goes from step to step.
struct Player {
    scheduler: Scheduler,
    clock: Duration,
    told: Told,
    output: StepOutput,
    outcome: Outcome,
    step: Step,
    skips: bool,
    /// Steps that were skipped.
    skipped: u32,
}

struct Driver<'a> {
    until: Duration,
    told: &'a mut Told,
    clock: Duration,
}

impl DecodeDriver for Driver<'_> {
    fn step_end(&mut self, start: Duration, shape: &StepShape) -> Option<Duration> {
        assert_eq!(start, self.clock, "one step right after the other");
        let end = start + step_time(shape);
        if end > self.until {
            return None;
        }
        self.clock = end;
        Some(end)
    }

    fn generate(&mut self, number: SequenceNumber, places: Range<u32>, tokens: &mut Vec<u32>) {
        tokens.extend(places.map(|place| token(number, place)));
    }

    fn events(&mut self, end: Duration, events: Vec<Event<BlockDigest>>) {
        let events = events.into_iter().map(|event| (end, event));
        self.told.events.extend(events);
    }

    fn gaps(&mut self, gap: Duration, count: u32) {
        self.told.gaps.extend((0..count).map(|_| gap));
    }
}

impl Player {
    fn new(config: &SchedulerConfig, skips: bool) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            clock: Duration::ZERO,
            told: Told::default(),
            output: StepOutput::default(),
            outcome: Outcome::default(),
            step: Step::default(),
            skips,
            skipped: 0,
        }
    }

    fn abort(&mut self, number: SequenceNumber, finish: Finish) {
        let ended = self.scheduler.abort(number, finish, self.clock);
        self.told
            .reports
            .extend(ended.map(|(_, report)| format!("{report:?}")));
    }

    /// Makes all steps that end at or before `until`, and the one after them, because someone may come during it.
    fn play(&mut self, until: Duration) {
        while !self.scheduler.is_empty() && self.clock <= until {
            while let Some(number) = self.scheduler.expired(self.clock) {
                self.abort(number, Finish::Deadline);
            }
            if self.skips {
                self.skip(until);
            }
            let quiet = self.scheduler.quiet_steps(true);
            let before = (self.told.events.len(), self.told.reports.len());
            if !self.one_step() {
                assert!(self.scheduler.is_empty() || self.skips);
                continue;
            }
            if quiet.0 > 0 {
                let after = (self.told.events.len(), self.told.reports.len());
                assert_eq!(before, after, "nothing was to be seen of this step");
            }
        }
        self.clock = self.clock.max(until);
    }

    fn skip(&mut self, until: Duration) {
        let mut driver = Driver {
            until,
            told: &mut self.told,
            clock: self.clock,
        };
        let run = self.scheduler.decode_run(self.clock, &mut driver);
        self.clock = run.ended_at;
        self.skipped += run.steps;
        while let Some(number) = self.scheduler.expired(self.clock) {
            self.abort(number, Finish::Deadline);
        }
    }

    fn one_step(&mut self) -> bool {
        let formed = if self.skips {
            self.scheduler.schedule_shape(self.clock)
        } else {
            let formed = self.scheduler.schedule(self.clock, &mut self.step);
            let block_size = self.scheduler.config.block_size;
            formed.then(|| StepShape::of(&self.step, block_size))
        };
        let Some(shape) = formed else { return false };
        let end = self.clock + step_time(&shape);
        self.scheduler.answer(&mut self.output, token);
        if !self.skips {
            let samples = self.output.sampled.iter().collect::<Vec<&Sampled>>();
            assert_eq!(samples.len(), self.step.samples.len());
        }
        self.scheduler
            .complete(&mut self.output, end, &mut self.outcome);
        let events = self.scheduler.take_events().into_iter();
        self.told.events.extend(events.map(|event| (end, event)));
        let reports = self.outcome.finished.drain(..);
        self.told
            .reports
            .extend(reports.map(|report| format!("{report:?}")));
        self.told.gaps.extend(&self.outcome.report.inter_token_gaps);
        self.clock = end;
        true
    }

    /// All that a scheduler goes on from.
    fn state(&self) -> String {
        let scheduler = &self.scheduler;
        let sequences: BTreeMap<_, _> = scheduler.sequences.iter().collect();
        format!(
            "{:?} {sequences:?} {:?} {:?} {} {:?} {:?} {:?} {:?} {} {:?}",
            scheduler.pool,
            scheduler.running,
            scheduler.waiting,
            scheduler.queued_tokens,
            scheduler.deadlines,
            scheduler.stats(),
            scheduler.cost,
            scheduler.rate,
            scheduler.prompt_tokens_before,
            self.clock,
        )
    }
}

/// Plays the loads both ways and holds the two against each other wherever someone looks in. Returns how many steps were
/// skipped.
fn hold_against(
    loads: &[Load],
    config: &SchedulerConfig,
    looks: &[u64],
) -> Result<u32, TestCaseError> {
    let mut players = [Player::new(config, false), Player::new(config, true)];
    let arrivals = loads.iter().map(|load| load.arrives);
    let aborts = loads
        .iter()
        .filter_map(|load| Some(load.arrives + load.aborted?));
    let mut times: Vec<u64> = arrivals
        .chain(aborts)
        .chain(looks.iter().copied())
        .collect();
    times.push(10_000_000);
    times.sort_unstable();
    times.dedup();
    let mut numbers = vec![None; loads.len()];
    for time in times {
        for player in &mut players {
            player.play(Duration::from_millis(time));
        }
        let [plain, skipping] = &players;
        prop_assert_eq!(plain.state(), skipping.state());
        prop_assert_eq!(&plain.told, &skipping.told);
        for (load, number) in loads.iter().zip(&mut numbers) {
            if load.arrives == time {
                for player in &mut players {
                    let prepared = player.scheduler.intake().prepare(load.request()).unwrap();
                    *number = Some(player.scheduler.add(prepared, player.clock));
                }
            }
            if let (Some(number), Some(after)) = (*number, load.aborted)
                && load.arrives + after == time
            {
                for player in &mut players {
                    player.abort(number, Finish::Abort);
                }
            }
        }
    }
    prop_assert!(players.iter().all(|player| player.scheduler.is_empty()));
    Ok(players[1].skipped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Under any load and any limits, wherever someone looks in, comes or leaves.
    #[test]
    fn a_run_of_decodes_comes_to_what_its_steps_come_to(
        loads in proptest::collection::vec(load(), 1..14),
        looks in proptest::collection::vec(0_u64..8_000, 0..12),
        config in limits(),
    ) {
        hold_against(&loads, &config, &looks)?;
    }
}

#[test]
fn most_steps_of_long_answers_are_skipped() {
    let load = |arrives, family| Load {
        family,
        shared: 8,
        prompt: 20,
        answer: 60,
        arrives,
        aborted: None,
        deadline: None,
        priority: 0,
        stops: false,
    };
    let config = SchedulerConfig {
        max_model_len: 100,
        ..config()
    };
    let skipped = hold_against(&[load(0, 0), load(0, 1), load(200, 2)], &config, &[]).unwrap();
    assert!(skipped > 55, "{skipped}");
}
