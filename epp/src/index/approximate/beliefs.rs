//! What each endpoint is believed to hold, as a least-recently-used cache of prompts for each.
//!
//! It behaves, block for block, as if every endpoint had a list of its blocks in which using a
//! prompt moves the prompt's blocks to the young end, the first block youngest, and in which room
//! is made at the old end. So what an endpoint is believed to hold is closed under prefixes at all
//! times: a chain loses its tail first, and nobody is credited with blocks behind a missing one.
//!
//! It costs, however, by runs and not by blocks: blocks of one run are used together, stand in one
//! holding together, and share one copy of their keys among all endpoints. A prompt of 4,000 tokens
//! that extends a known chat touches some ten holdings, not 250 blocks, and takes 8 bytes for each
//! new block and some 150 for its run.

use std::collections::VecDeque;

use pointsman_proto::block_hash::RequestKey;

use super::recency::{Holding, Order, older_than};
use super::runs::Runs;
use super::slab::{NOWHERE, Place, Slab};
use crate::fleet::{EndpointId, Generation};

/// See the module. Holders are numbered by [`Place`].
#[derive(Debug, Default)]
pub(super) struct Beliefs {
    runs: Runs,
    holdings: Slab<Holding>,
    holders: Slab<Holder>,
    /// Holders that left and whose holdings are not all freed yet.
    retired: VecDeque<Place>,
    /// The runs of the prompt that is being touched.
    path: Vec<Place>,
    blocks: usize,
}

#[derive(Debug, Default)]
struct Holder {
    /// Absent once the holder has left.
    endpoint: Option<(EndpointId, Generation)>,
    order: Order,
}

/// One holding on the way of a prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// Leading blocks of the prompt that the endpoint holds up to here.
    pub(super) blocks: u32,
    /// The pick that used the last stretch of them last.
    pub(super) touched: u64,
    /// The pick that put it there.
    pub(super) created: u64,
}

impl Beliefs {
    /// A new endpoint, which holds nothing.
    pub(super) fn join(&mut self, id: EndpointId, generation: Generation) -> Place {
        self.holders.insert(Holder {
            endpoint: Some((id, generation)),
            order: Order::default(),
        })
    }

    /// Forgets an endpoint at once. [`reclaim`](Self::reclaim) frees what it held.
    pub(super) fn leave(&mut self, holder: Place) {
        self.holders[holder].endpoint = None;
        self.retired.push_back(holder);
    }

    /// Frees up to so many blocks, or a little more, of endpoints that left; true = there is more
    /// to free.
    pub(super) fn reclaim(&mut self, blocks: usize) -> bool {
        let goal = self.blocks.saturating_sub(blocks);
        while let Some(holder) = self.retired.front().copied() {
            let oldest = self.holders[holder].order.oldest;
            if oldest == NOWHERE {
                self.holders.remove(holder);
                self.retired.pop_front();
            } else if self.blocks <= goal {
                return true;
            } else {
                self.drop_tail(oldest, u32::MAX);
            }
        }
        false
    }

    /// Shows every holding on the way of a prompt: for each endpoint those of its leading blocks,
    /// the deepest one last.
    pub(super) fn find(
        &self,
        keys: &[RequestKey],
        found: &mut impl FnMut(EndpointId, Generation, Step),
    ) {
        let mut walked = 0;
        while let Some((run, shared)) = self.runs.find(rest(keys, walked)) {
            let run = self.runs.get(run);
            for held in &run.held {
                if let Some((id, generation)) = self.holders[held.holder].endpoint {
                    found(id, generation, self.step(held.holding, walked, shared));
                }
            }
            walked += shared;
            if shared < run.len() {
                return;
            }
        }
    }

    /// Shows the holdings of one endpoint on the way of a prompt, in its order.
    pub(super) fn trace(&self, holder: Place, keys: &[RequestKey], found: &mut impl FnMut(Step)) {
        let mut walked = 0;
        while let Some((run, shared)) = self.runs.find(rest(keys, walked)) {
            let run = self.runs.get(run);
            let Some(holding) = run.of(holder) else {
                return;
            };
            let step = self.step(holding, walked, shared);
            found(step);
            walked += shared;
            if shared < run.len() || step.blocks < walked {
                return;
            }
        }
    }

    /// The endpoint uses a prompt: it holds all of it from here on, youngest at its head. `pick` is
    /// more than at any use before.
    pub(super) fn touch(&mut self, holder: Place, keys: &[RequestKey], pick: u64) {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        self.lay(keys, &mut path);
        for run in path.iter().rev() {
            self.hold(holder, *run, pick);
        }
        self.path = path;
    }

    /// Drops the oldest blocks until an endpoint holds at most `blocks_max`; returns how many.
    pub(super) fn shrink(&mut self, holder: Place, blocks_max: u32) -> u32 {
        let before = self.blocks_of(holder);
        loop {
            let order = self.holders[holder].order;
            if order.blocks <= blocks_max {
                return before - order.blocks;
            }
            self.drop_tail(order.oldest, order.blocks - blocks_max);
        }
    }

    /// Drops what an endpoint used last at `pick` or before; returns how many blocks.
    pub(super) fn drop_until(&mut self, holder: Place, pick: u64) -> u32 {
        let before = self.blocks_of(holder);
        loop {
            let Order { oldest, blocks, .. } = self.holders[holder].order;
            if oldest == NOWHERE || self.holdings[oldest].touched > pick {
                return before - blocks;
            }
            self.drop_tail(oldest, u32::MAX);
        }
    }

