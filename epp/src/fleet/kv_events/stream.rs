//! Follows one rank's publisher.
//!
//! ```text
//! connect + subscribe ─▶ replay from where we stand ─▶ live ──┐
//!      ▲                      ▲   gap, or a quiet while │     │ lost
//!      └── back off           └─────────────────────────┘     │
//!      ▲───────────────────────────────────────────────────────┘
//! ```
//!
//! The subscription comes before the replay, so a batch that is published meanwhile is in one of
//! the two; should the publisher learn of the subscription only after it answered the replay, the
//! next live batch shows the gap. Live messages are not read during a replay: they wait in the
//! socket, whose publisher drops past its high-water mark, which again shows as a gap. Nothing
//! queues up here.
//!
//! A batch lost at the end of a burst shows in no number until the next one, which may be hours
//! away. So a quiet stream is checked by a replay now and then, which costs its publisher one
//! batch.

use std::time::Duration;

use pointsman_proto::kv_events::{Batch, Event, Skip, Skipped};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::super::pace::jittered;
use super::EventSource;
use super::connection::{Connection, ConnectionError};
use super::frames::{self, Message};
use super::groups::Groups;
use super::notices::Notice;
use super::replay_pace::ReplayPace;
use super::sequence::{Sequence, Verdict, Void};
use super::sources::Addresses;
use super::subscriber::Shared;
use super::zmtp::Role;

/// Waits between tries to connect double from the first to the last of these.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection that lasted this long ends the backing off.
const STEADY: Duration = Duration::from_secs(10);
/// A stream is checked this often: one that was quiet meanwhile for a lost last batch, one that is
/// incomplete for a replay server that answers again.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// After an event of more tokens, other tasks have their turn first.
const TOKENS_BEFORE_YIELD: usize = 8 << 10;

/// One publisher, followed.
pub(super) struct Stream<'a> {
    pub(super) shared: &'a Shared,
    pub(super) source: EventSource,
    pub(super) addresses: Addresses,
    pub(super) sequence: Sequence,
    pub(super) pace: ReplayPace,
    groups: Groups,
    /// Whether the sink was told that it has everything.
    is_announced: bool,
}

impl<'a> Stream<'a> {
    pub(super) fn new(shared: &'a Shared, source: EventSource, addresses: Addresses) -> Self {
        Self {
            shared,
            source,
            addresses,
            sequence: Sequence::new(),
            pace: ReplayPace::default(),
            groups: Groups::default(),
            is_announced: false,
        }
    }

