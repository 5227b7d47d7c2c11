//! Which exchanges run without a stream: each under a token, for as long as its lease is renewed.
//!
//! In access-log mode a stream ends with the request's last answer, and the response is reported
//! later by an entry that carries our token. Entries get lost (Envoy drops them without a word when
//! its log connection is refused), so nothing may be held until an entry comes: each exchange has a
//! lease, periodic entries renew it, the end entry releases it, and what is not heard of in time is
//! handed back as expired.
//!
//! A token is opened before the answer that carries it goes out. An end entry that overtakes the
//! parking of its exchange is kept with the token and handed back by [`LeaseTable::park`]; an entry
//! whose token was never opened, or is closed, is told apart from it.
//!
//! Bounded by [`LeaseLimits::entries`]: past it the lease that would expire soonest is given up.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rustc_hash::FxHashMap;

/// Names one exchange across the gateway. Tokens of another process, or of this one before a
/// restart, differ in `boot` and so never touch what is counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseToken {
    /// The process that made it.
    pub boot: u64,
    /// Counts up within a process.
    pub counter: u64,
}

impl fmt::Display for LeaseToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}-{:x}", self.boot, self.counter)
    }
}

/// The text is not one that [`LeaseToken`] prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token: 16 hexadecimal digits, a hyphen and a hexadecimal counter were expected")]
pub struct NotAToken;

impl FromStr for LeaseToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (boot, counter) = text.split_once('-').ok_or(NotAToken)?;
        if boot.len() != 16 {
            return Err(NotAToken);
        }
        Ok(Self {
            boot: hexadecimal(boot)?,
            counter: hexadecimal(counter)?,
        })
    }
}

/// Without the sign that the standard parser lets pass.
fn hexadecimal(digits: &str) -> Result<u64, NotAToken> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(NotAToken);
    }
    u64::from_str_radix(digits, 16).map_err(|_| NotAToken)
}

/// Bounds of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseLimits {
    /// How long an exchange is kept without news of it, in milliseconds.
    pub length_ms: u64,
    /// How many exchanges are parked at most.
    pub entries: usize,
}

impl Default for LeaseLimits {
    /// A lease of four intervals of the periodic entries that the gateway's configuration asks for
    /// (15 s).
    fn default() -> Self {
        Self {
            length_ms: 60_000,
            entries: 200_000,
        }
    }
}

/// What became of a parked exchange at once.
#[derive(Debug, PartialEq, Eq)]
pub enum Parked<X, E> {
    /// It waits for its end.
    Waiting,
    /// Its end entry was here before it.
    Ended(X, E),
    /// Its token is not open: the exchange has no lease and goes back.
    NotOpen(X),
}

/// What an end entry meets.
#[derive(Debug, PartialEq, Eq)]
pub enum Released<X> {
    /// The exchange it ends.
    Exchange(X),
    /// Its exchange is about to be parked and will find the entry.
    Early,
    /// No such lease: released before, expired, or never opened.
    Unknown,
}

/// Exchanges `X` by token, and the end entries `E` that came before them.
#[derive(Debug)]
pub struct LeaseTable<X, E> {
    limits: LeaseLimits,
    boot: u64,
    next: u64,
    slots: FxHashMap<u64, Slot<X, E>>,
    /// Parked ones by the time they expire.
    by_expiry: BTreeSet<(u64, u64)>,
}

#[derive(Debug)]
enum Slot<X, E> {
    /// The token is open, its exchange still with its stream.
    Open(Option<E>),
    Parked {
        exchange: X,
        expires_ms: u64,
    },
}

impl<X, E> LeaseTable<X, E> {
    /// An empty table of the process `boot`.
    pub fn new(boot: u64, limits: LeaseLimits) -> Self {
        Self {
            limits,
            boot,
            next: 1,
            slots: FxHashMap::default(),
            by_expiry: BTreeSet::new(),
        }
    }

    /// A new token. It is open until it is closed or its exchange is parked; as each open token
    /// belongs to a running stream, streams bound their number.
    pub fn open(&mut self) -> LeaseToken {
        let counter = self.next;
        self.next += 1;
        self.slots.insert(counter, Slot::Open(None));
        LeaseToken {
            boot: self.boot,
            counter,
        }
    }

