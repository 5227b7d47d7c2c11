//! What is known of a fleet's prompts: who has how much before it, how fast each one is, and what a pick costs.
//!
//! # The cost
//!
//! A request that goes to endpoint `e` waits `A(e)`, the work ahead, and is computed for `w(e)`, its own work.
//! Both together are its time to first token. But its own work also stands before everyone who comes to `e` while it
//! is busy. In a queue that is served in order, busy a share `ρ` of the time and asked `λ` times a second,
//! the busy period that the request joins goes on for about `(A + w) / (1 - ρ)`; `λ` times as many requests come
//! meanwhile, and each waits `w` longer. All that is waited because of the pick is therefore
//!
//! ```text
//! cost = (A + w) + w · λ (A + w) / (1 - ρ)  =  (A + w) · (1 + w · λ / (1 - ρ))
//! ```
//!
//! In an idle fleet `λ` is 0 and the cost is the time to first token: a cold idle endpoint beats a warm
//! busy one by the second. In a busy fleet the factor grows, and doing work twice must save more and more waiting.
//! `λ` and the mean own work are measured, as means over the last picks; `ρ` is their product. Nothing has to be set.
//!
//! # What is not known
//!
//! Other pickers send work of which nothing is known but what the worker's page says: requests that wait there beyond our
//! own. Each counts as a prompt of the mean.

use super::ahead::{Ahead, Prompt, Stretch};
use super::estimates::{Estimate, Estimates};
use super::rates::{Factor, PromptWork, Rates};
use crate::fleet::members::ENDPOINTS_MAX;
use crate::fleet::{EndpointId, Generation, Live, Matches, Snapshot};

/// Picks over which the arrival rate and the mean work are taken.
const PICKS_REMEMBERED: f64 = 256.0;
/// The busy share counts as at most this, or one more pick would cost without bound.
const BUSY_MAX: f64 = 0.95;
/// After so long without a pick the fleet counts as idle.
const QUIET_US: u64 = 10_000_000;

/// What the operator may set.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ExpectationOptions {
    /// How much the delay of others counts; 1 is as much as the request's own, 0 is greed.
    pub delay_of_others: f64,
    /// Share of the KV blocks in use at which the cost is twice that of none in use; 0 leaves them out.
    pub kv_doubles_at: f64,
    /// Share of a cached prefix that does not count while the request that brings it has no first token yet; 0 to 1.
    pub unconfirmed_discount: f64,
}

impl Default for ExpectationOptions {
    fn default() -> Self {
        Self {
            delay_of_others: 1.0,
            kv_doubles_at: 0.2,
            unconfirmed_discount: 0.0,
        }
    }
}

impl ExpectationOptions {
    /// Leading prompt tokens that an endpoint is counted to have when the request comes up.
    fn cached_tokens(&self, matches: &Matches, id: EndpointId, generation: Generation) -> u32 {
        let all = matches.tokens(id, generation);
        let unconfirmed = all - matches.confirmed_tokens(id, generation).min(all);
        all - (f64::from(unconfirmed) * self.unconfirmed_discount) as u32
    }
}

/// How a first token is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting {
    /// As it came.
    AtOnce,
    /// In a report, some time after.
    Afterwards,
}

/// A pick that was counted; names it when its first token comes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Placement {
    endpoint: EndpointId,
    generation: Generation,
    ticket: u64,
    prompt_tokens: u32,
    work: PromptWork,
    sent_us: u64,
    /// Nothing of ours was before it.
    was_alone: bool,
}

/// See the module. It grows with the endpoint numbers seen, up to the fleet's own bound.
#[derive(Debug, Default)]
pub struct FleetExpectation {
    options: ExpectationOptions,
    /// How the last first token was seen; the next ones will be seen alike.
    sighting: Option<Sighting>,
    rates: Rates,
    /// By endpoint number.
    slots: Vec<Slot>,
    next_ticket: u64,
    arrivals: Arrivals,
}

/// One endpoint number.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// 0 = never seen.
    generation: u32,
    ahead: Ahead,
    /// Prompt tokens of the requests that have not ended.
    context_tokens: u64,
    factor: Factor,
}

