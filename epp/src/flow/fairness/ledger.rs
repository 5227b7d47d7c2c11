//! What each program got, decaying with time.
//!
//! All accounts decay at one rate, so their order changes only when somebody is served. The ledger
//! therefore keeps each sum as if it had been earned at one landmark: a cost at time `t` is written
//! as `cost * 2^((t - landmark) / half-life)`, sums of one landmark compare as they are, and no pick
//! computes a power. From time to time the landmark moves on and all sums shrink with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::program_aware::Parameters;

/// Most programs known at a time. Beyond it the one that was unused for longest is forgotten; while
/// none is unused, a new program shares the account [`OTHER`].
pub const ACCOUNTS_MAX: usize = 8_192;

/// The program that requests beyond the bounds are counted to.
pub const OTHER: &str = "other";

/// The account of [`OTHER`].
const OTHER_SLOT: u32 = 0;

/// Half-lives after which the landmark moves.
const LANDMARK_SPAN: f64 = 32.0;

/// What is known of a program.
#[derive(Clone, PartialEq, Debug)]
struct Account {
    id: Arc<str>,
    /// Service as of the landmark.
    scaled: f64,
    /// Flows that wait under this id.
    holders: u32,
    last_ms: u64,
    dispatched: u64,
    waited_ms: u64,
}

/// A program as it is shown.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Program {
    pub id: Arc<str>,
    /// Tokens, output counted twice, decayed to now.
    pub attained_service_tokens: f64,
    /// Mean over everything dispatched so far.
    pub avg_wait_ms: f64,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    half_life_ms: f64,
    ttl_ms: u64,
    landmark_ms: u64,
    index: HashMap<Arc<str>, u32>,
    accounts: Vec<Account>,
    free: Vec<u32>,
    /// Accounts that nobody holds, by when they were last used.
    idle: BTreeSet<(u64, u32)>,
}

impl Ledger {
    /// A ledger that only knows [`OTHER`].
    pub fn new(parameters: &Parameters, now_ms: u64) -> Self {
        let other: Arc<str> = Arc::from(OTHER);
        Self {
            half_life_ms: parameters.half_life_ms(),
            ttl_ms: parameters.ttl_ms(),
            landmark_ms: now_ms,
            index: HashMap::from([(Arc::clone(&other), OTHER_SLOT)]),
            accounts: vec![Account::new(other, now_ms)],
            free: Vec::new(),
            idle: BTreeSet::new(),
        }
    }

    /// Takes over other parameters. What was earned so far stays.
    pub fn set_parameters(&mut self, parameters: &Parameters, now_ms: u64) {
        self.move_landmark(now_ms);
        self.half_life_ms = parameters.half_life_ms();
        self.ttl_ms = parameters.ttl_ms();
    }

    /// Finds or makes the account of a program and holds it until [`close`](Self::close).
    pub fn open(&mut self, id: &Arc<str>, now_ms: u64) -> u32 {
        let slot = self.slot(id, now_ms);
        if let Some(account) = self.accounts.get_mut(slot as usize) {
            if account.holders == 0 {
                self.idle.remove(&(account.last_ms, slot));
            }
            account.holders += 1;
        }
        slot
    }

    /// Gives an account back. It stays known for the time that unused ones do.
    pub fn close(&mut self, slot: u32, now_ms: u64) {
        if let Some(account) = self.accounts.get_mut(slot as usize) {
            account.holders = account.holders.saturating_sub(1);
            account.last_ms = now_ms;
            if account.holders == 0 && slot != OTHER_SLOT {
                self.idle.insert((now_ms, slot));
            }
        }
    }

    /// The service of an account, to be compared with others of this ledger only.
    pub fn standing(&self, slot: u32) -> f64 {
        self.accounts
            .get(slot as usize)
            .map_or(0.0, |account| account.scaled)
    }

    /// Counts a dispatch after a wait.
    pub fn dispatched(&mut self, slot: u32, waited_ms: u64) {
        if let Some(account) = self.accounts.get_mut(slot as usize) {
            account.dispatched += 1;
            account.waited_ms = account.waited_ms.saturating_add(waited_ms);
        }
    }

    /// Counts service to a program, in tokens.
    pub fn served(&mut self, id: &Arc<str>, tokens: f64, now_ms: u64) {
        if self.half_lives(now_ms) > LANDMARK_SPAN {
            self.move_landmark(now_ms);
        }
        let scaled = tokens * self.half_lives(now_ms).exp2();
        let slot = self.open(id, now_ms);
        if let Some(account) = self.accounts.get_mut(slot as usize) {
            account.scaled += scaled;
        }
        self.close(slot, now_ms);
    }

    /// Jain's fairness index over the programs' mean waits: 1 when all wait the same, towards
    /// `1 / programs` when one waits for all.
    pub fn jains_index(&self) -> f64 {
        let (mut sum, mut squares, mut programs) = (0.0, 0.0, 0_u32);
        for wait in self.accounts.iter().filter_map(Account::mean_wait_ms) {
            sum += wait;
            squares += wait * wait;
            programs += 1;
        }
        if squares <= 0.0 {
            return 1.0;
        }
        sum * sum / (f64::from(programs) * squares)
    }

    /// The programs that were dispatched or served.
    pub fn programs(&self, now_ms: u64) -> Vec<Program> {
        let decay = (-self.half_lives(now_ms)).exp2();
        self.accounts
            .iter()
            .filter(|account| account.dispatched > 0 || account.scaled > 0.0)
            .map(|account| Program {
                id: Arc::clone(&account.id),
                attained_service_tokens: account.scaled * decay,
                avg_wait_ms: account.mean_wait_ms().unwrap_or(0.0),
            })
            .collect()
    }

