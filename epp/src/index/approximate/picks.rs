//! The index of picks: who was sent what, what became of it, and what that makes each endpoint hold.
//!
//! Pure: time comes in as milliseconds, nothing waits, and the whole of it is one value.

use pointsman_proto::block_hash::RequestKey;
use smallvec::SmallVec;

use super::super::speculative::Pending;
use super::beliefs::{Beliefs, Step};
use super::correction::{self, Correction, Report};
use super::keys::BLOCK_TOKENS;
use super::slab::Place;
use crate::fleet::{EndpointId, Generation, Live};

/// Blocks of an endpoint that does not say how many it has: the field's own assumption.
pub const ENDPOINT_BLOCKS_DEFAULT: u32 = 31_250;

/// Stretches of one prompt whose ages are kept. The rest of a prompt of more counts as one stretch,
/// as old as its oldest part, which makes a correction drop less.
const AGES_MAX: usize = 8;

/// Blocks of endpoints that left, freed at each pick besides as many as the pick has.
const RECLAIMED_PER_PICK: usize = 256;

/// Bounds of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PickLimits {
    /// Blocks over all endpoints, each counted once per endpoint that is believed to hold it. No
    /// endpoint gets more than an equal share: past it, and past what it says it has room for, its
    /// oldest blocks are dropped. A block costs some 10 to 20 bytes, at worst, where every prompt
    /// has but one, 170. Endpoints that left may take as much again until they are freed.
    pub blocks_max: usize,
}

impl Default for PickLimits {
    fn default() -> Self {
        Self {
            blocks_max: 16_000_000,
        }
    }
}

/// What was believed of the picked endpoint when it was picked. It stays with the request, because
/// the response says whether it was right.
#[derive(Clone, Debug)]
pub struct Belief {
    endpoint: EndpointId,
    generation: Generation,
    /// The pick's number; 0 where nothing was recorded.
    pick: u64,
    blocks: u32,
    settled: u32,
    prompt_blocks: u32,
    ages: SmallVec<[Age; 2]>,
}

/// Up to which block of the prompt the endpoint's blocks were last used by which pick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Age {
    blocks: u32,
    touched: u64,
}

/// What a worker said of the prompt that it computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reported {
    pub prompt_tokens: u64,
    /// Those that came from its prefix cache.
    pub cached_tokens: u64,
    /// Tokens of the worker's blocks; 0 where it does not say.
    pub block_size: u32,
}

/// What a report did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Corrected {
    /// Fewer blocks were cached than was expected, clearly.
    pub is_shortfall: bool,
    /// Blocks no longer believed to be there.
    pub dropped: u32,
}

/// Counts of the index as it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PickStats {
    /// Endpoints known.
    pub endpoints: usize,
    /// Blocks believed held, each counted once per endpoint.
    pub blocks: usize,
    /// Distinct blocks.
    pub keys: usize,
    /// Stretches of prompts that are kept as one.
    pub runs: usize,
    /// Bytes of all that.
    pub bytes: usize,
}

