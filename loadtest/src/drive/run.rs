//! The loop of one run: asks the schedule, starts exchanges, takes what ended.
//!
//! An exchange is started a little before it is due and sleeps the rest of the time, so that writing a long prompt does
//! not make its request late.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::exchange::{Job, Outcome, Target, send};
use super::live::Live;
use super::prompt::Said;
use super::record::{ErrorClass, Failure, Record};
use super::schedule::{Next, Pace, Schedule};
use super::tally::Tally;
use crate::workload::{PlannedRequest, Workload};

/// How long before its time a request of an open loop is made ready.
const LEAD: Duration = Duration::from_millis(100);

/// One run's input.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    pub(crate) pace: Pace,
    /// Nothing is begun after it.
    pub(crate) end: Option<Duration>,
}

/// Sends the whole plan and returns when all has ended, or after Ctrl-C with what there is.
pub(super) async fn run(target: &Arc<Target>, plan: &Plan, live: &mut Live) -> Result<Tally> {
    let mut run = Run {
        target,
        requests: &plan.workload.requests,
        lead: match plan.pace {
            Pace::Open { .. } => LEAD,
            Pace::Closed { .. } => Duration::ZERO,
        },
        schedule: Schedule::new(&plan.workload.requests, plan.pace, plan.end),
        running: JoinSet::new(),
        said: HashMap::new(),
        tally: Tally::new(),
        // The first request is not to be late already.
        began: Instant::now() + LEAD,
    };
    run.drive(live).await?;
    Ok(run.tally)
}

struct Run<'a> {
    target: &'a Arc<Target>,
    requests: &'a [PlannedRequest],
    lead: Duration,
    schedule: Schedule<'a>,
    running: JoinSet<Outcome>,
    /// What was said, by the request that it was said last in; kept until its follow-up has taken it.
    said: HashMap<usize, Arc<Said>>,
    tally: Tally,
    began: Instant,
}

impl Run<'_> {
    async fn drive(&mut self, live: &mut Live) -> Result<()> {
        let second = Duration::from_secs(1);
        let mut second = interval_at(Instant::now() + second, second);
        second.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let wake = match self.schedule.next(self.now() + self.lead) {
                Next::Send { request, intended } => {
                    self.start(request, intended);
                    continue;
                }
                Next::Lose { request, intended } => {
                    self.lose(request, intended);
                    continue;
                }
                Next::WaitUntil(time) => Some(self.began + time.saturating_sub(self.lead)),
                Next::WaitForEnd => None,
                Next::Done => break,
            };
            tokio::select! {
                Some(ended) = self.running.join_next() => self.ended(ended)?,
                () = until(wake) => {}
                _ = second.tick() => live.show(self.now(), self.schedule.in_flight(), &self.tally),
                _ = &mut interrupt => {
                    self.running.shutdown().await;
                    self.tally.interrupted = true;
                    break;
                }
            }
        }
        live.clear();
        Ok(())
    }

    fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.began)
    }

    fn start(&mut self, index: usize, intended: Duration) {
        let Some(request) = self.requests.get(index) else {
            return;
        };
        let before = request.after.and_then(|after| {
            let said = self.said.remove(&after.request)?;
            let planned = self.requests.get(after.request)?;
            Some((said, planned.prompt.len() + 1))
        });
        let job = Job {
            index,
            request: request.clone(),
            intended,
            before,
            is_followed: self.schedule.has_followers(index),
        };
        self.tally.sent += 1;
        self.running
            .spawn(send(Arc::clone(self.target), job, self.began));
    }

    fn lose(&mut self, index: usize, intended: Duration) {
        let Some(request) = self.requests.get(index) else {
            return;
        };
        if let Some(after) = request.after {
            self.said.remove(&after.request);
        }
        let running = self.schedule.in_flight();
        let detail = format!("{running} requests were running");
        self.tally.take(Record {
            request: index,
            session: request.session,
            tenant: request.tenant,
            intended: intended.as_secs_f64(),
            end: intended.as_secs_f64(),
            prompt_tokens: request.prompt_tokens(),
            failure: Some(Failure::new(ErrorClass::InFlightLimit, detail)),
            ..Record::default()
        });
    }

    fn ended(&mut self, ended: Result<Outcome, JoinError>) -> Result<()> {
        let outcome = ended.context("the task of a request failed")?;
        let index = outcome.record.request;
        if let Some(said) = outcome.said {
            self.said.insert(index, said);
        }
        let end = Duration::try_from_secs_f64(outcome.record.end).unwrap_or_default();
        self.schedule.ended(index, end);
        self.tally.take(outcome.record);
        Ok(())
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
