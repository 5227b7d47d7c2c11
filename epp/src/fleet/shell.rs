//! The shell around the membership table: one writer, many lock-free readers.
//!
//! Readers load one table by an atomic pointer: the members and, in the same order, their live
//! cells. A snapshot is therefore always of one membership, never of two halves. Changing the
//! membership builds the next table beside it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::endpoint::{Adapters, Endpoint, EndpointId, EndpointSpec, Generation, Snapshot};
use super::live::{Lease, LiveCell};
use super::members::{Change, Members, MembershipError};

/// The endpoints of a pool and their live state.
#[derive(Debug)]
pub struct Fleet {
    members: Mutex<Members>,
    table: ArcSwap<Table>,
    membership: watch::Sender<Arc<[Arc<Endpoint>]>>,
    /// Told of each page that was read.
    pages: Notify,
    /// Where the first rank of an endpoint publishes and replays its events, unless discovery says
    /// otherwise.
    kv_ports: OnceLock<(Option<u16>, Option<u16>)>,
}

#[derive(Debug)]
struct Table {
    members: Arc<[Arc<Endpoint>]>,
    /// In the order of `members`.
    cells: Vec<Arc<LiveCell>>,
    /// In the order of `members`. Replaced whole when the adapters of one endpoint change.
    adapters: ArcSwap<Arc<[Arc<Adapters>]>>,
    /// By endpoint number.
    by_id: Vec<Option<(Generation, Arc<LiveCell>)>>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new() -> Arc<Self> {
        let members = Members::default();
        let table = Table {
            members: Arc::clone(members.list()),
            cells: Vec::new(),
            adapters: ArcSwap::from_pointee(Arc::from(Vec::new())),
            by_id: Vec::new(),
        };
        let (membership, _) = watch::channel(Arc::clone(members.list()));
        Arc::new(Self {
            members: Mutex::new(members),
            table: ArcSwap::from_pointee(table),
            membership,
            pages: Notify::new(),
            kv_ports: OnceLock::new(),
        })
    }

    /// Makes the fleet hold exactly `desired`. A refused list changes nothing.
    pub fn apply(&self, mut desired: Vec<EndpointSpec>) -> Result<Change, MembershipError> {
        self.fill_in_kv_addresses(&mut desired);
        let mut members = self.members.lock();
        let change = members.apply(desired)?;
        if change.is_empty() {
            // At most the order differs, and order alone is nobody's concern.
            return Ok(change);
        }
        let next = next_table(&self.table.load(), &members);
        self.table.store(Arc::new(next));
        self.membership.send_replace(Arc::clone(members.list()));
        Ok(change)
    }

    /// Sets the ports on which endpoints publish and replay their events, for those of which
    /// discovery does not say. Each rank of a pod has the next port. To be called once, before the
    /// first endpoints are applied.
    pub fn set_kv_ports(&self, events: Option<u16>, replay: Option<u16>) {
        let _ = self.kv_ports.set((events, replay));
    }

    fn fill_in_kv_addresses(&self, desired: &mut [EndpointSpec]) {
        let Some((Some(events), replay)) = self.kv_ports.get() else {
            return;
        };
        for spec in desired.iter_mut().filter(|spec| spec.kv_events.is_none()) {
            spec.kv_events = rank_address(spec, *events);
            if spec.kv_replay.is_none() {
                spec.kv_replay = replay.and_then(|port| rank_address(spec, port));
            }
        }
    }

    /// Fills `out` with the fleet as it is, reusing its buffers.
    pub fn snapshot_into(&self, out: &mut Snapshot) {
        let table = self.table.load();
        if !Arc::ptr_eq(&out.members, &table.members) {
            out.members = Arc::clone(&table.members);
        }
        let adapters = table.adapters.load();
        if !Arc::ptr_eq(&out.adapters, &adapters) {
            out.adapters = Arc::clone(&adapters);
        }
        out.live.clear();
        out.live.extend(table.cells.iter().map(|cell| cell.read()));
    }

