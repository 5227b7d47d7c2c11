//! The gate: what a request waits at until the controller lets it go.
//!
//! A thin shell: one lock around the [`Controller`](super::controller::Controller), a channel per
//! waiting request, and one timer. Nothing ticks. The controller looks at the pool when a request
//! comes, when [`Gate::wake`] says that something changed, and at its own next deadline; a gate
//! where nothing waits does no work at all.
//!
//! Whatever frees capacity must be visible to the saturation reading *before* `wake` is called: the
//! lease released, the page recorded, the membership applied.
//!
//! **Bursts.** A reading does not show requests that were dispatched a moment ago. Each permit
//! counts as assumed load until [`Permit::placed`], which the holder calls once it has taken its
//! lease; one that forgets is assumed for [`UNPLACED_MS`](super::controller::UNPLACED_MS).
//!
//! **Bounds.** What waits is bounded by the settings (a full queue answers 429), what is in flight
//! by [`IN_FLIGHT_MAX`](super::controller::IN_FLIGHT_MAX) (nothing more goes), and each waiting
//! request has one channel of one place.

mod events;
mod shell;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

pub use events::{FlowEvents, FlowLabels, NoEvents};

use self::shell::{Entered, Shell};
use super::outcome::{Cause, FlowRefusal};
use super::saturation::Saturation;
use super::settings::FlowSettings;
use super::view::FlowView;
use crate::clock::Clock;

/// Reads the pool at a time in milliseconds of the gate's clock. It is called under the gate's
/// lock, so that no two decisions rest on one reading: it must not call the gate.
pub type ReadSaturation = Arc<dyn Fn(u64) -> Saturation + Send + Sync>;

/// A request at the gate. Times are milliseconds of the gate's clock.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowRequest {
    pub labels: FlowLabels,
    /// Size of its body.
    pub bytes: u64,
    pub arrived_ms: u64,
    /// How long it waits at most, in place of the configured bounds.
    pub ttl_ms: Option<u64>,
    /// For `edf-ordering-policy`.
    pub deadline_ms: Option<u64>,
    /// For `slo-deadline-ordering-policy`.
    pub slo_ttft_ms: Option<f64>,
}

/// See the module. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    shell: Arc<Shell>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate; `settings` are `None` where flow control is off. Its [`timer`](Self::timer) must
    /// run, or nothing that waits is ever refused for having waited.
    pub fn new(
        clock: Clock,
        read: ReadSaturation,
        events: Arc<dyn FlowEvents>,
        settings: Option<FlowSettings>,
    ) -> Self {
        Self {
            shell: Arc::new(Shell::new(clock, read, events, settings)),
        }
    }

    /// Waits until the request may go. Dropping the future takes the request back.
    pub async fn admit(&self, request: FlowRequest) -> Result<Permit, FlowRefusal> {
        match self.shell.enter(request) {
            Entered::Admitted(permit) => Ok(permit),
            Entered::Refused(refusal) => Err(refusal),
            Entered::Waiting { ticket, verdict } => {
                let mut waiting = Waiting {
                    shell: &self.shell,
                    ticket,
                    verdict,
                };
                let verdict = (&mut waiting.verdict).await;
                verdict.unwrap_or_else(|_| Err(Cause::ShutDown.into()))
            }
        }
    }

    /// Looks whether more may go. Costs one load where nothing waits, and where another wake is
    /// about to look anyway.
    pub fn wake(&self) {
        self.shell.wake();
    }

    /// Counts what a program was given, once its response has ended.
    pub fn on_served(&self, fairness_id: &Arc<str>, input_tokens: u64, output_tokens: u64) {
        self.shell
            .on_served(fairness_id, input_tokens, output_tokens);
    }

    /// Takes over other settings; `None` switches flow control off, and all that waits goes.
    pub fn set_settings(&self, settings: Option<FlowSettings>) {
        self.shell.set_settings(settings);
    }

    /// Refuses all that wait and all that come after. Requests in flight are left alone.
    pub fn shut_down(&self) {
        self.shell.shut_down();
    }

    /// What there is to show.
    pub fn view(&self) -> FlowView {
        self.shell.view()
    }

    /// The one timer, to be spawned once. It sleeps until the next deadline, or for good while
    /// there is none, and ends when the gate is dropped.
    pub fn timer(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        shell::timer(&self.shell)
    }
}

/// A request that goes, for as long as this value lives.
#[must_use = "dropping a permit ends its request"]
pub struct Permit {
    /// Absent where flow control is off.
    held: Option<(Arc<Shell>, u64)>,
    evicted: Option<oneshot::Receiver<FlowRefusal>>,
    waited: Duration,
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ticket = self.held.as_ref().map(|(_, ticket)| *ticket);
        formatter
            .debug_struct("Permit")
            .field("ticket", &ticket)
            .finish_non_exhaustive()
    }
}

impl Permit {
    /// Says that the request is counted against its endpoint: readings show it from now on.
    pub fn placed(&self) {
        if let Some((shell, ticket)) = &self.held {
            shell.placed(*ticket);
        }
    }

    /// How long the request waited.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Waits until the request is asked to stop for a more urgent one; for good where it never is.
    /// Losing the future loses nothing: it can be asked for again.
    pub async fn evicted(&mut self) -> FlowRefusal {
        if let Some(evicted) = &mut self.evicted {
            match evicted.await {
                Ok(refusal) => return refusal,
                Err(_) => self.evicted = None,
            }
        }
        pending().await
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((shell, ticket)) = self.held.take() {
            shell.finish(ticket);
        }
    }
}

/// A waiting request. Dropped before its verdict came, it leaves the queue; a permit that was on
/// its way ends with the channel it is in.
struct Waiting<'a> {
    shell: &'a Arc<Shell>,
    ticket: u64,
    verdict: oneshot::Receiver<Result<Permit, FlowRefusal>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shell.cancel(self.ticket);
    }
}
