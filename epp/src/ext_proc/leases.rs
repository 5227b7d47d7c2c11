//! The exchanges that run without a stream: the lease table with a lock, a clock and counters.
//!
//! The lock is held for a look-up or an insertion, never while an exchange finishes, so that the
//! access log is read as fast as it comes. What an exchange does at its end must not wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::access_log::{Malformed, Report};
use super::decider::Exchange;
use super::lease::{LeaseLimits, LeaseTable, LeaseToken, Parked, Released};
use super::outcome::{End, Outcome};
use crate::clock::Clock;

/// How often the table is looked through for leases that are over.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// What counts as lately.
const LATELY_MS: u64 = 300_000;
/// Turns of the expiry that are remembered for it, which is one every half second of [`LATELY_MS`].
const LATELY_ENTRIES: usize = 600;

/// What became of leases and of the entries that are to release them. All count up.
#[derive(Debug, Default)]
pub struct LeaseCounters {
    /// Exchanges ended by their entry.
    pub ended: AtomicU64,
    /// Leases renewed by a periodic entry.
    pub renewed: AtomicU64,
    /// Leases that were over before news came: lost entries, or a gateway that is gone.
    pub expired: AtomicU64,
    /// Leases given up because the table was full.
    pub given_up: AtomicU64,
    /// Entries with the token of another process, or of this one before a restart.
    pub foreign: AtomicU64,
    /// Entries with a token of ours that is no lease any more.
    pub late: AtomicU64,
    /// Entries without a token.
    pub without_token: AtomicU64,
    /// Entries of kinds that say nothing to the picker.
    pub other: AtomicU64,
    /// Entries that make no sense.
    pub malformed: AtomicU64,
    /// Access-log streams that broke off.
    pub broken_streams: AtomicU64,
}

impl LeaseCounters {
    /// The entries of the access log by kind.
    pub fn kinds(&self) -> [(&'static str, u64); 7] {
        let of = |count: &AtomicU64| count.load(Relaxed);
        [
            ("end", of(&self.ended)),
            ("periodic", of(&self.renewed)),
            ("foreign", of(&self.foreign)),
            ("late", of(&self.late)),
            ("untokened", of(&self.without_token)),
            ("other", of(&self.other)),
            ("malformed", of(&self.malformed)),
        ]
    }
}

/// All leases of one picker.
#[derive(Debug)]
pub struct Leases<X> {
    table: Mutex<LeaseTable<X, Outcome>>,
    clock: Clock,
    counters: Arc<LeaseCounters>,
    /// When leases ran out, and how many; bounded by [`LATELY_ENTRIES`].
    lately: Mutex<VecDeque<(u64, u64)>>,
    emptied: Notify,
}

impl<X: Exchange> Leases<X> {
    /// `boot` names this process among all that ever serve the gateway; it should be random.
    pub fn new(boot: u64, limits: LeaseLimits, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(LeaseTable::new(boot, limits)),
            clock,
            counters: Arc::default(),
            lately: Mutex::default(),
            emptied: Notify::new(),
        })
    }

    /// What happened so far.
    pub fn counters(&self) -> Arc<LeaseCounters> {
        Arc::clone(&self.counters)
    }

    /// Exchanges that run without a stream now.
    pub fn parked(&self) -> usize {
        self.table.lock().parked()
    }

    /// A token for an answer that is about to go out.
    pub fn open(self: &Arc<Self>) -> OpenLease<X> {
        OpenLease {
            token: self.table.lock().open(),
            leases: Arc::clone(self),
        }
    }

    /// Takes in what an access-log entry says.
    pub fn report(&self, report: Result<Report, Malformed>) {
        let counters = &self.counters;
        match report {
            Ok(Report::Ended(token, outcome)) => self.end(token, outcome),
            Ok(Report::Running(token, progress)) => {
                let mut table = self.table.lock();
                if let Some(exchange) = table.renew(token, self.clock.now_ms()) {
                    exchange.progress(&progress);
                    counters.renewed.fetch_add(1, Relaxed);
                } else if !table.is_ours(token) {
                    counters.foreign.fetch_add(1, Relaxed);
                }
            }
            Ok(Report::WithoutToken) => count(&counters.without_token),
            Ok(Report::Other) => count(&counters.other),
            Err(_) => count(&counters.malformed),
        }
    }

    /// Leases that ran out within the last five minutes.
    pub fn expired_lately(&self) -> u64 {
        let from_ms = self.clock.now_ms().saturating_sub(LATELY_MS);
        let lately = self.lately.lock();
        let counted = lately.iter().filter(|(at_ms, _)| *at_ms >= from_ms);
        counted.map(|(_, count)| count).sum()
    }

    /// Ends every exchange whose lease is over.
    pub fn expire_now(&self) {
        let mut expired = Vec::new();
        self.table.lock().expire(self.clock.now_ms(), &mut expired);
        self.counters
            .expired
            .fetch_add(expired.len() as u64, Relaxed);
        if !expired.is_empty() {
            let mut lately = self.lately.lock();
            if lately.len() == LATELY_ENTRIES {
                lately.pop_front();
            }
            lately.push_back((self.clock.now_ms(), expired.len() as u64));
        }
        lose(expired);
        self.tell_if_empty();
    }

    /// Ends exchanges as their leases run out, for as long as the picker runs.
    pub async fn keep_expiring(self: Arc<Self>) {
        let mut tick = tokio::time::interval(EXPIRY_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.expire_now();
        }
    }

    /// Comes back when no exchange runs without a stream.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.parked() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn end(&self, token: LeaseToken, outcome: Outcome) {
        let mut kept = Some(outcome);
        let note = || kept.take().unwrap_or_else(|| Outcome::new(End::Unseen));
        let (released, is_ours) = {
            let mut table = self.table.lock();
            (table.release(token, note), table.is_ours(token))
        };
        match released {
            Released::Exchange(exchange) => {
                if let Some(outcome) = kept {
                    exchange.finish(&outcome);
                }
                count(&self.counters.ended);
                self.tell_if_empty();
            }
            // Finished by the one who parks it.
            Released::Early => {}
            Released::Unknown if is_ours => count(&self.counters.late),
            Released::Unknown => count(&self.counters.foreign),
        }
    }

    fn tell_if_empty(&self) {
        if self.parked() == 0 {
            self.emptied.notify_waiters();
        }
    }
}