    /// Takes over the adapters that an endpoint's page lists. What is as it was costs a comparison.
    pub fn record_adapters(&self, id: EndpointId, generation: Generation, adapters: Adapters) {
        // The lock orders this against a change of the membership and other endpoints' pages.
        let _members = self.members.lock();
        let table = self.table.load();
        let is_it = |member: &Arc<Endpoint>| (member.id, member.generation) == (id, generation);
        let Some(position) = table.members.iter().position(is_it) else {
            return;
        };
        let present = table.adapters.load();
        if present
            .get(position)
            .is_some_and(|known| **known == adapters)
        {
            return;
        }
        let mut next = present.to_vec();
        if let Some(entry) = next.get_mut(position) {
            *entry = Arc::new(adapters);
        }
        table.adapters.store(Arc::new(Arc::from(next)));
    }

    /// Counts a request with `tokens` prompt tokens against an endpoint until the lease is dropped.
    /// For an endpoint that left, or another generation of it, the lease counts nothing.
    pub fn lease(&self, id: EndpointId, generation: Generation, tokens: u32) -> Lease {
        Lease::take(self.cell(id, generation), tokens)
    }

    /// The members at every moment. A receiver sees the latest list, not each one.
    pub fn membership(&self) -> watch::Receiver<Arc<[Arc<Endpoint>]>> {
        self.membership.subscribe()
    }

    /// Comes back when a page was read since the last time, whichever endpoint's.
    pub async fn page_read(&self) {
        self.pages.notified().await;
    }

    /// Tells that a page was read.
    pub(super) fn note_page(&self) {
        self.pages.notify_one();
    }

    /// The live cell of a present endpoint.
    pub fn cell(&self, id: EndpointId, generation: Generation) -> Option<Arc<LiveCell>> {
        let table = self.table.load();
        let (present, cell) = table.by_id.get(id.index())?.as_ref()?;
        (*present == generation).then(|| Arc::clone(cell))
    }
}

/// The address of an endpoint's rank, where the first rank of its pod has this port.
fn rank_address(spec: &EndpointSpec, port: u16) -> Option<String> {
    let port = port.checked_add(u16::try_from(spec.rank).ok()?)?;
    let address = SocketAddr::new(spec.address.ip(), port);
    Some(format!("tcp://{address}"))
}

