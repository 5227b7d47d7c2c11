//! One pick, from token ids to the decision: hashing, lookup, snapshot, filters, scorers, picker.
//!
//! It measures CPU time of the picking thread, not wall time, at 8, 64, 256 and 1,024 endpoints with
//! the field's default profile and a prompt of 4,096 tokens whose first half is cached: a quarter of
//! the fleet holds 512 tokens of it (a system prompt), four endpoints hold 2,048. Each pick is of
//! another prompt out of 256, so that neither the index nor the fleet stays in the first cache by
//! courtesy of the benchmark. The last line is one JSON object.
//!
//! `cargo bench -p pointsman-epp --bench pick`

use std::hint::black_box;
use std::sync::Arc;

use pointsman_epp::fleet::kv_events::EventSource;
use pointsman_epp::fleet::{
    Endpoint, EndpointId, EndpointSpec, Fleet, Generation, Matches, Scraped, Snapshot,
};
use pointsman_epp::index::{IndexLimits, IndexScratch, PrefixIndex};
use pointsman_epp::schedule::{Decision, Request, Scheduler};
use pointsman_proto::block_hash::KeyScope;
use pointsman_proto::kv_events::{BlockStored, EngineHash, Event, Medium};
use rustix::time::{ClockId, clock_gettime};

const FLEETS: [u32; 4] = [8, 64, 256, 1_024];
const PROMPTS: u32 = 256;
const PROMPT_TOKENS: usize = 4_096;
const SYSTEM_TOKENS: usize = 512;
const HELD_TOKENS: usize = 2_048;
const BLOCK_TOKENS: usize = 16;
const PICKS: usize = 20_000;
const ROUNDS: usize = 5;
const MODEL: &str = "model";

#[expect(clippy::print_stdout, reason = "a benchmark's result")]
fn main() {
    let mut fields = Vec::new();
    for endpoints in FLEETS {
        let world = World::new(endpoints);
        let rounds: Vec<Round> = (0..ROUNDS).map(|_| world.round()).collect();
        let best = |part: fn(&Round) -> f64| rounds.iter().map(part).fold(f64::MAX, f64::min);
        let pick_us = best(|round| round.pick_us);
        println!(
            "{endpoints:>5} endpoints: {pick_us:6.2} us a pick, of which hashing and lookup {:.2} us",
            best(|round| round.lookup_us)
        );
        fields.push(format!("\"{endpoints}\":{pick_us:.2}"));
    }
    println!("{{\"pick_us\":{{{}}}}}", fields.join(","));
}

struct Round {
    pick_us: f64,
    lookup_us: f64,
}

/// A fleet with its signals, an index over it, and prompts.
struct World {
    fleet: Arc<Fleet>,
    index: PrefixIndex,
    prompts: Vec<Vec<u32>>,
    scheduler: Scheduler,
}

impl World {
    fn new(endpoints: u32) -> Self {
        let fleet = Fleet::new();
        let specs = (0..endpoints).map(|number| {
            let address = ([10, 0, (number >> 8) as u8, number as u8], 8000).into();
            EndpointSpec::new(format!("worker-{number}"), address)
        });
        fleet.apply(specs.collect()).expect("addresses differ");
        let mut snapshot = Snapshot::default();
        fleet.snapshot_into(&mut snapshot);
        for member in snapshot.members.iter() {
            let cell = fleet.cell(member.id, member.generation).expect("a member");
            cell.record(&page(member.id), 1);
        }
        let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(prompt).collect();
        let index = PrefixIndex::new(IndexLimits::default());
        for member in snapshot.members.iter() {
            hold(&index, member, &prompts, endpoints);
        }
        Self {
            fleet,
            index,
            prompts,
            scheduler: Scheduler::field_default(),
        }
    }

    fn round(&self) -> Round {
        let mut buffers = Buffers::default();
        // Once without being counted: buffers grow to their size.
        self.picks(PICKS / 10, &mut buffers, true);
        let pick_us = self.picks(PICKS, &mut buffers, true);
        let lookup_us = self.picks(PICKS, &mut buffers, false);
        Round { pick_us, lookup_us }
    }

    /// CPU time of one of `count` picks, or of their lookups alone, in microseconds.
    fn picks(&self, count: usize, buffers: &mut Buffers, is_whole: bool) -> f64 {
        let from = thread_cpu_seconds();
        for turn in 0..count {
            let tokens = &self.prompts[turn % self.prompts.len()];
            let scope = KeyScope {
                model: MODEL,
                adapter: None,
                cache_salt: None,
            };
            buffers.matches.clear();
            self.index
                .matches(&scope, tokens, &mut buffers.index, &mut buffers.matches);
            if is_whole {
                self.fleet.snapshot_into(&mut buffers.snapshot);
                let request = Request {
                    prompt_tokens: tokens.len() as u32,
                    tie_seed: turn as u64,
                    ..Request::new(MODEL, &buffers.matches)
                };
                let picked =
                    self.scheduler
                        .pick_into(&buffers.snapshot, &request, 2, &mut buffers.decision);
                assert!(picked.is_ok());
            }
            black_box(&buffers.decision);
        }
        (thread_cpu_seconds() - from) * 1e6 / count as f64
    }
}

#[derive(Default)]
struct Buffers {
    matches: Matches,
    index: IndexScratch,
    snapshot: Snapshot,
    decision: Decision,
}

fn prompt(number: u32) -> Vec<u32> {
    let system = (0..SYSTEM_TOKENS as u32).map(|at| at % 50_000);
    let rest = (SYSTEM_TOKENS..PROMPT_TOKENS)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761) ^ (number << 8));
    system.chain(rest).collect()
}

fn page(id: EndpointId) -> Scraped {
    Scraped {
        waiting: id.0 % 7,
        running: id.0 % 31,
        kv_usage: (id.0 % 100) as f32 / 100.0,
        block_size: BLOCK_TOKENS as u32,
        blocks: 20_000,
    }
}

/// Has an endpoint report the blocks that it holds.
fn hold(index: &PrefixIndex, member: &Endpoint, prompts: &[Vec<u32>], endpoints: u32) {
    let source = EventSource {
        endpoint: member.id,
        generation: Generation(member.generation.0),
        rank: 0,
    };
    if member.id.0.is_multiple_of(4) {
        store(index, source, &prompts[0][..SYSTEM_TOKENS], u64::MAX);
    }
    for (number, prompt) in prompts.iter().enumerate() {
        let first = number as u32 * 4 % endpoints;
        if (first..first + 4).any(|holder| holder % endpoints == member.id.0) {
            store(index, source, &prompt[..HELD_TOKENS], number as u64);
        }
    }
    index.followed(source);
}

fn store(index: &PrefixIndex, source: EventSource, tokens: &[u32], chain: u64) {
    let blocks = tokens.len() / BLOCK_TOKENS;
    let hash =
        |block: usize| EngineHash(chain.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (block as u64) << 20);
    let event = Event::BlockStored(BlockStored {
        block_hashes: (0..blocks).map(hash).collect(),
        token_ids: tokens.to_vec(),
        block_size: BLOCK_TOKENS as u32,
        parent: None,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    });
    index.apply(source, MODEL, &event);
}

fn thread_cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