impl std::ops::AddAssign for PickStats {
    fn add_assign(&mut self, other: Self) {
        self.endpoints += other.endpoints;
        self.blocks += other.blocks;
        self.keys += other.keys;
        self.runs += other.runs;
        self.bytes += other.bytes;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Picks {
    limits: PickLimits,
    beliefs: Beliefs,
    /// By endpoint number.
    endpoints: Vec<Option<Known>>,
    present: usize,
    /// The newest pick.
    newest: u64,
}

#[derive(Debug)]
struct Known {
    generation: Generation,
    holder: Place,
    pending: Pending,
    correction: Correction,
    /// Blocks that it says it has room for.
    exported: u32,
}

impl Belief {
    /// Leading blocks of the prompt that the endpoint was believed to hold.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// When the block at this place was last used before.
    fn touched(&self, block: u32) -> Option<u64> {
        let age = self.ages.iter().find(|age| block < age.blocks)?;
        Some(age.touched)
    }

    fn note(&mut self, step: Step, is_settled: bool) {
        if is_settled && self.settled == self.blocks {
            self.settled = step.blocks;
        }
        self.blocks = step.blocks;
        let Step {
            blocks, touched, ..
        } = step;
        let is_full = self.ages.len() == AGES_MAX;
        match self.ages.last_mut() {
            Some(last) if is_full || last.touched == touched => *last = Age { blocks, touched },
            _ => self.ages.push(Age { blocks, touched }),
        }
    }
}

impl Picks {
    pub(super) fn new(limits: PickLimits) -> Self {
        Self {
            limits,
            beliefs: Beliefs::default(),
            endpoints: Vec::new(),
            present: 0,
            newest: 0,
        }
    }

    /// Shows the leading blocks of a prompt that each endpoint is believed to hold; an endpoint may
    /// come several times, the most blocks last, each time with whether they are known to be computed. Of
    /// one whose events are followed only those count that pending picks promise.
    pub(super) fn find(
        &self,
        keys: &[RequestKey],
        now_ms: u64,
        is_followed: impl Fn(EndpointId, Generation) -> bool,
        mut found: impl FnMut(EndpointId, Generation, u32, bool),
    ) {
        self.beliefs.find(keys, &mut |endpoint, generation, step| {
            let known = self.known(endpoint, generation);
            let pending = known.map(|known| &known.pending);
            // Who put it there counts as well as who used it last: the last one may have failed.
            let is_promised = |pending: &Pending| {
                let mut picks = [step.touched, step.created].into_iter();
                picks.any(|pick| pending.is_promised(pick, now_ms))
            };
            if !is_followed(endpoint, generation) || pending.is_some_and(is_promised) {
                let is_unstarted = pending.is_some_and(|it| it.is_unstarted(step.created));
                found(endpoint, generation, step.blocks, !is_unstarted);
            }
        });
    }

    /// Notes that a prompt was sent to an endpoint, which from here on is believed to hold it, and
    /// says what it was believed to hold before. Picks of an earlier generation are not noted.
    pub(super) fn record(
        &mut self,
        endpoint: EndpointId,
        generation: Generation,
        live: &Live,
        keys: &[RequestKey],
        now_ms: u64,
    ) -> Belief {
        let mut belief = Belief {
            endpoint,
            generation,
            pick: 0,
            blocks: 0,
            settled: 0,
            prompt_blocks: keys.len() as u32,
            ages: SmallVec::new(),
        };
        self.beliefs.reclaim(keys.len() + RECLAIMED_PER_PICK);
        self.admit(endpoint, generation);
        let share = self.share();
        let Some(known) = known_mut(&mut self.endpoints, endpoint, generation) else {
            return belief;
        };
        self.newest += 1;
        belief.pick = self.newest;
        let (holder, pending) = (known.holder, &known.pending);
        self.beliefs.trace(holder, keys, &mut |step| {
            belief.note(step, !pending.is_unstarted(step.created));
        });
        known.pending.sent(self.newest, now_ms);
        known.exported = blocks_of(live);
        let room = known.correction.capacity(known.exported).min(share);
        let kept = keys.get(..room as usize).unwrap_or(keys);
        self.beliefs.touch(holder, kept, self.newest);
        self.beliefs.shrink(holder, room);
        belief
    }

    /// The response to a pick started.
    pub(super) fn started(&mut self, belief: &Belief, now_ms: u64) {
        if let Some(known) = self.known_mut(belief) {
            known.pending.started(belief.pick, now_ms);
        }
    }

    /// A pick came to nothing: what it put there, and nobody used since, is taken back.
    pub(super) fn failed(&mut self, belief: &Belief) {
        let Some(known) = self.known_mut(belief) else {
            return;
        };
        let holder = known.holder;
        known.pending.failed(belief.pick);
        self.beliefs.withdraw(holder, belief.pick);
    }

    /// A worker said how much of a prompt it had cached.
    pub(super) fn reported(&mut self, belief: &Belief, reported: &Reported) -> Corrected {
        let newest = self.newest;
        let finding = correction::read(&Report {
            believed: belief.blocks,
            settled: belief.settled,
            prompt_blocks: belief.prompt_blocks,
            prompt_tokens: reported.prompt_tokens,
            cached_tokens: reported.cached_tokens,
            engine_block_tokens: reported.block_size,
        });
        let mut corrected = Corrected {
            is_shortfall: finding.missing.is_some(),
            dropped: 0,
        };
        let Some(known) = self.known_mut(belief) else {
            return corrected;
        };
        let (holder, correction) = (known.holder, &mut known.correction);
        if let Some(touched) = finding.hit.and_then(|block| belief.touched(block)) {
            correction.hit(touched);
        }
        correction.raise(finding.surplus);
        let Some(missing) = finding.missing else {
            return corrected;
        };
        let touched = belief.touched(missing);
        let verdict = touched.and_then(|pick| correction.missing(pick, belief.pick, newest));
        let Some(gone) = verdict else {
            return corrected;
        };
        corrected.dropped = self.beliefs.drop_until(holder, gone);
        // What was used after the missing block and before this prompt, and of this prompt what is
        // younger than the block: the cache has no room for more than that.
        let own = self.beliefs.touched_at(holder, belief.pick);
        let room = self.beliefs.blocks_of(holder) - own + missing;
        if let Some(known) = self.known_mut(belief) {
            known.correction.lower(room);
        }
        corrected.dropped += self.beliefs.shrink(holder, room);
        corrected
    }

    /// Forgets this generation of an endpoint, and earlier ones.
    pub(super) fn forget(&mut self, endpoint: EndpointId, generation: Generation) {
        let Some(entry) = self.endpoints.get_mut(endpoint.index()) else {
            return;
        };
        if let Some(known) = entry.take_if(|known| known.generation <= generation) {
            self.beliefs.leave(known.holder);
            self.present -= 1;
        }
    }

    /// Forgets every endpoint that is not one of these.
    pub(super) fn retain(&mut self, is_present: impl Fn(EndpointId, Generation) -> bool) {
        let known = self.endpoints.iter().zip(0..);
        let known =
            known.filter_map(|(known, id)| Some((EndpointId(id), known.as_ref()?.generation)));
        let gone: Vec<_> = known
            .filter(|(id, generation)| !is_present(*id, *generation))
            .collect();
        for (id, generation) in gone {
            self.forget(id, generation);
        }
    }

    /// Frees up to so many blocks of endpoints that left; true = there is more to free.
    pub(super) fn reclaim(&mut self, blocks: usize) -> bool {
        self.beliefs.reclaim(blocks)
    }

    pub(super) fn stats(&self) -> PickStats {
        PickStats {
            endpoints: self.present,
            blocks: self.beliefs.blocks(),
            keys: self.beliefs.keys(),
            runs: self.beliefs.runs(),
            bytes: self.beliefs.bytes(),
        }
    }

    /// Makes an endpoint known, in place of an earlier generation of it.
    fn admit(&mut self, endpoint: EndpointId, generation: Generation) {
        let at = endpoint.index();
        if self.endpoints.len() <= at {
            self.endpoints.resize_with(at + 1, || None);
        }
        let present = self.endpoints.get(at).and_then(Option::as_ref);
        if present.is_some_and(|known| known.generation >= generation) {
            return;
        }
        self.forget(endpoint, generation);
        let known = Known {
            generation,
            holder: self.beliefs.join(endpoint, generation),
            pending: Pending::default(),
            correction: Correction::default(),
            exported: ENDPOINT_BLOCKS_DEFAULT,
        };
        if let Some(entry) = self.endpoints.get_mut(at) {
            *entry = Some(known);
        }
        self.present += 1;
        // One more makes the shares of the others smaller.
        let share = self.share();
        for known in self.endpoints.iter().flatten() {
            self.beliefs.shrink(known.holder, share);
        }
    }

    /// Blocks that one endpoint may have of all.
    fn share(&self) -> u32 {
        u32::try_from(self.limits.blocks_max / self.present.max(1)).unwrap_or(u32::MAX)
    }

    fn known(&self, endpoint: EndpointId, generation: Generation) -> Option<&Known> {
        let known = self.endpoints.get(endpoint.index())?.as_ref()?;
        (known.generation == generation).then_some(known)
    }

    fn known_mut(&mut self, belief: &Belief) -> Option<&mut Known> {
        known_mut(&mut self.endpoints, belief.endpoint, belief.generation)
    }
}

fn known_mut(
    endpoints: &mut [Option<Known>],
    endpoint: EndpointId,
    generation: Generation,
) -> Option<&mut Known> {
    let known = endpoints.get_mut(endpoint.index())?.as_mut()?;
    (known.generation == generation).then_some(known)
}

/// The blocks of text that an endpoint has room for, by what it says of its own blocks.
fn blocks_of(live: &Live) -> u32 {
    if live.blocks == 0 {
        return ENDPOINT_BLOCKS_DEFAULT;
    }
    let block_size = if live.block_size == 0 {
        BLOCK_TOKENS
    } else {
        live.block_size
    };
    let tokens = u64::from(live.blocks) * u64::from(block_size);
    u32::try_from(tokens / u64::from(BLOCK_TOKENS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
