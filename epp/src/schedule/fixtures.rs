//! Fleets and requests for the tests of this room.

use std::sync::Arc;

use proptest::prelude::*;

use super::plugin::Request;
use crate::fleet::{Endpoint, EndpointId, EndpointSpec, Generation, Live, Matches, Snapshot};

/// A snapshot of one endpoint per reading: `worker-0` on port 8000 and so on.
pub(super) fn snapshot(live: &[Live]) -> Snapshot {
    let members = (0..live.len() as u32)
        .map(|number| {
            let address = ([10, 0, 0, 1], 8000 + number as u16).into();
            Arc::new(Endpoint {
                id: EndpointId(number),
                generation: Generation(1),
                spec: EndpointSpec::new(format!("worker-{number}"), address),
            })
        })
        .collect();
    Snapshot {
        members,
        live: live.to_vec(),
        adapters: live.iter().map(|_| Arc::default()).collect(),
    }
}

/// A request over the whole pool.
pub(super) fn request(prompt_tokens: u32, matches: &Matches, tie_seed: u64) -> Request<'_> {
    Request {
        prompt_tokens,
        tie_seed,
        ..Request::new("model", matches)
    }
}

/// One to eight endpoints in any state, and what each holds of a prompt of 128 tokens.
pub(super) fn arbitrary_fleet() -> impl Strategy<Value = (Snapshot, Matches)> {
    let reading = (
        0_u32..4,
        0_u32..4,
        0_u8..4,
        0_u32..3,
        any::<bool>(),
        0_u32..5,
    )
        .prop_map(|(waiting, running, usage, in_flight, healthy, cached)| {
            let live = Live {
                waiting,
                running,
                kv_usage: f32::from(usage) / 3.0,
                block_size: 16,
                blocks: 100,
                in_flight_requests: in_flight,
                in_flight_tokens: in_flight * 10,
                scraped_at_ms: u64::from(healthy),
                healthy,
            };
            (live, cached * 16)
        });
    proptest::collection::vec(reading, 1..8).prop_map(|readings| {
        let live: Vec<Live> = readings.iter().map(|(live, _)| *live).collect();
        let snapshot = snapshot(&live);
        let mut matches = Matches::default();
        for (member, (_, cached)) in snapshot.members.iter().zip(readings) {
            matches.record(member.id, member.generation, cached, cached);
        }
        (snapshot, matches)
    })
}