    /// Closes a token whose exchange was not parked. A parked exchange stays.
    pub fn close(&mut self, token: LeaseToken) {
        if token.boot == self.boot && matches!(self.slots.get(&token.counter), Some(Slot::Open(_)))
        {
            self.slots.remove(&token.counter);
        }
    }

    /// Keeps the exchange of an open token. Past the bound the one that would expire soonest goes
    /// into `given_up`.
    pub fn park(
        &mut self,
        token: LeaseToken,
        exchange: X,
        now_ms: u64,
        given_up: &mut Vec<X>,
    ) -> Parked<X, E> {
        if !self.is_ours(token) {
            return Parked::NotOpen(exchange);
        }
        match self.slots.remove(&token.counter) {
            Some(Slot::Open(None)) => {}
            Some(Slot::Open(Some(entry))) => return Parked::Ended(exchange, entry),
            Some(parked @ Slot::Parked { .. }) => {
                self.slots.insert(token.counter, parked);
                return Parked::NotOpen(exchange);
            }
            None => return Parked::NotOpen(exchange),
        }
        while self.by_expiry.len() >= self.limits.entries.max(1) {
            self.give_up_first(given_up);
        }
        let expires_ms = now_ms.saturating_add(self.limits.length_ms);
        self.by_expiry.insert((expires_ms, token.counter));
        let slot = Slot::Parked {
            exchange,
            expires_ms,
        };
        self.slots.insert(token.counter, slot);
        Parked::Waiting
    }

    /// Starts the lease of a parked exchange anew and shows the exchange. `None` where none is
    /// parked under the token.
    pub fn renew(&mut self, token: LeaseToken, now_ms: u64) -> Option<&mut X> {
        if !self.is_ours(token) {
            return None;
        }
        match self.slots.get_mut(&token.counter)? {
            Slot::Open(_) => None,
            Slot::Parked {
                exchange,
                expires_ms,
            } => {
                self.by_expiry.remove(&(*expires_ms, token.counter));
                *expires_ms = now_ms.saturating_add(self.limits.length_ms);
                self.by_expiry.insert((*expires_ms, token.counter));
                Some(exchange)
            }
        }
    }

    /// Ends a lease. `entry` makes the note that is left where the exchange is not parked yet.
    pub fn release(&mut self, token: LeaseToken, entry: impl FnOnce() -> E) -> Released<X> {
        if !self.is_ours(token) {
            return Released::Unknown;
        }
        match self.slots.remove(&token.counter) {
            Some(Slot::Parked {
                exchange,
                expires_ms,
            }) => {
                self.by_expiry.remove(&(expires_ms, token.counter));
                Released::Exchange(exchange)
            }
            Some(Slot::Open(known)) => {
                let entry = known.unwrap_or_else(entry);
                self.slots.insert(token.counter, Slot::Open(Some(entry)));
                Released::Early
            }
            None => Released::Unknown,
        }
    }

    /// Takes out every exchange whose lease is over at `now_ms`.
    pub fn expire(&mut self, now_ms: u64, out: &mut Vec<X>) {
        while self.next_expiry().is_some_and(|expiry| expiry <= now_ms) {
            self.give_up_first(out);
        }
    }

    /// When the next lease is over.
    pub fn next_expiry(&self) -> Option<u64> {
        self.by_expiry.first().map(|(expires_ms, _)| *expires_ms)
    }

    /// Exchanges parked.
    pub fn parked(&self) -> usize {
        self.by_expiry.len()
    }

    /// Whether a token is of this process.
    pub fn is_ours(&self, token: LeaseToken) -> bool {
        token.boot == self.boot
    }

    fn give_up_first(&mut self, out: &mut Vec<X>) {
        if let Some((_, counter)) = self.by_expiry.pop_first()
            && let Some(Slot::Parked { exchange, .. }) = self.slots.remove(&counter)
        {
            out.push(exchange);
        }
    }
}

#[cfg(test)]
mod tests;
