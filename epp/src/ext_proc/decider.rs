//! What the stream asks of the rest of the house.
//!
//! The stream knows messages and the pipeline knows requests; these two traits are all they say to
//! each other. They also let the stream be tested against deciders that hang, refuse or count.

use std::future::Future;

use super::machine::{Destination, Intake};
use super::outcome::{Outcome, Progress};
use super::refusal::Refusal;
use super::usage::TokenUsage;

/// Turns what came over the stream into an exchange.
pub trait Decider: Send + Sync + 'static {
    type Exchange: Exchange;

    /// Reads the request. The intake is shared and owned, so that a large body can be read on
    /// another thread; let go of the body before the pick comes back, or it is copied. The deadline
    /// of the decision runs meanwhile. Dropping the future calls the request off.
    fn begin(&self, intake: Intake)
    -> impl Future<Output = Result<Self::Exchange, Refusal>> + Send;

    /// Whether requests may wait for their turn under a bound of their own, so that the deadline of
    /// the decision is not theirs.
    fn may_wait(&self) -> bool {
        false
    }

    /// A request was refused before it became an exchange: it could not be read, or was too large.
    fn refused(&self, refusal: &Refusal);
}

/// One request from the moment it is read until its response has gone by. Dropping it releases
/// whatever it holds.
pub trait Exchange: Send + 'static {
    /// Picks. Called once. Dropping the future calls the pick off and leaves nothing taken.
    fn pick(&mut self) -> impl Future<Output = Result<Destination, Refusal>> + Send;

    /// Comes back when the exchange is to be taken off its endpoint, with the answer for its
    /// client. Waited for from the pick until the response begins, and dropped and called again on
    /// the way; an exchange without a stream cannot be interrupted.
    fn interrupted(&mut self) -> impl Future<Output = Refusal> + Send {
        std::future::pending()
    }

    /// The first byte of the response body went by. Stream mode only.
    fn first_byte(&mut self);

    /// Numbers computed from the usage of a response that has ended, each with the namespace and
    /// the key of the dynamic metadata that it becomes. Stream mode only.
    fn attributes(&self, _usage: &TokenUsage) -> Vec<(String, String, f64)> {
        Vec::new()
    }

    /// The exchange runs without its stream and its gateway sent news of it. Must not wait.
    fn progress(&mut self, _progress: &Progress) {}

    /// The exchange is over. Called once, also for an exchange that was refused or cut.
    fn finish(self, outcome: &Outcome);
}