/// Means over the last picks.
#[derive(Clone, Copy, Debug, Default)]
struct Arrivals {
    picks: f64,
    /// Mean seconds from one pick to the next.
    gap_s: f64,
    /// Mean seconds of own work.
    work_s: f64,
    last_us: u64,
}

impl Arrivals {
    fn add(&mut self, work_s: f64, now_us: u64) {
        // A quiet hour says nothing about the burst after it.
        if now_us.saturating_sub(self.last_us) > QUIET_US {
            *self = Self::default();
        }
        let gap_s = now_us.saturating_sub(self.last_us) as f64 / 1e6;
        let is_first = self.picks == 0.0;
        self.picks = (self.picks + 1.0).min(PICKS_REMEMBERED);
        let share = 1.0 / self.picks;
        self.work_s += share * (work_s - self.work_s);
        if !is_first {
            self.gap_s += share * (gap_s - self.gap_s);
        }
        self.last_us = now_us;
    }

    /// `λ / (1 - ρ)` for each of `endpoints`: how many later requests one second of work delays, for each second that the
    /// endpoint is busy already.
    fn delayed(&self, endpoints: usize, now_us: u64) -> f64 {
        let since_us = now_us.saturating_sub(self.last_us);
        if self.picks < 2.0 || self.gap_s <= 0.0 || since_us > QUIET_US {
            return 0.0;
        }
        let rate = 1.0 / self.gap_s / endpoints.max(1) as f64;
        let busy = (rate * self.work_s).min(BUSY_MAX);
        rate / (1.0 - busy)
    }
}

impl FleetExpectation {
    /// Nothing known yet.
    pub fn new(options: ExpectationOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Goes on with other options and all that is known.
    pub fn set_options(&mut self, options: ExpectationOptions) {
        self.options = options;
    }

    /// Estimates every endpoint of the snapshot for a prompt of `prompt_tokens` of which `matches` says who holds how
    /// much. `out` allocates only when the fleet grew.
    pub fn estimate(
        &mut self,
        snapshot: &Snapshot,
        matches: &Matches,
        prompt_tokens: u32,
        now_us: u64,
        out: &mut Estimates,
    ) {
        out.clear();
        let delayed = self.arrivals.delayed(snapshot.members.len(), now_us);
        let delayed = delayed * self.options.delay_of_others;
        let is_seen = self.sighting != Some(Sighting::Afterwards);
        for (member, live) in snapshot.members.iter().zip(&snapshot.live) {
            let cached = self
                .options
                .cached_tokens(matches, member.id, member.generation);
            let own = self.rates.seconds(PromptWork::of(prompt_tokens, cached));
            let (options, mean_s) = (self.options, self.arrivals.work_s);
            let slot = self.slots.get_mut(member.id.index());
            let slot = slot.filter(|slot| slot.generation == member.generation.0);
            let mut known = Known::default();
            if let Some(slot) = slot {
                known.factor = slot.factor.at(now_us);
                known.ahead_s = slot.ahead.seconds(known.factor, is_seen, now_us);
                known.prompts = slot.ahead.len();
                known.context_tokens = slot.context_tokens;
            }
            let ahead_s = known.ahead_s + of_others(live, known.prompts) * mean_s * known.factor;
            let own_s = own * known.factor;
            let ttft_s = ahead_s + own_s;
            out.push(Estimate {
                ahead_s,
                own_s,
                cost_s: ttft_s
                    * (1.0 + delayed * own_s)
                    * crowding(live, known.context_tokens, options.kv_doubles_at),
            });
        }
    }

    /// A request goes to an endpoint. `None` where the endpoint's number is beyond what a fleet holds.
    pub fn place(
        &mut self,
        (endpoint, generation): (EndpointId, Generation),
        prompt_tokens: u32,
        cached_tokens: u32,
        now_us: u64,
    ) -> Option<Placement> {
        let work = PromptWork::of(prompt_tokens, cached_tokens);
        let seconds = self.rates.seconds(work);
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let slot = self.slot(endpoint, generation)?;
        let was_alone = slot.ahead.len() == 0;
        slot.ahead.send(Prompt {
            ticket,
            work,
            seconds,
            sent_us: now_us,
        });
        slot.context_tokens += u64::from(prompt_tokens);
        let own_s = seconds * slot.factor.at(now_us);
        self.arrivals.add(own_s, now_us);
        Some(Placement {
            endpoint,
            generation,
            ticket,
            prompt_tokens,
            work,
            sent_us: now_us,
            was_alone,
        })
    }

    /// The first token of a request came, at `at_us`, and was seen so.
    pub fn first_token(&mut self, placement: Placement, at_us: u64, sighting: Sighting) {
        self.sighting = Some(sighting);
        let Some(slot) = self.placed(placement) else {
            return;
        };
        match (sighting, slot.ahead.first_token(placement.ticket, at_us)) {
            (Sighting::AtOnce, Some(stretch)) => self.learn(placement, stretch, at_us),
            (Sighting::AtOnce, None) => {}
            (Sighting::Afterwards, _) if placement.was_alone => {
                let took_us = at_us.saturating_sub(placement.sent_us);
                let stretch = Stretch {
                    work: placement.work,
                    seconds: took_us as f64 / 1e6,
                };
                self.learn(placement, stretch, at_us);
            }
            (Sighting::Afterwards, _) => {}
        }
    }

    /// A request ended, with or without a first token.
    pub fn ended(&mut self, placement: Placement, at_us: u64) {
        if let Some(slot) = self.placed(placement) {
            slot.ahead.forget(placement.ticket, at_us);
            let tokens = u64::from(placement.prompt_tokens);
            slot.context_tokens = slot.context_tokens.saturating_sub(tokens);
        }
    }

    fn learn(&mut self, placement: Placement, stretch: Stretch, at_us: u64) {
        let expected = self.rates.seconds(stretch.work);
        if let Some(slot) = self.placed(placement) {
            slot.factor.observe(expected, stretch.seconds, at_us);
        }
        self.rates.observe(stretch.work, stretch.seconds);
    }

    fn placed(&mut self, placement: Placement) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(placement.endpoint.index());
        slot.filter(|slot| slot.generation == placement.generation.0)
    }

