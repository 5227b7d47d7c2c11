//! What each endpoint holds of each run, in the order of its last use.
//!
//! A *holding* is one endpoint's leading blocks of one run. The holdings of one endpoint are a list
//! from the youngest to the oldest, linked through one slab that all endpoints share, so that using,
//! adding or dropping a holding costs the same however many there are. A prompt is used from its
//! tail to its head: its head is then the youngest, a run is never older than what follows it, and
//! the oldest holding of an endpoint is always a tail that nothing else hangs on.

use super::slab::{NOWHERE, Place, Slab};

/// One endpoint's leading blocks of one run. 40 bytes, however many blocks.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Holding {
    pub(super) run: Place,
    pub(super) holder: Place,
    /// Leading blocks of the run; at least one.
    pub(super) blocks: u32,
    older: Place,
    younger: Place,
    /// The pick that used it last.
    pub(super) touched: u64,
    /// The pick that put it here; its prompt is not known to be computed before its response
    /// starts.
    pub(super) created: u64,
}

/// The ends of one endpoint's list, and how much is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) oldest: Place,
    pub(super) youngest: Place,
    /// Blocks of all holdings of the list.
    pub(super) blocks: u32,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            oldest: NOWHERE,
            youngest: NOWHERE,
            blocks: 0,
        }
    }
}

impl Holding {
    pub(super) fn new(run: Place, holder: Place, blocks: u32, touched: u64, created: u64) -> Self {
        Self {
            run,
            holder,
            blocks,
            older: NOWHERE,
            younger: NOWHERE,
            touched,
            created,
        }
    }
}

impl Order {
    /// Puts a holding that is in no list at the young end.
    pub(super) fn push_youngest(&mut self, place: Place, holdings: &mut Slab<Holding>) {
        let before = self.youngest;
        let holding = &mut holdings[place];
        holding.older = before;
        holding.younger = NOWHERE;
        self.blocks += holding.blocks;
        self.youngest = place;
        if before == NOWHERE {
            self.oldest = place;
        } else {
            holdings[before].younger = place;
        }
    }

    /// Puts a holding that is in no list just behind `neighbour`, one older.
    pub(super) fn insert_behind(
        &mut self,
        neighbour: Place,
        place: Place,
        holdings: &mut Slab<Holding>,
    ) {
        let behind = holdings[neighbour].older;
        holdings[neighbour].older = place;
        let holding = &mut holdings[place];
        holding.younger = neighbour;
        holding.older = behind;
        self.blocks += holding.blocks;
        if behind == NOWHERE {
            self.oldest = place;
        } else {
            holdings[behind].younger = place;
        }
    }

    /// Takes a holding out of the list. It stays in the slab.
    pub(super) fn unlink(&mut self, place: Place, holdings: &mut Slab<Holding>) {
        let Holding {
            older,
            younger,
            blocks,
            ..
        } = holdings[place];
        self.blocks -= blocks;
        if older == NOWHERE {
            self.oldest = younger;
        } else {
            holdings[older].younger = younger;
        }
        if younger == NOWHERE {
            self.youngest = older;
        } else {
            holdings[younger].older = older;
        }
    }

    /// Changes how many blocks a holding of the list has.
    pub(super) fn resize(&mut self, place: Place, blocks: u32, holdings: &mut Slab<Holding>) {
        let held = &mut holdings[place].blocks;
        self.blocks = self.blocks - *held + blocks;
        *held = blocks;
    }
}

/// The next older holding of the same endpoint.
pub(super) fn older_than(place: Place, holdings: &Slab<Holding>) -> Place {
    holdings[place].older
}
