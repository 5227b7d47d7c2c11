//! The policies that are compared, by name.
//!
//! Ours and the field's are configurations of `epp::schedule` ([`configured`]); those of other routers are their published
//! formulas in our words ([`dynamo`], [`smg`], [`aibrix`], [`text_tree`]); the plain ones are what people run without a picker ([`plain`]);
//! and the oracle sees the true state of every worker without delay.

pub mod aibrix;
pub mod configured;
pub mod dynamo;
pub mod oracle;
pub mod plain;
pub mod smg;
pub mod text_tree;

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, bail};
use pointsman_epp::fleet::{Matches, Snapshot};
use pointsman_epp::schedule::expected::{Placement, Sighting};

use super::gate::Gate;
use super::worker::Weight;
use crate::workload::tokens::mix;

/// What a policy wants to hear of; what it does not want is not simulated for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// The workers' pages.
    pub pages: bool,
    /// KV events.
    pub events: bool,
    /// Which prompts were sent where.
    pub picks: bool,
    /// The true state of every worker.
    pub truth: bool,
    /// A cache that all workers share and that never fills: no policy has it, but none can do better than one that had.
    pub shared_cache: bool,
}

/// A request as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub tokens: &'a [u32],
    /// Requests of one conversation share it.
    pub session: u64,
    /// Seed of every random choice for this request.
    pub seed: u64,
    /// What a pick would weigh at each worker, by the worker's number; empty unless the policy asks for
    /// [`Knowledge::truth`].
    pub truth: &'a [Option<Weight>],
}

/// What a replica itself has sent to a worker and has not seen end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLoad {
    pub requests: u32,
    /// Those whose first token has not been seen.
    pub prompts: u32,
    /// Of those, the tokens that were believed not to be cached.
    pub prefill_tokens: u64,
    /// Prompt tokens of all of them.
    pub context_tokens: u64,
}

/// What a replica knows at a pick.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub matches: &'a Matches,
    /// By the worker's number.
    pub own: &'a [OwnLoad],
    pub asked: &'a Asked<'a>,
    pub now: Duration,
}

impl View<'_> {
    /// Positions of those that answer.
    pub fn candidates(&self) -> impl Iterator<Item = usize> {
        let live = self.snapshot.live.iter().enumerate();
        live.filter(|(_, live)| live.healthy).map(|(at, _)| at)
    }

    /// Tokens of the prompt that the worker at a position is believed to hold.
    pub fn cached(&self, position: usize) -> u32 {
        let member = self.snapshot.members.get(position);
        member.map_or(0, |member| {
            self.matches.tokens(member.id, member.generation)
        })
    }

    /// What a pick would in truth weigh at a position, where the policy is told.
    pub fn truth(&self, position: usize) -> Option<Weight> {
        let member = self.snapshot.members.get(position)?;
        let worker = super::replica::worker_of(member);
        self.asked.truth.get(worker).copied().flatten()
    }

    /// What this replica has there.
    pub fn own(&self, position: usize) -> OwnLoad {
        let member = self.snapshot.members.get(position);
        let worker = member.map(|member| super::replica::worker_of(member));
        worker
            .and_then(|worker| self.own.get(worker))
            .copied()
            .unwrap_or_default()
    }

    /// The candidate with the lowest cost; of equals one by the request's seed.
    pub fn lowest(&self, cost: impl Fn(usize) -> f64) -> Option<usize> {
        let mut best: Option<(f64, u64, usize)> = None;
        for at in self.candidates() {
            let this = (cost(at), mix(self.asked.seed ^ at as u64), at);
            let is_better = best.is_none_or(|best| (this.0, this.1) < (best.0, best.1));
            if is_better {
                best = Some(this);
            }
        }
        best.map(|(_, _, at)| at)
    }
}

/// What a policy chose.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// In the snapshot.
    pub position: usize,
    /// Where the policy keeps account of it.
    pub placement: Option<Placement>,
    /// The time to first token that it expects, in seconds.
    pub expected_s: Option<f64>,
}

