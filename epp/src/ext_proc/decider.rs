//! What the stream asks of the rest of the house.
//!
//! The stream knows messages and the pipeline knows requests; these two traits are all they say to
//! each other. They also let the stream be tested against deciders that hang, refuse or count.

use std::future::Future;

use super::machine::{Destination, Intake, Outcome};
use super::refusal::Refusal;

/// Turns what came over the stream into an exchange.
pub trait Decider: Send + Sync + 'static {
    type Exchange: Exchange;

    /// Reads the request. Runs on the stream's task, so it computes and does not wait.
    fn begin(&self, intake: Intake<'_>) -> Result<Self::Exchange, Refusal>;

    /// A request was refused before it became an exchange: it could not be read, or was too large.
    fn refused(&self, refusal: &Refusal);
}

/// One request from the moment it is read until its response has gone by. Dropping it releases
/// whatever it holds.
pub trait Exchange: Send + 'static {
    /// Picks. Called once. Dropping the future calls the pick off and leaves nothing taken.
    fn pick(&mut self) -> impl Future<Output = Result<Destination, Refusal>> + Send;

    /// The first byte of the response body went by.
    fn first_byte(&mut self);

    /// The exchange is over. Called once, also for an exchange that was refused or cut.
    fn finish(self, outcome: &Outcome);
}
