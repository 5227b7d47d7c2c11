//! The fleet in virtual time: one queue of events, each handed to whom it concerns when its time has come.
//!
//! News travel. A request takes [`Delays::network`] to its worker, a first token as long back, a page and a KV event longer. What a
//! picker knows is therefore always a little old, and several replicas each know only what they sent themselves.

mod fates;
mod gates;
mod requests;
#[cfg(test)]
mod tests;
mod workers;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pointsman_engine::scheduler::Stats;
use pointsman_epp::fleet::pace::{Intervals, Pace};
use pointsman_epp::flow::controller::Decision;
use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{EngineHash, Event};

use super::outcome::{QueueTimes, Record};
use super::policies::{Knowledge, Policy};
use super::replica::Replica;
use super::worker::{Seen, SimWorker, Weight, WorkerOptions};
use rustc_hash::FxHashSet;

use crate::workload::Workload;
use crate::workload::tokens::Vocabulary;

/// How long news travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// Client to worker, and worker to client or picker.
    pub network: Duration,
    /// Between two readings of a busy worker's page.
    pub scrape_interval: Duration,
    /// From the worker's page to the picker.
    pub scrape: Duration,
    /// From the end of a step to the index.
    pub kv_events: Duration,
    /// Pickers hear of a first token when its request has ended, as through Envoy's access log, and not as it goes by.
    pub first_tokens_at_end: bool,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            network: Duration::from_micros(500),
            scrape_interval: Duration::from_millis(50),
            scrape: Duration::from_millis(2),
            kv_events: Duration::from_millis(5),
            first_tokens_at_end: false,
        }
    }
}

/// Something that happens to a worker at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Happening {
    pub at: Duration,
    pub worker: usize,
    pub what: Fate,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It dies: its requests and its cache are lost.
    Dies,
    /// It comes, cold.
    Joins,
    /// From here on its steps take so many times as long.
    Slows(f64),
}

/// A fleet and how it is asked.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    pub workers: usize,
    /// Replicas of epp; requests are dealt out to them by lot.
    pub replicas: usize,
    /// Every worker.
    pub worker: WorkerOptions,
    pub delays: Delays,
    pub happenings: Vec<Happening>,
    pub seed: u64,
}

/// What a run brought.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// In the order of the workload.
    pub records: Vec<Record>,
    pub queues: QueueTimes,
    /// Events handled.
    pub events: u64,
    /// Pages read.
    pub pages: u64,
}

/// Runs the workload under a policy.
///
/// # Errors
/// When the policy or the fleet makes no sense.
pub fn run(workload: &Workload, policy: &str, options: &WorldOptions) -> Result<Run> {
    let mut world = World::new(workload, policy, options)?;
    while let Some(Reverse(next)) = world.queue.pop() {
        world.now = next.at;
        world.run.events += 1;
        world.handle(next.event)?;
    }
    world.finish();
    Ok(world.run)
}

/// An event and its time; of equal times the one that was put in first comes first.
#[derive(Debug)]
struct Timed {
    at: Duration,
    order: u64,
    event: News,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

#[derive(Debug)]
enum News {
    /// A request is due at the gateway.
    Arrives(u32),
    /// It reaches the worker that was picked.
    Delivered {
        request: u32,
        worker: usize,
        life: u32,
        tokens: Vec<u32>,
    },
    /// A worker has something to show, unless it was woken otherwise since.
    Wakes {
        worker: usize,
        stamp: u64,
    },
    /// News of a request reach its replica and its client.
    FirstToken {
        request: u32,
        cached: u32,
    },
    Ended {
        request: u32,
        generated: u32,
    },
    /// The connection to a dead worker breaks.
    Broken(u32),
    KvEvents {
        replica: usize,
        worker: usize,
        life: u32,
        events: Rc<Vec<Event<EngineHash>>>,
    },
    /// A replica asks for a page, unless it was made to ask at another time since.
    Scrape {
        reader: Reader,
        life: u32,
        stamp: u64,
    },
    /// It has it.
    Page {
        reader: Reader,
        life: u32,
        stamp: u64,
        stats: Box<Stats>,
    },
    Happens(usize),
    /// A replica's gate looks at the pool, because time has passed.
    Looks(usize),
}

/// Who reads a page, and whose.
#[derive(Clone, Copy, Debug)]
struct Reader {
    replica: usize,
    worker: usize,
}

/// How a replica reads a worker's page.
#[derive(Clone, Debug)]
struct Reading {
    pace: Pace,
    /// Of the one reading that is due, so that a pair never has two.
    stamp: u64,
}

/// A worker and what the world keeps of it.
#[derive(Debug)]
struct Slot {
    /// `None`: not there.
    worker: Option<SimWorker>,
    /// How often it came.
    life: u32,
    stamp: u64,
    /// Requests of the gateway's that are on their way or there.
    requests: Vec<u32>,
    /// Since when, for the sum of its queue.
    counted_at: Duration,
    slowdown: f64,
}

#[derive(Debug)]
struct World<'a> {
    workload: &'a Workload,
    options: &'a WorldOptions,
    now: Duration,
    queue: BinaryHeap<Reverse<Timed>>,
    order: u64,
    slots: Vec<Slot>,
    replicas: Vec<Replica>,
    /// By replica and worker.
    readings: Vec<Vec<Reading>>,
    knowledge: Knowledge,
    /// By request: those that wait for its end.
    followers: Vec<Vec<u32>>,
    /// By request: its replica.
    replica_of: Vec<u32>,
    open: usize,
    /// By replica: when its gate looks next, by itself.
    look_due: Vec<Option<Duration>>,
    decisions: Vec<Decision>,
    run: Run,
    seen: Vec<Seen>,
    tokens: Vec<u32>,
    truth: Vec<Option<Weight>>,
    digests: Vec<BlockDigest>,
    /// Every block that was ever asked for, where workers share a cache that never fills.
    shared: FxHashSet<BlockDigest>,
}