/// A token that is out and whose exchange is still with its stream. Dropping it closes the token.
#[derive(Debug)]
pub struct OpenLease<X: Exchange> {
    leases: Arc<Leases<X>>,
    token: LeaseToken,
}

impl<X: Exchange> OpenLease<X> {
    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// Lets the exchange run on without its stream. Where its end came first, it finishes here.
    pub fn park(self, exchange: X) {
        let leases = &self.leases;
        let mut given_up = Vec::new();
        let parked = {
            let mut table = leases.table.lock();
            table.park(self.token, exchange, leases.clock.now_ms(), &mut given_up)
        };
        match parked {
            Parked::Waiting => {}
            Parked::Ended(exchange, outcome) => {
                exchange.finish(&outcome);
                count(&leases.counters.ended);
            }
            Parked::NotOpen(exchange) => given_up.push(exchange),
        }
        leases
            .counters
            .given_up
            .fetch_add(given_up.len() as u64, Relaxed);
        lose(given_up);
    }
}

impl<X: Exchange> Drop for OpenLease<X> {
    fn drop(&mut self) {
        self.leases.table.lock().close(self.token);
    }
}

fn lose<X: Exchange>(exchanges: Vec<X>) {
    for exchange in exchanges {
        exchange.finish(&Outcome::new(End::Expired));
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext_proc::{Destination, Refusal};

    /// Notes how it finished.
    #[derive(Debug)]
    struct Noting(Arc<Mutex<Vec<End>>>);

    impl Exchange for Noting {
        async fn pick(&mut self) -> Result<Destination, Refusal> {
            Ok(Destination::default())
        }

        fn first_byte(&mut self) {}

        fn finish(self, outcome: &Outcome) {
            self.0.lock().push(outcome.end.clone());
        }
    }

    fn leases(entries: usize) -> (Arc<Leases<Noting>>, Arc<Mutex<Vec<End>>>) {
        let limits = LeaseLimits {
            length_ms: 100,
            entries,
        };
        (
            Leases::new(1, limits, Clock::manual().0),
            Arc::new(Mutex::new(Vec::new())),
        )
    }

    fn ended(token: LeaseToken) -> Report {
        Report::Ended(token, Outcome::new(End::Completed))
    }

    #[test]
    fn entry_that_overtakes_the_parking_ends_the_exchange_as_it_parks() {
        let (leases, ends) = leases(10);
        let lease = leases.open();
        leases.report(Ok(ended(lease.token())));
        assert_eq!(*ends.lock(), []);
        lease.park(Noting(Arc::clone(&ends)));
        assert_eq!(*ends.lock(), [End::Completed]);
        assert_eq!(leases.counters().ended.load(Relaxed), 1);
    }

    #[test]
    fn dropped_lease_is_closed() {
        let (leases, _) = leases(10);
        let token = leases.open().token();
        leases.report(Ok(ended(token)));
        assert_eq!(leases.counters().late.load(Relaxed), 1);
    }

    #[test]
    fn full_table_gives_the_oldest_up_as_expired() {
        let (leases, ends) = leases(1);
        for _ in 0..2 {
            leases.open().park(Noting(Arc::clone(&ends)));
        }
        assert_eq!(*ends.lock(), [End::Expired]);
        assert_eq!(leases.counters().given_up.load(Relaxed), 1);
        assert_eq!(leases.parked(), 1);
    }

    #[tokio::test]
    async fn emptied_comes_back_with_the_last_release() {
        let (leases, ends) = leases(10);
        leases.emptied().await;
        let lease = leases.open();
        let token = lease.token();
        lease.park(Noting(ends));
        let waits = tokio::spawn({
            let leases = Arc::clone(&leases);
            async move { leases.emptied().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        leases.report(Ok(ended(token)));
        waits.await.expect("emptied");
    }
}