    /// Follows the publisher until the future is dropped.
    pub(super) async fn run(mut self) {
        if self.addresses.replay.is_none() {
            self.shared.counters.without_replay.one();
            let (endpoint, rank) = (self.shared.name(), self.source.rank);
            info!(
                endpoint,
                rank, "no kv event replay: what was cached before, or is lost, stays unknown"
            );
        }
        let mut wait = BACK_OFF.0;
        loop {
            let began = Instant::now();
            match Connection::open(&self.addresses.events, Role::Subscriber).await {
                Ok(connection) => {
                    self.shared.counters.connects.one();
                    self.notice_connection(Notice::Connected, None);
                    let error = self.follow(connection).await;
                    self.notice_connection(Notice::Disconnected, Some(&error));
                }
                Err(error) => {
                    self.shared.counters.connect_failures.one();
                    self.notice_connection(Notice::Unreachable, Some(&error));
                }
            }
            // A worker that comes back may have its publishers elsewhere.
            self.shared.ask.notify_one();
            if began.elapsed() >= STEADY {
                wait = BACK_OFF.0;
            }
            tokio::time::sleep(jittered(wait, rand::random())).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// Follows a connection to its end.
    async fn follow(&mut self, mut connection: Connection) -> ConnectionError {
        self.sequence.connected();
        if self.can_replay() {
            self.catch_up(false).await;
        }
        self.announce();
        let mut check_at = next_check();
        let mut is_quiet = true;
        loop {
            tokio::select! {
                received = connection.receive() => match received {
                    Ok(message) => {
                        is_quiet = false;
                        self.take_live(&message).await;
                    }
                    Err(error) => return error,
                },
                () = tokio::time::sleep_until(check_at) => {
                    let is_incomplete = !self.sequence.is_complete();
                    if self.can_replay() && (is_quiet || is_incomplete) {
                        self.catch_up(is_incomplete).await;
                    }
                    check_at = next_check();
                    is_quiet = true;
                }
            }
            self.announce();
        }
    }

    async fn take_live(&mut self, message: &[bytes::Bytes]) {
        let message = match frames::live(message) {
            Ok(message) => message,
            Err(error) => return self.malformed(&error),
        };
        let fingerprint = xxh3_64(&message.payload);
        let number = message.sequence;
        let verdict = match self.sequence.live(number, fingerprint, self.can_replay()) {
            Verdict::Replay => {
                self.gap(number);
                self.catch_up(false).await;
                self.sequence.settle(number, fingerprint)
            }
            verdict @ Verdict::Clear(Void::Lost(_)) => {
                self.gap(number);
                verdict
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Take => {}
            Verdict::Skip | Verdict::Replay => return self.shared.counters.duplicate_batches.one(),
            Verdict::Clear(void) => self.clear(void),
        }
        self.take(&message).await;
    }

    /// Hands a batch on, event by event. Where it cannot be said what it removed, everything that
    /// was handed on is void.
    pub(super) async fn take(&mut self, message: &Message) {
        let counters = &self.shared.counters;
        let batch = match Batch::open(&message.payload) {
            Ok(batch) => batch,
            Err(error) => {
                self.malformed(&error);
                return self.spoil();
            }
        };
        counters.batches.one();
        self.check_rank(batch.data_parallel_rank);
        let model = frames::model_of(&message.topic).unwrap_or(&self.shared.model);
        let mut hides_removals = false;
        for event in batch {
            let tokens = match event {
                Ok(event) if self.groups.admit(&event) => {
                    if event.event == Event::AllBlocksCleared {
                        self.sequence.emptied();
                    }
                    counters.events.one();
                    self.shared.sink.apply(self.source, model, &event.event);
                    tokens_of(&event.event)
                }
                Ok(_) => {
                    counters.unindexed_events.one();
                    0
                }
                Err(skipped) => {
                    hides_removals |= self.skipped(&skipped);
                    0
                }
            };
            if tokens > TOKENS_BEFORE_YIELD {
                tokio::task::yield_now().await;
            } else {
                tokio::task::coop::consume_budget().await;
            }
        }
        if hides_removals {
            self.spoil();
        }
    }

    /// What was handed on is void.
    pub(super) fn clear(&mut self, void: Void) {
        self.shared.counters.resets.one();
        if let Void::Lost(batches) = void {
            self.shared.counters.lost_batches.add(batches);
        }
        self.drop_blocks(match void {
            Void::NewLife => "its engine started over",
            Void::Lost(_) => "events are lost",
        });
    }

    /// Whether there is a replay server that may be asked now.
    fn can_replay(&self) -> bool {
        self.addresses.replay.is_some() && self.pace.wait_ms((self.shared.now)()).is_some()
    }

    /// Tells the sink, once, that it has everything.
    fn announce(&mut self) {
        if self.sequence.is_complete() && !self.is_announced {
            self.is_announced = true;
            self.shared.sink.followed(self.source);
        }
    }

    fn spoil(&mut self) {
        self.sequence.spoil();
        self.shared.counters.resets.one();
        self.drop_blocks("a removal cannot be read");
    }

    fn drop_blocks(&mut self, reason: &str) {
        self.is_announced = false;
        self.groups = Groups::default();
        self.shared.sink.clear(self.source);
        if let Some(times) = self.shared.notice(Notice::Cleared) {
            let (endpoint, rank) = (self.shared.name(), self.source.rank);
            warn!(endpoint, rank, times, reason, "kv blocks of a rank dropped");
        }
    }

    fn check_rank(&self, named: Option<u32>) {
        let rank = self.source.rank;
        if let Some(named) = named.filter(|named| *named != rank) {
            self.shared.counters.rank_mismatches.one();
            if let Some(times) = self.shared.notice(Notice::Rank) {
                let endpoint = self.shared.name();
                warn!(endpoint, rank, named, times, "kv events name another rank");
            }
        }
    }

    /// Counts a skipped event; true when it may have removed blocks.
    fn skipped(&self, skipped: &Skipped) -> bool {
        let counters = &self.shared.counters;
        match skipped.skip {
            Skip::NotIndexed => {
                counters.unindexed_events.one();
                return false;
            }
            Skip::UnknownTag => counters.unknown_events.one(),
            Skip::Malformed => counters.malformed_events.one(),
        }
        if let Some(times) = self.shared.notice(Notice::Skipped) {
            let endpoint = self.shared.name();
            let Skipped { tag, reason, .. } = skipped;
            warn!(endpoint, tag, reason, times, "kv event skipped");
        }
        skipped.skip == Skip::Malformed && skipped.tag != "BlockStored"
    }

    fn gap(&self, number: u64) {
        self.shared.counters.gaps.one();
        if let Some(times) = self.shared.notice(Notice::Gap) {
            let (endpoint, rank) = (self.shared.name(), self.source.rank);
            warn!(endpoint, rank, number, times, "kv event gap");
        }
    }

    fn malformed(&self, error: &dyn std::error::Error) {
        self.shared.counters.malformed_batches.one();
        if let Some(times) = self.shared.notice(Notice::Malformed) {
            let (endpoint, rank) = (self.shared.name(), self.source.rank);
            warn!(endpoint, rank, %error, times, "kv event batch malformed");
        }
    }

    fn notice_connection(&self, notice: Notice, error: Option<&ConnectionError>) {
        let Some(times) = self.shared.notice(notice) else {
            return;
        };
        let (endpoint, rank) = (self.shared.name(), self.source.rank);
        let address = &self.addresses.events;
        match error {
            None => info!(endpoint, rank, address, times, "kv events connected"),
            Some(error) if notice == Notice::Unreachable => {
                debug!(endpoint, rank, address, %error, times, "kv events not reachable");
            }
            Some(error) => info!(endpoint, rank, %error, times, "kv events disconnected"),
        }
    }
}

fn next_check() -> Instant {
    Instant::now() + jittered(CHECK_INTERVAL, rand::random())
}

fn tokens_of(event: &Event) -> usize {
    match event {
        Event::BlockStored(stored) => stored.token_ids.len(),
        Event::BlockRemoved(_) | Event::AllBlocksCleared => 0,
    }
}