    /// The slot of this generation; an earlier one's is thrown away, and a later one's is not given.
    fn slot(&mut self, endpoint: EndpointId, generation: Generation) -> Option<&mut Slot> {
        if endpoint.index() >= ENDPOINTS_MAX {
            return None;
        }
        if self.slots.len() <= endpoint.index() {
            self.slots.resize(endpoint.index() + 1, Slot::default());
        }
        let slot = self.slots.get_mut(endpoint.index())?;
        if slot.generation > generation.0 {
            return None;
        }
        if slot.generation < generation.0 {
            *slot = Slot {
                generation: generation.0,
                ..Slot::default()
            };
        }
        Some(slot)
    }
}

/// What is known of an endpoint; of one that was never seen, that it is like any.
#[derive(Clone, Copy)]
struct Known {
    ahead_s: f64,
    factor: f64,
    /// Prompts of ours there whose first token has not been seen.
    prompts: usize,
    /// Prompt tokens of all of ours there.
    context_tokens: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            ahead_s: 0.0,
            factor: 1.0,
            prompts: 0,
            context_tokens: 0,
        }
    }
}

/// Requests that wait there and are not ours.
fn of_others(live: &Live, own_prompts: usize) -> f64 {
    f64::from(live.waiting) - (own_prompts as f64).min(f64::from(live.waiting))
}

/// How many times as much a pick costs for the KV blocks that are in use there: by what the page says, or by what we sent, which
/// is newer.
fn crowding(live: &Live, context_tokens: u64, doubles_at: f64) -> f64 {
    if doubles_at <= 0.0 {
        return 1.0;
    }
    let room = u64::from(live.blocks) * u64::from(live.block_size);
    let ours = if room == 0 {
        0.0
    } else {
        context_tokens as f64 / room as f64
    };
    1.0 + f64::from(live.kv_usage).max(ours) / doubles_at
}

#[cfg(test)]
mod tests;
