//! A request's way: from the gateway over its replica's pick to a worker, and what its replica and its client hear of it.

use std::time::Duration;

use super::{News, Reader, World};
use crate::simulate::policies::Asked;
use crate::simulate::replica::Replica;
use crate::simulate::worker::WorkerRequest;
use crate::workload::PlannedRequest;
use crate::workload::tokens::{mix, write_ids};

impl World<'_> {
    /// A request comes to the gateway, which hands it to a replica.
    pub(super) fn arrives(&mut self, number: u32) {
        let seed = mix(self.options.seed ^ u64::from(number));
        let replica = (seed % self.replicas.len() as u64) as usize;
        if let Some(replica_of) = self.replica_of.get_mut(number as usize) {
            *replica_of = replica as u32;
        }
        if let Some(record) = self.run.records.get_mut(number as usize)
            && record.retries == 0
        {
            record.arrived = self.now;
        }
        let has_gate = |replica: &Replica| replica.has_gate();
        if self.replicas.get(replica).is_some_and(has_gate) {
            self.wait(number, replica);
        } else {
            self.place(number, replica, seed);
        }
    }

    /// A request goes on to the worker that its replica picks.
    pub(super) fn place(&mut self, number: u32, replica: usize, seed: u64) {
        let Some(planned) = self.workload.requests.get(number as usize) else {
            return;
        };
        let mut tokens = std::mem::take(&mut self.tokens);
        write_ids(&planned.prompt, self.options.worker.vocabulary, &mut tokens);
        self.look_into_workers(&tokens);
        let asked = Asked {
            tokens: &tokens,
            session: planned.session,
            seed,
            truth: &self.truth,
        };
        let picked = self
            .replicas
            .get_mut(replica)
            .and_then(|replica| replica.pick(number, &asked, self.now));
        if let Some(record) = self.run.records.get_mut(number as usize) {
            record.sent = self.now;
            record.prompt_tokens = tokens.len() as u32;
            record.worker = picked.map(|picked| picked.worker as u32);
            record.expected_s = picked.and_then(|picked| picked.expected_s);
        }
        match picked {
            Some(picked) => self.send(number, picked.worker, replica, tokens.clone()),
            None => self.tell_failed(number),
        }
        self.tokens = tokens;
    }

    pub(super) fn send(&mut self, request: u32, worker: usize, replica: usize, tokens: Vec<u32>) {
        let Some(slot) = self.slots.get_mut(worker) else {
            return;
        };
        let life = slot.life;
        slot.requests.push(request);
        let is_first = slot.requests.len() == 1;
        // Who sees the true state sees what was sent a moment ago as well.
        if self.knowledge.truth {
            self.delivered(request, worker, life, tokens);
            return;
        }
        let at = self.now + self.options.delays.network;
        self.at(
            at,
            News::Delivered {
                request,
                worker,
                life,
                tokens,
            },
        );
        // A request at an idle endpoint wakes the reader of its page.
        if is_first && self.knowledge.pages {
            self.read_at(Reader { replica, worker }, life, at);
        }
    }

    pub(super) fn delivered(&mut self, request: u32, worker: usize, life: u32, tokens: Vec<u32>) {
        if !self.is_alive(worker, life) {
            self.at(
                self.now + self.options.delays.network,
                News::Broken(request),
            );
            return;
        }
        let answer = self
            .workload
            .requests
            .get(request as usize)
            .map(|request| request.answer);
        self.advance(worker);
        let Some((slot, answer)) = self.slots.get_mut(worker).zip(answer) else {
            return;
        };
        let Some(engine) = &mut slot.worker else {
            return;
        };
        if self.knowledge.shared_cache {
            let (shared, digests) = (&mut self.shared, &mut self.digests);
            digests.clear();
            self.options.worker.digests(&tokens, digests);
            let known = digests.iter().take_while(|digest| shared.contains(*digest));
            let known = known.count();
            engine.adopt(digests.get(..known).unwrap_or_default(), &tokens);
            shared.extend(digests.drain(..));
        }
        let asked = WorkerRequest {
            key: request,
            prompt: tokens,
            digests: Vec::new(),
            answer,
        };
        // What a worker refuses has failed for its client.
        if engine.add(asked, self.now).is_err() {
            slot.requests.retain(|other| *other != request);
            self.tell_failed(request);
        }
        self.wake_later(worker);
    }

    pub(super) fn first_token(&mut self, request: u32, cached: u32) {
        let Some(record) = self.run.records.get_mut(request as usize) else {
            return;
        };
        record.first_token = Some(self.now);
        record.cached_tokens = cached;
        let at = self.now;
        if self.options.delays.first_tokens_at_end {
            return;
        }
        if let Some(replica) = self.replica(request) {
            replica.first_token(request, at, at);
        }
        self.look_for(request);
    }

    pub(super) fn ended(&mut self, request: u32, generated: u32) {
        let now = self.now;
        let mut cached = 0;
        let mut untold = None;
        if let Some(record) = self.run.records.get_mut(request as usize) {
            record.ended = Some(now);
            record.generated_tokens = generated;
            cached = record.cached_tokens;
            let is_untold = self.options.delays.first_tokens_at_end;
            untold = record.first_token.filter(|_| is_untold);
        }
        if let Some(replica) = self.replica(request) {
            if let Some(first_token) = untold {
                replica.first_token(request, first_token, now);
            }
            replica.ended(request, Some(cached), now);
        }
        self.look_for(request);
        self.share_answer(request);
        self.close(request);
    }

    /// Where workers share a cache, the next turn finds the answer there as well.
    pub(super) fn share_answer(&mut self, request: u32) {
        let followers = self.followers.get(request as usize);
        let is_continued = followers.is_some_and(|followers| !followers.is_empty());
        let planned = self.workload.requests.get(request as usize);
        let Some(planned) = planned.filter(|_| is_continued && self.knowledge.shared_cache) else {
            return;
        };
        let mut whole = planned.prompt.clone();
        whole.push(planned.answer);
        write_ids(&whole, self.options.worker.vocabulary, &mut self.tokens);
        self.digests.clear();
        self.options.worker.digests(&self.tokens, &mut self.digests);
        self.shared.extend(self.digests.drain(..));
    }

    /// The worker of a request is gone. Before the first token the gateway sends it again.
    pub(super) fn broken(&mut self, request: u32) {
        let now = self.now;
        if let Some(replica) = self.replica(request) {
            replica.ended(request, None, now);
        }
        self.look_for(request);
        let record = self.run.records.get_mut(request as usize);
        let again = record.is_some_and(|record| {
            let again = record.first_token.is_none() && record.retries < 3;
            record.retries += u32::from(again);
            again
        });
        if again {
            self.at(now, News::Arrives(request));
        } else {
            self.close(request);
        }
    }

    pub(super) fn tell_failed(&mut self, request: u32) {
        let now = self.now;
        if let Some(replica) = self.replica(request) {
            replica.ended(request, None, now);
        }
        self.close(request);
    }

    /// A request is over, whichever way; those that wait for it come.
    pub(super) fn close(&mut self, request: u32) {
        self.open = self.open.saturating_sub(1);
        let followers = self.followers.get_mut(request as usize);
        for follower in followers.map(std::mem::take).unwrap_or_default() {
            let planned = self.workload.requests.get(follower as usize);
            let due = |planned: &PlannedRequest| {
                let pause = planned.after.map_or(Duration::ZERO, |after| after.pause);
                planned.at.max(self.now + pause)
            };
            if let Some(at) = planned.map(due) {
                self.at(at, News::Arrives(follower));
            }
        }
    }

    pub(super) fn replica(&mut self, request: u32) -> Option<&mut Replica> {
        let replica = *self.replica_of.get(request as usize)?;
        self.replicas.get_mut(replica as usize)
    }

    /// What the oracle sees.
    pub(super) fn look_into_workers(&mut self, tokens: &[u32]) {
        if !self.knowledge.truth {
            return;
        }
        for worker in 0..self.slots.len() {
            self.advance(worker);
        }
        self.truth.clear();
        self.digests.clear();
        self.options.worker.digests(tokens, &mut self.digests);
        let (now, digests, shared) = (self.now, &self.digests, &self.shared);
        let shared = digests.iter().take_while(|digest| shared.contains(*digest));
        let shared = shared.count() * self.options.worker.scheduler.block_size as usize;
        let truth = self.slots.iter().map(|slot| {
            let engine = slot.worker.as_ref()?;
            let cached = engine.cached_tokens(digests).max(shared);
            Some(engine.weigh(tokens.len(), cached, now))
        });
        self.truth.extend(truth);
    }
}
