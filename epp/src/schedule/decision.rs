//! What was picked, and why.
//!
//! A decision holds every scorer's value for every candidate of every profile that ran, because it
//! is read by more than the proxy: metrics, the status page, the decision log and the simulator all
//! explain picks from it. Its buffers are reused from pick to pick, so that a busy caller allocates
//! nothing that grows with the fleet.

use std::sync::Arc;

use smallvec::SmallVec;

/// The runs of the profiles, and which of them decides where the request goes.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    runs: Vec<ProfileRun>,
    /// How many of `runs` belong to this decision; the rest are buffers.
    used: usize,
    primary: usize,
    /// Positions in the snapshot that the subset hint allows: what every profile starts from.
    pub(super) eligible: Vec<usize>,
    /// Headers for the worker, such as the address of the prefill endpoint.
    pub headers: SmallVec<[(&'static str, String); 2]>,
    /// Headers for the client, such as a session token. Lower-case names and values.
    pub response_headers: Vec<(String, String)>,
    /// The port that the request is sent to instead of the endpoint's own.
    pub port: Option<u16>,
    /// Which stages run apart.
    pub stages: Stages,
    /// The position that prefills, where it is another than the one that decodes.
    pub(super) prefill: Option<usize>,
}

/// One profile's run.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ProfileRun {
    /// The profile's place in the scheduler.
    pub index: usize,
    pub profile: Arc<str>,
    /// Positions in the snapshot, best first. Empty where the run failed.
    pub endpoints: SmallVec<[usize; 4]>,
    /// Positions that came through the filters.
    pub candidates: Vec<usize>,
    /// One entry per scorer, in the profile's order.
    pub scores: Vec<ScorerScores>,
    /// Weighted sums, in the order of `candidates`.
    pub totals: Vec<f32>,
    /// Why the first endpoint won, or why there is none, in a few words.
    pub reason: &'static str,
}

/// One scorer's values.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ScorerScores {
    /// The scorer's type name.
    pub scorer: &'static str,
    pub weight: f32,
    /// 0 to 1, before the weight, in the order of the run's candidates.
    pub values: Vec<f32>,
}

/// Which stages run on endpoints of their own, beside decode.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stages {
    pub encode: bool,
    pub prefill: bool,
}

impl Stages {
    /// The field's label value of `decision_type`.
    pub fn label(self) -> &'static str {
        match (self.encode, self.prefill) {
            (false, false) => "decode-only",
            (false, true) => "prefill-decode",
            (true, false) => "encode-decode",
            (true, true) => "encode-prefill-decode",
        }
    }
}

/// Why nothing could be picked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoEndpoint {
    #[error("the pool has no endpoints")]
    PoolEmpty,
    #[error("the subset hint allows none of the pool's endpoints")]
    SubsetExcludesAll,
    #[error("the profile's filters removed every endpoint")]
    FiltersExcludeAll,
    #[error("the request names a profile that is not configured")]
    UnknownProfile,
}

impl Decision {
    /// The profiles that ran, in the order in which they did.
    pub fn runs(&self) -> &[ProfileRun] {
        self.runs.get(..self.used).unwrap_or_default()
    }

    /// The run whose endpoints get the request; an empty one before a successful pick.
    pub fn primary(&self) -> &ProfileRun {
        static NONE: std::sync::LazyLock<ProfileRun> =
            std::sync::LazyLock::new(ProfileRun::default);
        self.runs().get(self.primary).unwrap_or(&NONE)
    }

    /// The position that prefills, where it is another than the one that decodes.
    pub fn prefill(&self) -> Option<usize> {
        self.prefill
    }

    /// The run of a profile, where it ran.
    pub fn run_of(&self, profile: usize) -> Option<&ProfileRun> {
        self.runs().iter().find(|run| run.index == profile)
    }

    /// Forgets the decision and keeps its buffers.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.primary = 0;
        self.eligible.clear();
        self.headers.clear();
        self.response_headers.clear();
        self.port = None;
        self.stages = Stages::default();
        self.prefill = None;
    }

    /// A cleared run at the end of the list, and what every profile starts from.
    pub(super) fn begin_run(
        &mut self,
        index: usize,
        name: &Arc<str>,
    ) -> (&mut ProfileRun, &[usize]) {
        if self.runs.len() == self.used {
            self.runs.push(ProfileRun::default());
        }
        self.used += 1;
        let run = &mut self.runs[self.used - 1];
        run.index = index;
        if !Arc::ptr_eq(&run.profile, name) {
            run.profile = Arc::clone(name);
        }
        run.endpoints.clear();
        run.candidates.clear();
        run.totals.clear();
        run.reason = "";
        (run, &self.eligible)
    }

    /// Makes the run of a profile the one that decides where the request goes.
    pub(super) fn choose_primary(&mut self, profile: usize) -> Result<(), NoEndpoint> {
        let place = self.runs().iter().position(|run| run.index == profile);
        let chosen = place.filter(|place| {
            let run = self.runs().get(*place);
            run.is_some_and(|run| !run.endpoints.is_empty())
        });
        self.primary = chosen.ok_or(NoEndpoint::FiltersExcludeAll)?;
        Ok(())
    }
}
