//! The data-parallel ranks of one worker: engine threads side by side that share nothing but the weights.
//!
//! Each rank has its own scheduler, KV pool, prefix cache and KV events, so a request lives on one rank from its
//! first block to its last. Who knows where a prefix lies names the rank; every other request goes to the rank that
//! has the fewest requests alive. What concerns the worker as a whole (drain, health, reset) reaches every rank.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{
    EngineHandle, NewRequest, PauseMode, RequestStream, RequestWatch, SleepError, Stats,
    SubmitError,
};
use crate::backend::SleepLevel;

/// All ranks of a worker; at least one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ranks {
    first: EngineHandle,
    others: Arc<[EngineHandle]>,
}

impl From<EngineHandle> for Ranks {
    fn from(first: EngineHandle) -> Self {
        Self {
            first,
            others: Arc::new([]),
        }
    }
}

impl Ranks {
    /// Rank 0 and the ranks after it, in their order.
    pub fn new(first: EngineHandle, others: Vec<EngineHandle>) -> Self {
        Self {
            first,
            others: others.into(),
        }
    }

    /// Every rank, from 0.
    pub fn iter(&self) -> impl Iterator<Item = &EngineHandle> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// How many ranks there are.
    pub fn count(&self) -> u32 {
        self.others.len() as u32 + 1
    }

    /// The rank for a request that asks for `asked`: that one, or else the one with the fewest live requests, the
    /// lowest of equals. Requests that are to share a prompt should be submitted under one answer.
    ///
    /// # Errors
    /// [`SubmitError::NoSuchRank`].
    pub fn choose(&self, asked: Option<u32>) -> Result<u32, SubmitError> {
        match asked {
            Some(rank) if rank < self.count() => Ok(rank),
            Some(rank) => Err(SubmitError::NoSuchRank {
                rank,
                ranks: self.count(),
            }),
            None => {
                let loads = self.iter().map(EngineHandle::live_requests);
                let least = loads.enumerate().min_by_key(|(_, live)| *live);
                Ok(least.map_or(0, |(rank, _)| rank as u32))
            }
        }
    }

    /// Queues a request on the rank that it names, or else on the least loaded one. See [`EngineHandle::submit`].
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&self, request: NewRequest) -> Result<RequestStream, SubmitError> {
        self.submit_watched(request, None)
    }

    /// As [`Ranks::submit`]; `watch` hears of the request's end.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit_watched(
        &self,
        request: NewRequest,
        watch: Option<Arc<dyn RequestWatch>>,
    ) -> Result<RequestStream, SubmitError> {
        let rank = self.choose(request.data_parallel_rank)?;
        let others = self.others.as_ref();
        let chosen = rank.checked_sub(1);
        match chosen.map(|index| others.get(index as usize)) {
            Some(Some(engine)) => engine.submit_watched(request, watch),
            _ => self.first.submit_watched(request, watch),
        }
    }

    /// The first rank; what holds for all of them alike can be asked of it.
    pub fn first(&self) -> &EngineHandle {
        &self.first
    }

    /// The sums of all ranks' gauges and totals.
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for engine in self.iter() {
            sum.add(&engine.stats());
        }
        sum
    }

    /// Requests submitted and not ended, on all ranks.
    pub fn live_requests(&self) -> usize {
        self.iter().map(EngineHandle::live_requests).sum()
    }

    /// False once the backend of any rank failed: a worker that answers on some ranks only is not one to send to.
    pub fn is_healthy(&self) -> bool {
        self.iter().all(EngineHandle::is_healthy)
    }

    /// The longest that any rank with live requests has not been heard of.
    pub fn silence(&self) -> Duration {
        let silences = self.iter().map(EngineHandle::silence);
        silences.max().unwrap_or_default()
    }

    /// The longest context in tokens, prompt and output together.
    pub fn max_model_len(&self) -> u32 {
        self.first.max_model_len()
    }

    /// Empties the prefix caches; false when a rank could not, because a request still holds blocks there.
    pub async fn reset_prefix_cache(&self) -> bool {
        let resets = self.iter().map(EngineHandle::reset_prefix_cache);
        join_all(resets).await.into_iter().all(|done| done)
    }

    /// As [`Ranks::reset_prefix_cache`], but running requests give up their blocks for it.
    pub async fn reset_prefix_cache_preempting(&self) -> bool {
        let resets = self.iter().map(EngineHandle::reset_prefix_cache_preempting);
        join_all(resets).await.into_iter().all(|done| done)
    }

    /// See [`EngineHandle::pause`]; true once every rank holds still.
    pub async fn pause(&self, mode: PauseMode, clear_cache: bool) -> bool {
        let pauses = self.iter().map(|engine| engine.pause(mode, clear_cache));
        join_all(pauses).await.into_iter().all(|done| done)
    }

    /// See [`EngineHandle::resume`]; false when a rank sleeps.
    pub async fn resume(&self) -> bool {
        let resumes = self.iter().map(EngineHandle::resume);
        join_all(resumes).await.into_iter().all(|done| done)
    }

    /// Whether any rank holds still, or is about to.
    pub fn is_paused(&self) -> bool {
        self.iter().any(EngineHandle::is_paused)
    }

    /// Puts every rank to sleep.
    ///
    /// # Errors
    /// See [`EngineHandle::sleep`]; that of the first rank that has one.
    pub async fn sleep(
        &self,
        level: Option<SleepLevel>,
        mode: PauseMode,
    ) -> Result<(), SleepError> {
        let sleeps = self.iter().map(|engine| engine.sleep(level, mode));
        join_all(sleeps).await.into_iter().collect()
    }

    /// Wakes every rank.
    ///
    /// # Errors
    /// See [`EngineHandle::wake`]; that of the first rank that has one.
    pub async fn wake(&self) -> Result<(), SleepError> {
        let wakes = self.iter().map(EngineHandle::wake);
        join_all(wakes).await.into_iter().collect()
    }

    /// vLLM's number of the deepest level at which any rank sleeps; 0 when all are awake.
    pub fn sleep_level(&self) -> u32 {
        self.iter()
            .map(EngineHandle::sleep_level)
            .max()
            .unwrap_or(0)
    }

    /// Refuses requests from here on; those taken already run to their end. Await [`Ranks::idle`] for that.
    pub fn drain(&self) {
        self.iter().for_each(EngineHandle::drain);
    }

    /// Whether [`Ranks::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.first.is_draining()
    }

    /// Ends every request submitted so far, before the next step of its rank.
    pub fn abort_all(&self) {
        self.iter().for_each(EngineHandle::abort_all);
    }

    /// Whether no request is alive.
    pub fn is_idle(&self) -> bool {
        self.live_requests() == 0
    }

    /// Returns once no request is alive on any rank. Meant for a worker that drains: otherwise a rank waited for
    /// first may have work again by then.
    pub async fn idle(&self) {
        join_all(self.iter().map(EngineHandle::idle)).await;
    }
}
