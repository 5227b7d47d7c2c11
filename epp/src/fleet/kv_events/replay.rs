//! Catching up: replays until nothing is missing, or until it is plain that more cannot be had.
//!
//! A replay server of the field sends its whole buffer at once through a socket that drops what it
//! cannot queue, so one replay may bring only its beginning. It is then asked again from there, in
//! a few rounds. Rounds of all endpoints share a few places, and each has its time: whoever needs
//! longer queues up again, so that a fleet that lost everything at once neither replays all at once
//! nor waits for its slowest member.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::{Connection, ConnectionError};
use super::frames::{self, Answer, FrameError, Message};
use super::notices::Notice;
use super::sequence::{Answered, Void};
use super::stream::Stream;
use super::zmtp::Role;

/// Rounds that run at the same time in the whole process. Further ones wait for their turn.
pub(super) const REPLAYS_AT_ONCE: usize = 8;
/// Silence that ends a round.
const IDLE: Duration = Duration::from_secs(2);
/// Time of one round.
const ROUND: Duration = Duration::from_secs(10);
/// Time for all rounds of one catching up, without the waiting for places.
const TOTAL: Duration = Duration::from_mins(2);
/// Wait before a round that follows one which brought nothing.
const AGAIN: Duration = Duration::from_millis(100);
/// Engines found to have started over during one catching up; one more ends it.
const START_OVERS_MAX: u32 = 2;

/// Why catching up was given up, or one round of it.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("malformed answer: {0}")]
    Frames(#[from] FrameError),
    #[error("no answer for {IDLE:?}")]
    Idle,
    #[error("a round took longer than {ROUND:?}")]
    Round,
    #[error("not finished within {TOTAL:?}")]
    Total,
    #[error("the same batches are missing from every replay")]
    NoProgress,
    #[error("the engine seems to start over again and again")]
    StartOvers,
}

/// How a round ended.
enum Round {
    Done,
    Again,
    StartedOver,
}

impl Stream<'_> {
    /// Replays what was missed. `from_scratch` = what is known is incomplete: it is dropped as soon
    /// as the server answers, and everything is replayed.
    pub(super) async fn catch_up(&mut self, from_scratch: bool) {
        let Some(address) = self.addresses.replay.clone() else {
            return;
        };
        let wait_ms = self.pace.wait_ms((self.shared.now)()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        self.sequence.begin_catch_up();
        let outcome = self.rounds(&address, from_scratch).await;
        let now_ms = (self.shared.now)();
        match outcome {
            Ok(()) => self.pace.succeeded(now_ms),
            Err(error) => {
                self.pace.failed(now_ms);
                self.shared.counters.replay_failures.one();
                if let Some(times) = self.shared.notice(Notice::ReplayFailed) {
                    let (endpoint, rank) = (self.shared.name(), self.source.rank);
                    debug!(endpoint, rank, %error, times, "kv event replay given up");
                }
            }
        }
    }

    async fn rounds(&mut self, address: &str, mut from_scratch: bool) -> Result<(), ReplayError> {
        let mut spent = Duration::ZERO;
        let mut start_overs = 0;
        let mut error = ReplayError::NoProgress;
        loop {
            let first = self.sequence.ask();
            let Some(first) = first.map(|first| if from_scratch { 0 } else { first }) else {
                return Err(error);
            };
            let Ok(place) = self.shared.replays.acquire().await else {
                return Err(ReplayError::Total);
            };
            let began = Instant::now();
            let round = self.round(address, first, &mut from_scratch).await;
            drop(place);
            spent += began.elapsed();
            match round {
                Ok(Round::Done) => return Ok(()),
                Ok(Round::Again) => {}
                Ok(Round::StartedOver) => {
                    start_overs += 1;
                    if start_overs > START_OVERS_MAX {
                        return Err(ReplayError::StartOvers);
                    }
                }
                Err(failure) => {
                    error = failure;
                    tokio::time::sleep(AGAIN).await;
                }
            }
            if spent >= TOTAL {
                return Err(ReplayError::Total);
            }
        }
    }

    /// One request and its answers. Its time is looked at between answers only, so that a batch is
    /// never left half taken over.
    async fn round(
        &mut self,
        address: &str,
        first: u64,
        from_scratch: &mut bool,
    ) -> Result<Round, ReplayError> {
        self.shared.counters.replays.one();
        let ends_at = Instant::now() + ROUND;
        let mut connection = Connection::open(address, Role::Dealer).await?;
        connection.send(&frames::request(first)).await?;
        loop {
            let now = Instant::now();
            let patience = ends_at.checked_duration_since(now);
            let patience = patience.ok_or(ReplayError::Round)?.min(IDLE);
            let received = tokio::time::timeout(patience, connection.receive()).await;
            let answer = frames::answer(&received.map_err(|_| ReplayError::Idle)??)?;
            if std::mem::take(from_scratch) {
                // It answers, so what is known in part can be let go.
                self.start_over(Void::Lost(0));
                self.sequence.ask();
            }
            match answer {
                Answer::Batch(message) => {
                    if let Some(end) = self.take_answer(&message).await {
                        return Ok(end);
                    }
                }
                Answer::End if self.sequence.end_replay() => return Ok(Round::Done),
                Answer::End => {
                    self.start_over(Void::NewLife);
                    return Ok(Round::StartedOver);
                }
            }
        }
    }

    /// Takes one answer over; returns how the round ends, if it does.
    async fn take_answer(&mut self, message: &Message) -> Option<Round> {
        let fingerprint = xxh3_64(&message.payload);
        match self.sequence.answered(message.sequence, fingerprint) {
            Answered::Take { skipped } => {
                if skipped > 0 {
                    self.shared.counters.truncated_replays.one();
                }
            }
            Answered::Skip => return None,
            Answered::Clear(void) => self.clear(void),
            Answered::AskAgain => return Some(Round::Again),
            Answered::StartOver => {
                self.start_over(Void::NewLife);
                return Some(Round::StartedOver);
            }
        }
        self.take(message).await;
        None
    }

    fn start_over(&mut self, void: Void) {
        self.clear(void);
        self.sequence.start_over();
    }
}
