//! The scheduler: the subset hint, then the profiles that the handler asks for.

use std::sync::Arc;

use super::decision::{Decision, NoEndpoint};
use super::handlers::ProfileHandler;
use super::handlers::single::SingleProfileHandler;
use super::plugin::{Context, Meter, Request};
use super::profile::Profile;
use crate::fleet::Snapshot;

/// Profiles and the handler that orders them.
#[derive(Debug)]
pub struct Scheduler {
    profiles: Vec<Profile>,
    handler: Box<dyn ProfileHandler>,
}

impl Scheduler {
    /// The handler's profile numbers are places in `profiles`.
    pub fn new(profiles: Vec<Profile>, handler: Box<dyn ProfileHandler>) -> Self {
        Self { profiles, handler }
    }

    /// A scheduler of one profile.
    pub fn single(profile: Profile) -> Self {
        Self::new(vec![profile], Box::new(SingleProfileHandler))
    }

    /// What runs without configuration.
    pub fn field_default() -> Self {
        Self::single(Profile::field_default())
    }

    /// Has every profile return this many endpoints beyond the first.
    #[must_use]
    pub fn with_fallback_endpoints(mut self, count: usize) -> Self {
        for profile in &mut self.profiles {
            profile.fallback_endpoints = count;
        }
        self
    }

    /// The profiles, in the order of their numbers.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The handler's type name.
    pub fn handler(&self) -> &'static str {
        self.handler.type_name()
    }

    /// Whether requests go to a port that stands for all ranks of a pod.
    pub fn sends_to_primary_port(&self) -> bool {
        self.handler.sends_to_primary_port()
    }

    /// Picks endpoints for a request.
    pub fn pick(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        now_ms: u64,
    ) -> Result<Decision, NoEndpoint> {
        let mut decision = Decision::default();
        self.pick_into(snapshot, request, now_ms, &mut decision)?;
        Ok(decision)
    }

    /// Picks endpoints for a request into a reused decision. After an error its primary run holds
    /// no endpoints; the runs say how far it came.
    pub fn pick_into(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        now_ms: u64,
        decision: &mut Decision,
    ) -> Result<(), NoEndpoint> {
        self.pick_metered(snapshot, request, now_ms, decision, None)
    }

    /// The same with each plugin timed, where a meter is given.
    pub fn pick_metered(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        now_ms: u64,
        decision: &mut Decision,
        meter: Option<&dyn Meter>,
    ) -> Result<(), NoEndpoint> {
        let context = Context {
            snapshot,
            request,
            now_ms,
        };
        decision.clear();
        find_eligible(&context, &mut decision.eligible)?;
        // Each profile runs at most once, whatever the handler says.
        for _ in 0..self.profiles.len() {
            let Some(index) = self.handler.next(&context, decision) else {
                break;
            };
            let Some(profile) = self.profiles.get(index) else {
                break;
            };
            let (run, eligible) = decision.begin_run(index, &profile.name);
            profile.run(&context, eligible, run, meter);
        }
        self.handler.conclude(&context, decision)?;
        self.add_response_headers(&context, decision);
        Ok(())
    }

    fn add_response_headers(&self, context: &Context<'_>, decision: &mut Decision) {
        let mut headers = std::mem::take(&mut decision.response_headers);
        for run in decision.runs() {
            if let Some(profile) = self.profiles.get(run.index) {
                profile.response_headers(context, &run.endpoints, &mut headers);
            }
        }
        decision.response_headers = headers;
    }
}

/// The positions that the subset hint allows.
pub fn find_eligible(context: &Context<'_>, eligible: &mut Vec<usize>) -> Result<(), NoEndpoint> {
    let snapshot = context.snapshot;
    eligible.clear();
    eligible.extend(0..snapshot.members.len().min(snapshot.live.len()));
    if eligible.is_empty() {
        return Err(NoEndpoint::PoolEmpty);
    }
    if let Some(subset) = context.request.subset {
        eligible.retain(|position| {
            let address = context.member(*position).spec.address;
            subset.iter().any(|entry| entry.allows(address))
        });
        if eligible.is_empty() {
            return Err(NoEndpoint::SubsetExcludesAll);
        }
    }
    Ok(())
}

impl From<Profile> for Scheduler {
    fn from(profile: Profile) -> Self {
        Self::single(profile)
    }
}

impl Scheduler {
    /// The names of the profiles, in the order of their numbers.
    pub fn profile_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.profiles.iter().map(|profile| &profile.name)
    }
}

#[cfg(test)]
mod tests;