impl<'a> World<'a> {
    fn new(workload: &'a Workload, policy: &str, options: &'a WorldOptions) -> Result<Self> {
        if options.workers == 0 || options.replicas == 0 {
            bail!("a fleet has one worker and one replica at least");
        }
        if workload.requests.len() >= u32::MAX as usize {
            bail!("too many requests");
        }
        let replicas: Result<Vec<Replica>> = (0..options.replicas)
            .map(|_| Ok(Replica::new(Policy::named(policy)?)))
            .collect();
        let replicas = replicas?;
        let knowledge = replicas.first().map(Replica::knowledge).unwrap_or_default();
        let mut this = Self {
            workload,
            options,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            order: 0,
            slots: (0..options.workers).map(|_| Slot::absent()).collect(),
            replicas,
            readings: Vec::new(),
            knowledge,
            followers: vec![Vec::new(); workload.requests.len()],
            replica_of: vec![0; workload.requests.len()],
            open: workload.requests.len(),
            look_due: vec![None; options.replicas],
            decisions: Vec::new(),
            run: Run::default(),
            seen: Vec::new(),
            tokens: Vec::new(),
            truth: Vec::new(),
            digests: Vec::new(),
            shared: FxHashSet::default(),
        };
        this.run.records = vec![Record::default(); workload.requests.len()];
        this.run.queues.request_seconds = vec![0.0; options.workers];
        this.begin()?;
        Ok(this)
    }

    /// Workers that join later are absent at the start; all others are there.
    fn begin(&mut self) -> Result<()> {
        let pace = Pace::new(Intervals {
            base: self.options.delays.scrape_interval,
            ..Intervals::default()
        });
        let reading = Reading { pace, stamp: 0 };
        self.readings = vec![vec![reading; self.slots.len()]; self.replicas.len()];
        let joins_later = |worker: usize| {
            let mut own = self.options.happenings.iter();
            let first = own.find(|happening| happening.worker == worker);
            first.is_some_and(|first| first.what == Fate::Joins)
        };
        for worker in (0..self.slots.len()).filter(|worker| !joins_later(*worker)) {
            if let Some(slot) = self.slots.get_mut(worker) {
                slot.come(&self.options.worker)?;
            }
        }
        self.discover()?;
        for worker in 0..self.slots.len() {
            self.introduce(worker);
        }
        for (place, happening) in self.options.happenings.iter().enumerate() {
            if happening.worker >= self.slots.len() {
                bail!("worker {} does not exist", happening.worker);
            }
            self.at(happening.at, News::Happens(place));
        }
        for (number, request) in self.workload.requests.iter().enumerate() {
            match request.after {
                Some(after) => {
                    let followers = self.followers.get_mut(after.request);
                    let followers =
                        followers.context("a request follows one that does not exist")?;
                    followers.push(number as u32);
                }
                None => self.at(request.at, News::Arrives(number as u32)),
            }
        }
        Ok(())
    }

    fn at(&mut self, at: Duration, event: News) {
        // News of what a worker did a while ago are heard at once.
        let at = at.max(self.now);
        self.order += 1;
        let order = self.order;
        self.queue.push(Reverse(Timed { at, order, event }));
    }

    fn handle(&mut self, event: News) -> Result<()> {
        match event {
            News::Arrives(request) => self.arrives(request),
            News::Delivered {
                request,
                worker,
                life,
                tokens,
            } => {
                self.delivered(request, worker, life, tokens);
            }
            News::Wakes { worker, stamp } => self.wakes(worker, stamp),
            News::FirstToken { request, cached } => self.first_token(request, cached),
            News::Ended { request, generated } => self.ended(request, generated),
            News::Broken(request) => self.broken(request),
            News::KvEvents {
                replica,
                worker,
                life,
                events,
            } => {
                if self.is_alive(worker, life)
                    && let Some(replica) = self.replicas.get_mut(replica)
                {
                    replica.kv_events(worker, &events);
                }
            }
            News::Scrape {
                reader,
                life,
                stamp,
            } => self.scrape(reader, life, stamp),
            News::Page {
                reader,
                life,
                stamp,
                stats,
            } => self.page(reader, life, stamp, &stats),
            News::Happens(place) => self.happens(place)?,
            News::Looks(replica) => {
                if let Some(due) = self.look_due.get_mut(replica) {
                    *due = None;
                }
                self.look(replica);
            }
        }
        Ok(())
    }

    /// Brings the sums up to the end.
    fn finish(&mut self) {
        for worker in 0..self.slots.len() {
            self.advance(worker);
        }
    }
}

impl Slot {
    fn absent() -> Self {
        Self {
            worker: None,
            life: 0,
            stamp: 0,
            requests: Vec::new(),
            counted_at: Duration::ZERO,
            slowdown: 1.0,
        }
    }

    fn come(&mut self, options: &WorkerOptions) -> Result<()> {
        self.life += 1;
        let options = WorkerOptions {
            slowdown: self.slowdown,
            ..options.clone()
        };
        self.worker = Some(SimWorker::new(options)?);
        Ok(())
    }
}

/// The ids that prompts are made of where nobody says otherwise: those of an ordinary vocabulary.
pub const VOCABULARY: Vocabulary = Vocabulary {
    first: 1_000,
    count: 100_000,
};
