//! What a sequence number means in one engine's stream of events. Pure: numbers in, verdicts out.
//!
//! An engine numbers its batches from 0 and keeps the last few thousand for replay. A subscriber
//! may join late, lose batches (a publisher drops what a slow reader does not take), be
//! disconnected, and come back to another life of the engine that started over at 0. Numbers alone
//! cannot tell a late duplicate from a new life: after a reconnect, number 3 where 5,000 was
//! expected may be either. So every replay starts one batch before the expected one. The same
//! publisher answers with the very batch seen last, byte for byte (compared by a hash of its
//! payload); anything else is another life, and everything known of the earlier one is void.
//!
//! **What cannot be brought back voids what is known.** A lost batch may have removed blocks, and
//! an engine never says again that a block is gone. Keeping what was known would credit it with
//! those blocks for as long as it lives, and each such block once more draws a request to a prefix
//! that is not there. So past a loss only what is heard afterwards is believed; the approximate
//! index bridges the time until the cache has turned over. With a replay server, the default, it
//! takes an absence of thousands of steps to come to this, and by then most of what was known is
//! gone from the engine too.
//!
//! Without a replay server the rules are weaker: on a new connection the expected number is taken
//! for the same life, a lower one for a new life, and any jump is a loss. Where a server is known
//! and does not answer, the same holds until it does; then everything is replayed from scratch.

/// Asking for a replay from the same number this many times in a row ends the asking: what lies
/// there is not to be had.
pub const ASKS_WITHOUT_PROGRESS_MAX: u32 = 3;

/// What to do with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Hand it on.
    Take,
    /// It was handed on already.
    Skip,
    /// What was handed on so far is void. Clear it, then hand this batch on.
    Clear(Void),
    /// Something before it is missing, or it may be of another life. Replay, then
    /// [`settle`](Sequence::settle) it.
    Replay,
}

/// Why what was handed on is void.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Void {
    /// The engine started over.
    NewLife,
    /// This many batches are lost.
    Lost(u64),
}

/// What to do with an answer of a replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// Hand it on. `skipped` = batches before it that left the replay buffer before we ever asked:
    /// they were never ours.
    Take { skipped: u64 },
    /// It was handed on already.
    Skip,
    /// As [`Verdict::Clear`].
    Clear(Void),
    /// Batches before it were dropped on their way. Drop this one too and ask again.
    AskAgain,
    /// The server knows another life, or no more the batch seen last. Clear what was handed on and
    /// ask again.
    StartOver,
}

/// Where a subscriber stands in one engine's stream.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sequence {
    next: u64,
    /// Fingerprint of batch `next - 1`; absent until a first batch was taken over.
    last: Option<u64>,
    /// The number last seen live on this connection.
    live: Option<u64>,
    /// Whether this connection is known to reach the life of the engine that `next` belongs to.
    same_life: bool,
    /// Whether nothing that can be had is missing from what was handed on.
    complete: bool,
    /// Something is missing, or doubtful, that only a replay from scratch can mend.
    is_partial: bool,
    /// A replay has begun and its first answer must be the batch seen last.
    overlap_due: bool,
    /// The `next` of the last replay asked for, and how often in a row it was that one.
    asked: Option<(u64, u32)>,
}

impl Sequence {
    /// A stream of which nothing was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing that can be had is missing: everything was replayed as far as replay goes,
    /// or the stream was heard from its first batch or from an emptied cache on.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A connection was made. Who is at its other end is not known yet.
    pub fn connected(&mut self) {
        self.live = None;
        self.same_life = false;
        self.overlap_due = false;
    }

    /// Judges a live batch. `can_replay` = there is a server that may be asked now.
    pub fn live(&mut self, sequence: u64, fingerprint: u64, can_replay: bool) -> Verdict {
        // Within one life numbers only rise, so who goes back is another, or repeats itself.
        let goes_back = self.live.is_some_and(|live| sequence <= live);
        self.live = Some(sequence);
        self.same_life &= !goes_back;
        let is_plain = self.same_life && sequence <= self.next;
        if can_replay && !is_plain {
            return Verdict::Replay;
        }
        self.settle(sequence, fingerprint)
    }