fn next_table(old: &Table, members: &Members) -> Table {
    let mut by_id: Vec<Option<(Generation, Arc<LiveCell>)>> = vec![None; members.id_count()];
    let mut cells = Vec::with_capacity(members.list().len());
    let mut adapters = Vec::with_capacity(members.list().len());
    let old_adapters = old.adapters.load();
    for endpoint in members.list().iter() {
        let kept = old
            .by_id
            .get(endpoint.id.index())
            .and_then(Option::as_ref)
            .filter(|(generation, _)| *generation == endpoint.generation)
            .map(|(_, cell)| Arc::clone(cell));
        let cell = kept.unwrap_or_default();
        cells.push(Arc::clone(&cell));
        let is_it = |member: &Arc<Endpoint>| {
            (member.id, member.generation) == (endpoint.id, endpoint.generation)
        };
        let position = old.members.iter().position(is_it);
        let known = position.and_then(|position| old_adapters.get(position));
        adapters.push(known.map(Arc::clone).unwrap_or_default());
        by_id[endpoint.id.index()] = Some((endpoint.generation, cell));
    }
    Table {
        members: Arc::clone(members.list()),
        cells,
        adapters: ArcSwap::from_pointee(Arc::from(adapters)),
        by_id,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::live::Scraped;
    use super::*;

    fn spec(port: u16) -> EndpointSpec {
        EndpointSpec::new(format!("w{port}"), ([127, 0, 0, 1], port).into())
    }

    fn snapshot(fleet: &Fleet) -> Snapshot {
        let mut out = Snapshot::default();
        fleet.snapshot_into(&mut out);
        out
    }

    #[test]
    fn a_lease_counts_while_it_lives() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec(1), spec(2)]).unwrap();
        let second = Arc::clone(&snapshot(&fleet).members[1]);
        let lease = fleet.lease(second.id, second.generation, 100);
        let seen = snapshot(&fleet);
        assert_eq!(seen.live[0].in_flight_requests, 0);
        assert_eq!(seen.live[1].in_flight_requests, 1);
        assert_eq!(seen.live[1].in_flight_tokens, 100);
        drop(lease);
        assert_eq!(snapshot(&fleet).live[1].in_flight_requests, 0);
        assert_eq!(snapshot(&fleet).live[1].in_flight_tokens, 0);
    }

    #[test]
    fn a_flapping_endpoint_starts_at_zero_and_an_old_lease_touches_nothing() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec(1)]).unwrap();
        let old = Arc::clone(&snapshot(&fleet).members[0]);
        let lease = fleet.lease(old.id, old.generation, 7);
        fleet.apply(Vec::new()).unwrap();
        fleet.apply(vec![spec(1)]).unwrap();
        assert_eq!(snapshot(&fleet).live[0].in_flight_requests, 0);
        drop(lease);
        assert_eq!(snapshot(&fleet).live[0].in_flight_requests, 0);
        let stale = fleet.lease(old.id, old.generation, 7);
        assert_eq!(snapshot(&fleet).live[0].in_flight_requests, 0);
        drop(stale);
    }

    #[test]
    fn signals_survive_a_change_elsewhere() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec(1)]).unwrap();
        let first = Arc::clone(&snapshot(&fleet).members[0]);
        let page = Scraped {
            waiting: 3,
            running: 2,
            kv_usage: 0.5,
            block_size: 16,
            blocks: 100,
        };
        fleet
            .cell(first.id, first.generation)
            .unwrap()
            .record(&page, 40);
        let change = fleet.apply(vec![spec(2), spec(1)]).unwrap();
        assert_eq!(change.added.len(), 1);
        let seen = snapshot(&fleet);
        assert_eq!(seen.members[1].spec.name, "w1");
        assert_eq!(seen.live[1].waiting, 3);
        assert_eq!(seen.live[1].scraped_at_ms, 40);
        assert!(seen.live[1].healthy && !seen.live[0].healthy);
    }

    #[test]
    fn adapters_follow_their_endpoint() {
        let fleet = Fleet::new();
        fleet.apply(vec![spec(1), spec(2)]).unwrap();
        let second = Arc::clone(&snapshot(&fleet).members[1]);
        let adapters = Adapters {
            max: 4,
            running: vec!["sql".into()],
            waiting: Vec::new(),
        };
        fleet.record_adapters(second.id, second.generation, adapters.clone());
        assert_eq!(*snapshot(&fleet).adapters[1], adapters);
        fleet.apply(vec![spec(2)]).unwrap();
        assert_eq!(*snapshot(&fleet).adapters[0], adapters);
        fleet.record_adapters(EndpointId(9), Generation(1), adapters);
        assert_eq!(snapshot(&fleet).adapters.len(), 1);
    }

    #[tokio::test]
    async fn membership_is_watched() {
        let fleet = Fleet::new();
        let mut membership = fleet.membership();
        fleet.apply(vec![spec(1)]).unwrap();
        membership.changed().await.unwrap();
        assert_eq!(membership.borrow_and_update().len(), 1);
        fleet.apply(vec![spec(1)]).unwrap();
        assert!(!membership.has_changed().unwrap());
    }

    proptest! {
        /// Endpoints come and go while leases are taken and dropped in any order: the counts are
        /// those of the leases taken on the generation that is present, and never wrap.
        #[test]
        fn counts_are_exact_under_flapping(
            steps in proptest::collection::vec((0_u8..4, 0_u16..3), 1..80)
        ) {
            let fleet = Fleet::new();
            let mut leases: Vec<(EndpointId, Generation, Lease)> = Vec::new();
            let mut present: Vec<u16> = Vec::new();
            for (action, port) in steps {
                match action {
                    0 => present.retain(|other| *other != port),
                    1 if !present.contains(&port) => present.push(port),
                    2 => {
                        let seen = snapshot(&fleet);
                        if let Some(member) = seen.members.get(usize::from(port)) {
                            let lease = fleet.lease(member.id, member.generation, 10);
                            leases.push((member.id, member.generation, lease));
                        }
                    }
                    3 if !leases.is_empty() => {
                        let victim = usize::from(port) % leases.len();
                        drop(leases.swap_remove(victim));
                    }
                    _ => {}
                }
                fleet.apply(present.iter().map(|port| spec(*port)).collect()).unwrap();
                let seen = snapshot(&fleet);
                for (member, live) in seen.members.iter().zip(&seen.live) {
                    let held = leases
                        .iter()
                        .filter(|(id, generation, _)| {
                            (*id, *generation) == (member.id, member.generation)
                        })
                        .count() as u32;
                    prop_assert_eq!(live.in_flight_requests, held);
                    prop_assert_eq!(live.in_flight_tokens, held * 10);
                }
            }
        }
    }
}