    fn slot(&mut self, id: &Arc<str>, now_ms: u64) -> u32 {
        if let Some(slot) = self.index.get(id) {
            return *slot;
        }
        while let Some((last_ms, slot)) = self.idle.first().copied()
            && (last_ms.saturating_add(self.ttl_ms) <= now_ms || self.index.len() >= ACCOUNTS_MAX)
        {
            self.forget(last_ms, slot);
        }
        if self.index.len() >= ACCOUNTS_MAX {
            return OTHER_SLOT;
        }
        let account = Account::new(Arc::clone(id), now_ms);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => self.accounts.len() as u32,
        };
        match self.accounts.get_mut(slot as usize) {
            Some(place) => *place = account,
            None => self.accounts.push(account),
        }
        self.index.insert(Arc::clone(id), slot);
        slot
    }

    fn forget(&mut self, last_ms: u64, slot: u32) {
        self.idle.remove(&(last_ms, slot));
        if let Some(account) = self.accounts.get_mut(slot as usize) {
            self.index.remove(&account.id);
            *account = Account::new(Arc::clone(&account.id), last_ms);
            self.free.push(slot);
        }
    }

    fn half_lives(&self, now_ms: u64) -> f64 {
        now_ms.saturating_sub(self.landmark_ms) as f64 / self.half_life_ms
    }

    fn move_landmark(&mut self, now_ms: u64) {
        let decay = (-self.half_lives(now_ms)).exp2();
        for account in &mut self.accounts {
            account.scaled *= decay;
        }
        self.landmark_ms = now_ms;
    }
}

impl Account {
    fn new(id: Arc<str>, now_ms: u64) -> Self {
        Self {
            id,
            scaled: 0.0,
            holders: 0,
            last_ms: now_ms,
            dispatched: 0,
            waited_ms: 0,
        }
    }

    fn mean_wait_ms(&self) -> Option<f64> {
        (self.dispatched > 0).then(|| self.waited_ms as f64 / self.dispatched as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn service(ledger: &Ledger, name: &str, now_ms: u64) -> f64 {
        let programs = ledger.programs(now_ms);
        programs
            .iter()
            .find(|program| &*program.id == name)
            .map_or(0.0, |program| program.attained_service_tokens)
    }

    #[test]
    fn service_halves_with_time_across_moves_of_the_landmark() {
        let mut ledger = Ledger::new(&Parameters::default(), 0);
        ledger.served(&id("a"), 800.0, 0);
        assert!((service(&ledger, "a", 60_000) - 400.0).abs() < 1e-6);
        ledger.served(&id("a"), 100.0, 120_000);
        assert!((service(&ledger, "a", 120_000) - 300.0).abs() < 1e-6);
        // 40 half-lives later the old service is gone and the landmark has moved.
        ledger.served(&id("b"), 64.0, 2_520_000);
        assert_eq!(ledger.landmark_ms, 2_520_000);
        assert!((service(&ledger, "b", 2_580_000) - 32.0).abs() < 1e-6);
        assert!(service(&ledger, "a", 2_580_000) < 1e-6);
    }

    #[test]
    fn standings_order_programs_by_what_they_got() {
        let mut ledger = Ledger::new(&Parameters::default(), 0);
        let (a, b) = (ledger.open(&id("a"), 0), ledger.open(&id("b"), 0));
        ledger.served(&id("a"), 100.0, 0);
        ledger.served(&id("b"), 60.0, 60_000);
        assert!(ledger.standing(a) < ledger.standing(b));
    }

    #[test]
    fn unused_programs_are_forgotten_and_held_ones_are_not() {
        let mut ledger = Ledger::new(&Parameters::default(), 0);
        let held = ledger.open(&id("held"), 0);
        ledger.served(&id("gone"), 1e9, 0);
        ledger.served(&id("new"), 1.0, 3_600_000);
        assert!(!ledger.index.contains_key("gone"));
        assert_eq!(ledger.open(&id("held"), 3_600_000), held);
    }

    #[test]
    fn beyond_the_bound_programs_share_one_account() {
        let mut ledger = Ledger::new(&Parameters::default(), 0);
        for number in 1..ACCOUNTS_MAX {
            assert_ne!(ledger.open(&id(&number.to_string()), 0), OTHER_SLOT);
        }
        assert_eq!(ledger.open(&id("one more"), 0), OTHER_SLOT);
        ledger.close(5, 1);
        assert_eq!(ledger.open(&id("one more"), 2), 5);
        assert_eq!(ledger.index.len(), ACCOUNTS_MAX);
    }

    #[test]
    fn jains_index_is_1_for_equal_waits_and_falls_with_favour() {
        let mut ledger = Ledger::new(&Parameters::default(), 0);
        assert!((ledger.jains_index() - 1.0).abs() < 1e-9);
        let (a, b) = (ledger.open(&id("a"), 0), ledger.open(&id("b"), 0));
        ledger.dispatched(a, 50);
        ledger.dispatched(b, 50);
        assert!((ledger.jains_index() - 1.0).abs() < 1e-9);
        ledger.dispatched(a, 350);
        assert!((ledger.jains_index() - 250.0 * 250.0 / (2.0 * 42_500.0)).abs() < 1e-9);
    }
}
