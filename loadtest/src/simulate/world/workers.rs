//! The workers' side: they are woken when they have something to show, their pages are read, and news go out with their delays.

use std::rc::Rc;
use std::time::Duration;

use pointsman_engine::scheduler::Stats;
use pointsman_epp::fleet::pace::jittered;

use super::{News, Reader, Reading, World};
use crate::simulate::worker::{Seen, SimWorker, What};
use crate::workload::tokens::mix;

impl World<'_> {
    pub(super) fn wakes(&mut self, worker: usize, stamp: u64) {
        if self
            .slots
            .get(worker)
            .is_some_and(|slot| slot.stamp == stamp)
        {
            self.advance(worker);
            self.wake_later(worker);
        }
    }

    /// Has the worker do what it has to do until now, and sends out the news.
    pub(super) fn advance(&mut self, worker: usize) {
        let mut seen = std::mem::take(&mut self.seen);
        if let Some(slot) = self.slots.get_mut(worker) {
            let open = slot.requests.len() as f64;
            let since = self.now.saturating_sub(slot.counted_at).as_secs_f64();
            slot.counted_at = self.now;
            if let Some(sum) = self.run.queues.request_seconds.get_mut(worker) {
                *sum += open * since;
            }
            if let Some(engine) = &mut slot.worker {
                engine.advance(self.now, &mut seen);
            }
        }
        for Seen { at, what } in seen.drain(..) {
            self.tell(worker, at, what);
        }
        self.seen = seen;
    }

    pub(super) fn tell(&mut self, worker: usize, at: Duration, what: What) {
        let heard = at + self.options.delays.network;
        match what {
            What::FirstToken {
                key, cached_tokens, ..
            } => {
                let cached = cached_tokens;
                self.at(
                    heard,
                    News::FirstToken {
                        request: key,
                        cached,
                    },
                );
            }
            What::Ended {
                key,
                generated_tokens,
                ..
            } => {
                if let Some(slot) = self.slots.get_mut(worker) {
                    slot.requests.retain(|other| *other != key);
                }
                let generated = generated_tokens;
                self.at(
                    heard,
                    News::Ended {
                        request: key,
                        generated,
                    },
                );
            }
            What::Kv(events) => {
                if !self.knowledge.events {
                    return;
                }
                let life = self.slots.get(worker).map_or(0, |slot| slot.life);
                let events = Rc::new(events);
                for replica in 0..self.replicas.len() {
                    let events = Rc::clone(&events);
                    let event = News::KvEvents {
                        replica,
                        worker,
                        life,
                        events,
                    };
                    self.at(at + self.options.delays.kv_events, event);
                }
            }
        }
    }

    pub(super) fn wake_later(&mut self, worker: usize) {
        let Some(slot) = self.slots.get_mut(worker) else {
            return;
        };
        slot.stamp += 1;
        let stamp = slot.stamp;
        // What decoding does to the cache is news that can wait until something else happens there: nobody asks for an
        // answer's blocks before the answer is over.
        let next = slot.worker.as_ref();
        let next = next.and_then(|worker| worker.next_at(false));
        if let Some(at) = next {
            self.at(at.max(self.now), News::Wakes { worker, stamp });
        }
    }

    pub(super) fn is_alive(&self, worker: usize, life: u32) -> bool {
        let slot = self.slots.get(worker);
        slot.is_some_and(|slot| slot.worker.is_some() && slot.life == life)
    }

    /// Has a replica read a worker's page at a time, and not when it was to before.
    pub(super) fn read_at(&mut self, reader: Reader, life: u32, at: Duration) {
        if let Some(reading) = self.reading(reader) {
            reading.stamp += 1;
            let stamp = reading.stamp;
            self.at(
                at,
                News::Scrape {
                    reader,
                    life,
                    stamp,
                },
            );
        }
    }

    pub(super) fn scrape(&mut self, reader: Reader, life: u32, stamp: u64) {
        // The run ends when all requests have; pages would go on forever.
        if self.open == 0 || self.is_outdated(reader, stamp) {
            return;
        }
        if !self.is_alive(reader.worker, life) {
            if let Some(replica) = self.replicas.get_mut(reader.replica) {
                replica.lost(reader.worker);
            }
            return;
        }
        // What it does next stays as it is; it was woken for that already.
        self.advance(reader.worker);
        let slot = self.slots.get(reader.worker);
        let stats = slot
            .and_then(|slot| slot.worker.as_ref())
            .map(SimWorker::stats);
        if let Some(stats) = stats {
            let stats = Box::new(stats);
            self.at(
                self.now + self.options.delays.scrape,
                News::Page {
                    reader,
                    life,
                    stamp,
                    stats,
                },
            );
        }
    }

    pub(super) fn page(&mut self, reader: Reader, life: u32, stamp: u64, stats: &Stats) {
        self.run.pages += 1;
        let block_size = self.options.worker.scheduler.block_size;
        if let Some(replica) = self.replicas.get_mut(reader.replica) {
            replica.page(reader.worker, stats, block_size, self.now);
        }
        self.look(reader.replica);
        if self.is_outdated(reader, stamp) {
            return;
        }
        let is_busy = self
            .slots
            .get(reader.worker)
            .is_some_and(|slot| !slot.requests.is_empty());
        let took = self.options.delays.scrape;
        let draw = mix(self.order ^ self.options.seed) >> 11;
        if let Some(reading) = self.reading(reader) {
            let delay = reading.pace.after_page(is_busy, took);
            let delay = jittered(delay, draw as f64 / (1_u64 << 53) as f64);
            self.read_at(reader, life, self.now + delay);
        }
    }

    fn reading(&mut self, reader: Reader) -> Option<&mut Reading> {
        let of_replica = self.readings.get_mut(reader.replica)?;
        of_replica.get_mut(reader.worker)
    }

    /// Another reading of this pair is due.
    fn is_outdated(&mut self, reader: Reader, stamp: u64) -> bool {
        self.reading(reader)
            .is_none_or(|reading| reading.stamp != stamp)
    }

    /// Lets every replica know of a worker that is there from now on.
    pub(super) fn introduce(&mut self, worker: usize) {
        let Some(slot) = self.slots.get(worker) else {
            return;
        };
        let life = slot.life;
        let Some(stats) = slot.worker.as_ref().map(SimWorker::stats) else {
            return;
        };
        let block_size = self.options.worker.scheduler.block_size;
        let now = self.now;
        for number in 0..self.replicas.len() {
            if let Some(replica) = self.replicas.get_mut(number) {
                replica.page(worker, &stats, block_size, now);
                if self.knowledge.events {
                    replica.follow(worker);
                }
            }
            if self.knowledge.pages {
                let reader = Reader {
                    replica: number,
                    worker,
                };
                self.read_at(reader, life, now);
            }
        }
    }
}
