//! The worker's loop, from step to step.

use std::ops::Range;
use std::time::Duration;

use pointsman_engine::backend::sim::StepShape;
use pointsman_engine::scheduler::{DecodeDriver, SequenceNumber};
use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::Event;
use rustc_hash::FxHashMap;

use super::{Client, Seen, SimWorker, What, WorkerOptions, kv};
use crate::workload::tokens::{id_at, push_ids};

impl SimWorker {
    /// Makes every step that ends at or before `until`, and appends to `out` what the outside sees of it, in the order of
    /// time. `until` never goes back.
    pub fn advance(&mut self, until: Duration, out: &mut Vec<Seen>) {
        if let Some(told) = self.told_first.take_if(|told| told.at <= until) {
            out.push(told);
        }
        loop {
            if let Some(end) = self.under_way {
                if end > until {
                    return;
                }
                self.complete(end, out);
            }
            self.take_arriving(until);
            if self.scheduler.is_empty() || self.clock > until {
                return;
            }
            if self.options.skip {
                self.skip(until, out);
            }
            if !self.begin() {
                return;
            }
        }
    }

    /// Hands those that have arrived to the scheduler. An idle worker wakes up for the first of them.
    fn take_arriving(&mut self, until: Duration) {
        if self.scheduler.is_empty()
            && let Some(first) = self.arriving.front()
            && first.at <= until
        {
            self.clock = self.clock.max(first.at);
        }
        let clock = self.clock;
        while let Some(arriving) = self.arriving.pop_front_if(|arriving| arriving.at <= clock) {
            self.arriving_tokens -= arriving.prepared.prompt_tokens();
            let number = self.scheduler.add(arriving.prepared, clock);
            self.clients.insert(number, arriving.client);
        }
    }

    /// Forms the next step; false when there is none.
    fn begin(&mut self) -> bool {
        let shape = self.scheduler.schedule_shape(self.clock);
        self.under_way = shape.map(|shape| self.clock + self.options.step_time(&shape));
        self.under_way.is_some()
    }

    /// Takes in the step under way, which ends at `end`.
    fn complete(&mut self, end: Duration, out: &mut Vec<Seen>) {
        let (clients, vocabulary) = (&self.clients, self.options.vocabulary);
        self.scheduler.answer(&mut self.output, |number, place| {
            clients
                .get(&number)
                .map_or(0, |client| id_at(client.answer, place, vocabulary))
        });
        self.scheduler
            .complete(&mut self.output, end, &mut self.outcome);
        self.under_way = None;
        self.clock = end;
        self.steps.made += 1;
        out.extend(kv(end, self.scheduler.take_events()));
        self.tell(end, out);
    }

    /// First tokens and ends of the step that was just completed.
    fn tell(&mut self, at: Duration, out: &mut Vec<Seen>) {
        if !self.outcome.report.first_token_waits.is_empty() {
            for (number, update) in &self.outcome.updates {
                let Some(client) = self.clients.get_mut(number) else {
                    continue;
                };
                if update.token.is_none() || client.has_first_token {
                    continue;
                }
                client.has_first_token = true;
                let what = What::FirstToken {
                    key: client.key,
                    cached_tokens: update.cached_tokens,
                    prompt_tokens: client.prompt_tokens,
                };
                out.push(Seen { at, what });
            }
        }
        for report in self.outcome.finished.drain(..) {
            if let Some(client) = self.clients.remove(&report.number) {
                let what = What::Ended {
                    key: client.key,
                    generated_tokens: report.generated_tokens,
                    finish: report.finish,
                };
                out.push(Seen { at, what });
            }
        }
    }

    /// Makes all the decodes at once that end at or before `until`.
    fn skip(&mut self, until: Duration, out: &mut Vec<Seen>) {
        let mut driver = Driver {
            until,
            arrival: self.arriving.front().map(|arriving| arriving.at),
            options: &self.options,
            clients: &self.clients,
            out,
        };
        let run = self.scheduler.decode_run(self.clock, &mut driver);
        self.clock = run.ended_at;
        self.steps.made += u64::from(run.steps);
        self.steps.skipped += u64::from(run.steps);
    }
}

/// Decodes up to a time.
struct Driver<'a> {
    until: Duration,
    /// The next request wants to be part of the steps that start from then on.
    arrival: Option<Duration>,
    options: &'a WorkerOptions,
    clients: &'a FxHashMap<SequenceNumber, Client>,
    out: &'a mut Vec<Seen>,
}

impl DecodeDriver for Driver<'_> {
    fn step_end(&mut self, start: Duration, shape: &StepShape) -> Option<Duration> {
        let end = start + self.options.step_time(shape);
        let waited_for = self.arrival.is_some_and(|arrival| arrival <= start);
        (end <= self.until && !waited_for).then_some(end)
    }

    fn generate(&mut self, number: SequenceNumber, places: Range<u32>, tokens: &mut Vec<u32>) {
        // Whoever asked is known as long as the request lives.
        let answer = self.clients.get(&number).map_or(0, |client| client.answer);
        push_ids(answer, places, self.options.vocabulary, tokens);
    }

    fn events(&mut self, end: Duration, events: Vec<Event<BlockDigest>>) {
        self.out.extend(kv(end, events));
    }
}