/// A formula that chooses.
pub trait Formula: Debug {
    /// A snapshot position.
    fn choose(&mut self, view: &View<'_>) -> Option<usize>;
    /// What it reads.
    fn knowledge(&self) -> Knowledge;
}

/// A policy in force at one replica.
#[derive(Debug)]
pub struct Policy(Kind);

#[derive(Debug)]
enum Kind {
    Configured(Box<configured::Configured>),
    Formula(Box<dyn Formula>),
}

/// The names, without those that take a file.
pub const NAMES: &[&str] = &[
    "round-robin",
    "random",
    "least-request",
    "session-hash",
    "field-default",
    "approximate-prefix",
    "precise-prefix",
    "expected-ttft",
    "dynamo",
    "dynamo-lmetric",
    "smg",
    "aibrix",
    "sglang-cache-aware",
    "vllm-kv-aware",
    "oracle",
    "bound",
];

impl Policy {
    /// Makes a policy from its name, `NAME` or `NAME:parameter=value,…`, or from a configuration, `file:PATH`.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn named(text: &str) -> Result<Self> {
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        if let Some(configured) = configured::Configured::named(name, parameters)? {
            return Ok(Self(Kind::Configured(Box::new(configured))));
        }
        if !parameters.is_empty() {
            bail!("policy {name:?} takes no parameters");
        }
        let formula: Box<dyn Formula> = match name {
            "round-robin" => Box::new(plain::RoundRobin::default()),
            "random" => Box::new(plain::Random),
            "least-request" => Box::new(plain::LeastRequest),
            "session-hash" => Box::new(plain::SessionHash),
            "dynamo" => Box::new(dynamo::Dynamo::Linear),
            "dynamo-lmetric" => Box::new(dynamo::Dynamo::Product),
            "smg" => Box::new(smg::Smg),
            "aibrix" => Box::new(aibrix::Aibrix),
            "sglang-cache-aware" => Box::new(text_tree::CacheAware),
            "vllm-kv-aware" => Box::new(text_tree::KvAware),
            "oracle" => Box::new(oracle::Oracle::default()),
            "bound" => Box::new(oracle::Oracle { shares: true }),
            _ => bail!(
                "there is no policy {name:?}; there are {}, and file:PATH",
                NAMES.join(", ")
            ),
        };
        Ok(Self(Kind::Formula(formula)))
    }

    /// What it wants to hear of.
    pub fn knowledge(&self) -> Knowledge {
        match &self.0 {
            Kind::Configured(configured) => configured.knowledge(),
            Kind::Formula(formula) => formula.knowledge(),
        }
    }

    /// What requests wait at before they are picked for, where the policy has flow control.
    pub fn gate(&self) -> Option<Gate> {
        match &self.0 {
            Kind::Configured(configured) => configured.gate(),
            Kind::Formula(_) => None,
        }
    }

    /// Picks. `None` where nobody answers.
    pub fn pick(&mut self, view: &View<'_>) -> Option<Choice> {
        match &mut self.0 {
            Kind::Configured(configured) => configured.pick(view),
            Kind::Formula(formula) => formula.choose(view).map(|position| Choice {
                position,
                placement: None,
                expected_s: view
                    .truth(position)
                    .map(|truth| truth.ahead_s + truth.own_s),
            }),
        }
    }

    /// The first token of a placed request came, at `at`.
    pub fn first_token(&mut self, placement: Placement, at: Duration, sighting: Sighting) {
        if let Kind::Configured(configured) = &mut self.0 {
            configured.first_token(placement, at, sighting);
        }
    }

    /// A placed request is over.
    pub fn ended(&mut self, placement: Placement, at: Duration) {
        if let Kind::Configured(configured) = &mut self.0 {
            configured.ended(placement, at);
        }
    }
}

#[cfg(test)]
mod tests;