    /// Judges a live batch once there is nothing more to replay. Never [`Verdict::Replay`].
    pub fn settle(&mut self, sequence: u64, fingerprint: u64) -> Verdict {
        if self.last.is_none() {
            // Nothing was handed on, so there is nothing to clear.
            self.is_partial |= sequence != self.next;
            self.complete = !self.is_partial && (self.complete || sequence == 0);
            self.advance(sequence, fingerprint);
            return Verdict::Take;
        }
        if sequence == self.next {
            // Nobody vouches for it being the same life.
            self.is_partial |= !self.same_life;
            self.complete &= !self.is_partial;
            self.advance(sequence, fingerprint);
            return Verdict::Take;
        }
        if sequence < self.next && self.same_life {
            return Verdict::Skip;
        }
        let void = match sequence.checked_sub(self.next) {
            None => Void::NewLife,
            Some(lost) => Void::Lost(lost),
        };
        self.complete = sequence == 0;
        self.is_partial = sequence != 0;
        self.advance(sequence, fingerprint);
        Verdict::Clear(void)
    }

    /// The rounds of a replay begin.
    pub fn begin_catch_up(&mut self) {
        self.asked = None;
    }

    /// Begins a round: the number to ask from, or none when asking brings nothing more.
    pub fn ask(&mut self) -> Option<u64> {
        let times = match self.asked {
            Some((next, times)) if next == self.next => times + 1,
            _ => 1,
        };
        if times > ASKS_WITHOUT_PROGRESS_MAX {
            self.overlap_due = false;
            return None;
        }
        self.asked = Some((self.next, times));
        self.overlap_due = self.last.is_some();
        Some(self.next.saturating_sub(u64::from(self.overlap_due)))
    }

    /// Judges an answer.
    pub fn answered(&mut self, sequence: u64, fingerprint: u64) -> Answered {
        if std::mem::take(&mut self.overlap_due) {
            if sequence.checked_add(1) != Some(self.next) || self.last != Some(fingerprint) {
                return Answered::StartOver;
            }
            self.same_life = true;
            return Answered::Skip;
        }
        self.same_life = true;
        let Some(missing) = sequence.checked_sub(self.next) else {
            return Answered::Skip;
        };
        if missing > 0 && self.last.is_some() {
            if self.may_ask_again() {
                return Answered::AskAgain;
            }
            // What was missing before is void with the rest.
            self.is_partial = false;
            self.advance(sequence, fingerprint);
            return Answered::Clear(Void::Lost(missing));
        }
        self.advance(sequence, fingerprint);
        Answered::Take { skipped: missing }
    }

    /// Judges the end of a replay: false when the batch seen last was not there, which means that
    /// the engine started over and has published nothing since. Then as [`Answered::StartOver`].
    pub fn end_replay(&mut self) -> bool {
        if std::mem::take(&mut self.overlap_due) {
            return false;
        }
        self.same_life = true;
        self.complete = !self.is_partial;
        true
    }

    /// Everything is void, and so is where this stands.
    pub fn start_over(&mut self) {
        *self = Self {
            live: self.live,
            ..Self::default()
        };
    }

    /// The batch taken over last could not be read, so nobody knows what is held now.
    pub fn spoil(&mut self) {
        self.complete = false;
    }

    /// The batch taken over last emptied the cache, so everything that is held is known.
    pub fn emptied(&mut self) {
        self.is_partial = false;
        self.complete = true;
    }

    fn may_ask_again(&self) -> bool {
        self.asked
            .is_some_and(|(next, times)| next != self.next || times < ASKS_WITHOUT_PROGRESS_MAX)
    }

    fn advance(&mut self, sequence: u64, fingerprint: u64) {
        self.next = sequence.saturating_add(1);
        self.last = Some(fingerprint);
        // A batch that was handed on is of the life that this connection reaches.
        self.same_life = true;
    }
}

#[cfg(test)]
mod tests;