    /// Drops what `pick` put there and nobody used since; returns how many blocks.
    ///
    /// It stays closed under prefixes: what hangs on a stretch is never used later than it, nor put
    /// there earlier, so it goes as well.
    pub(super) fn withdraw(&mut self, holder: Place, pick: u64) -> u32 {
        let before = self.blocks_of(holder);
        let mut place = self.holders[holder].order.youngest;
        while place != NOWHERE && self.holdings[place].touched >= pick {
            let older = older_than(place, &self.holdings);
            let holding = self.holdings[place];
            if holding.touched == pick && holding.created == pick {
                self.drop_tail(place, u32::MAX);
            }
            place = older;
        }
        before - self.blocks_of(holder)
    }

    /// Blocks that an endpoint used last at exactly this pick.
    pub(super) fn touched_at(&self, holder: Place, pick: u64) -> u32 {
        let mut blocks = 0;
        let mut place = self.holders[holder].order.youngest;
        while place != NOWHERE && self.holdings[place].touched >= pick {
            if self.holdings[place].touched == pick {
                blocks += self.holdings[place].blocks;
            }
            place = older_than(place, &self.holdings);
        }
        blocks
    }

    /// Blocks that an endpoint is believed to hold.
    pub(super) fn blocks_of(&self, holder: Place) -> u32 {
        self.holders[holder].order.blocks
    }

    /// Blocks of all endpoints, each counted once per endpoint, those that left included until they
    /// are freed.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Distinct blocks.
    pub(super) fn keys(&self) -> usize {
        self.runs.keys()
    }

    /// Runs, the unit that everything costs by.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.runs.bytes() + self.holdings.bytes() + self.holders.bytes()
    }

    fn step(&self, holding: Place, walked: u32, shared: u32) -> Step {
        let holding = &self.holdings[holding];
        Step {
            blocks: walked + holding.blocks.min(shared),
            touched: holding.touched,
            created: holding.created,
        }
    }

    /// Makes runs of which the prompt is a whole number, and lists them.
    fn lay(&mut self, keys: &[RequestKey], path: &mut Vec<Place>) {
        let mut walked = 0;
        loop {
            let rest = rest(keys, walked);
            if rest.is_empty() {
                return;
            }
            let (run, shared) = match self.runs.find(rest) {
                Some((run, shared)) => (run, shared),
                None => (self.runs.insert(rest), rest.len() as u32),
            };
            if shared < self.runs.get(run).len() {
                self.split(run, shared);
            }
            path.push(run);
            walked += shared;
        }
    }

    /// Cuts a run in two, and each holding that reaches across.
    fn split(&mut self, run: Place, at: u32) -> Place {
        let rest = self.runs.split(run, at);
        for held in self.runs.get(run).held.clone() {
            let Holding {
                blocks,
                touched,
                created,
                ..
            } = self.holdings[held.holding];
            if blocks <= at {
                continue;
            }
            let order = &mut self.holders[held.holder].order;
            order.resize(held.holding, at, &mut self.holdings);
            let tail = Holding::new(rest, held.holder, blocks - at, touched, created);
            let tail = self.holdings.insert(tail);
            order.insert_behind(held.holding, tail, &mut self.holdings);
            self.runs.get_mut(rest).add(held.holder, tail);
        }
        rest
    }

    /// Makes a holding of a whole run the youngest of its endpoint.
    fn hold(&mut self, holder: Place, run: Place, pick: u64) {
        let Some(place) = self.runs.get(run).of(holder) else {
            self.hold_new(holder, run, pick);
            return;
        };
        let blocks = self.holdings[place].blocks;
        if blocks < self.runs.get(run).len() {
            let rest = self.split(run, blocks);
            self.hold_new(holder, rest, pick);
        }
        let order = &mut self.holders[holder].order;
        order.unlink(place, &mut self.holdings);
        self.holdings[place].touched = pick;
        order.push_youngest(place, &mut self.holdings);
    }

    fn hold_new(&mut self, holder: Place, run: Place, pick: u64) {
        let blocks = self.runs.get(run).len();
        let holding = Holding::new(run, holder, blocks, pick, pick);
        let place = self.holdings.insert(holding);
        self.runs.get_mut(run).add(holder, place);
        let order = &mut self.holders[holder].order;
        order.push_youngest(place, &mut self.holdings);
        self.blocks += blocks as usize;
    }

    /// Drops up to so many blocks from the end of a holding.
    fn drop_tail(&mut self, place: Place, blocks: u32) {
        let holding = self.holdings[place];
        let left = holding.blocks.saturating_sub(blocks);
        let order = &mut self.holders[holding.holder].order;
        if left == 0 {
            order.unlink(place, &mut self.holdings);
            self.holdings.remove(place);
        } else {
            order.resize(place, left, &mut self.holdings);
        }
        self.blocks -= (holding.blocks - left) as usize;
        let run = self.runs.get(holding.run);
        let most = if holding.blocks < run.len() {
            run.len()
        } else {
            let others = run.held.iter().filter(|held| held.holding != place);
            let longest = others.map(|held| self.holdings[held.holding].blocks).max();
            longest.unwrap_or(0).max(left)
        };
        self.runs.release(holding.run, holding.holder, left, most);
    }
}

fn rest(keys: &[RequestKey], walked: u32) -> &[RequestKey] {
    keys.get(walked as usize..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
