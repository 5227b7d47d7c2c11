//! Fleets and requests for the tests of this room.

use std::sync::Arc;

use proptest::prelude::*;

use super::plugin::{Context, Headers, MediaItem, Request};
use crate::fleet::{
    Adapters, Endpoint, EndpointId, EndpointSpec, Generation, Live, Matches, Snapshot,
};

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

/// A snapshot of one idle, answering endpoint per list of labels.
pub(super) fn labelled(labels: &[&[(&str, &str)]]) -> Snapshot {
    let idle = Live {
        healthy: true,
        scraped_at_ms: 1,
        ..Live::default()
    };
    let mut snapshot = snapshot(&vec![idle; labels.len()]);
    let with = |member: &Arc<Endpoint>, labels: &[(&str, &str)]| {
        let mut member = Endpoint::clone(member);
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        member.spec.labels = labels.iter().map(owned).collect();
        Arc::new(member)
    };
    let pairs = snapshot.members.iter().zip(labels);
    snapshot.members = pairs.map(|(member, labels)| with(member, labels)).collect();
    snapshot
}

/// Headers in a list.
#[derive(Clone, Debug)]
pub(super) struct HeaderList(pub(super) Vec<(&'static str, String)>);

impl HeaderList {
    pub(super) fn one(name: &'static str, value: &str) -> Self {
        Self(vec![(name, value.to_owned())])
    }
}

impl Headers for HeaderList {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| *known == name)?;
        Some(&found.1)
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

/// All that a plugin may look at.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) fleet: Snapshot,
    pub(super) matches: Matches,
    pub(super) headers: HeaderList,
    pub(super) media: Vec<MediaItem>,
    pub(super) prompt_tokens: u32,
    pub(super) peer: Option<usize>,
    pub(super) tie_seed: u64,
    pub(super) now_ms: u64,
}

impl Setting {
    /// Gives `read` the inputs of a decision.
    pub(super) fn with<R>(&self, read: impl FnOnce(&Context<'_>) -> R) -> R {
        let mut request = request(self.prompt_tokens, &self.matches, self.tie_seed);
        request.headers = &self.headers;
        request.media = &self.media;
        request.peer = self.peer;
        read(&Context {
            snapshot: &self.fleet,
            request: &request,
            now_ms: self.now_ms,
        })
    }
}

/// A fleet in any state with labels and adapters, and a request of any kind.
pub(super) fn arbitrary_setting() -> impl Strategy<Value = Setting> {
    (
        arbitrary_fleet(),
        proptest::collection::vec((arbitrary_labels(), arbitrary_adapters()), 8),
        arbitrary_headers(),
        proptest::collection::vec(0_u128..4, 0..4),
        proptest::option::of(0_usize..10),
        (0_u32..200, any::<u64>(), 0_u64..1_000_000),
    )
        .prop_map(
            |((mut fleet, matches), described, headers, media, peer, numbers)| {
                let described = || fleet.members.iter().zip(&described);
                let labelled = |(member, (labels, _)): (&Arc<Endpoint>, &(Vec<_>, _))| {
                    let mut member = Endpoint::clone(member);
                    member.spec.labels = labels.iter().cloned().collect();
                    Arc::new(member)
                };
                let adapters = described()
                    .map(|(_, (_, adapters))| Arc::new(adapters.clone()))
                    .collect();
                let members = described().map(labelled).collect();
                fleet.members = members;
                fleet.adapters = adapters;
                let (prompt_tokens, tie_seed, now_ms) = numbers;
                Setting {
                    fleet,
                    matches,
                    headers,
                    media: media.into_iter().map(image).collect(),
                    prompt_tokens,
                    peer,
                    tie_seed,
                    now_ms,
                }
            },
        )
}

/// An image with this hash.
pub(super) fn image(hash: u128) -> MediaItem {
    MediaItem {
        modality: "image",
        hash,
        bytes: 1000,
    }
}

fn arbitrary_labels() -> impl Strategy<Value = Vec<(String, String)>> {
    let label = prop::sample::select(vec![
        ("llm-d.ai/role", "both"),
        ("llm-d.ai/role", "encode-prefill"),
        ("llm-d.ai/context-length-range", "0-100"),
        ("llm-d.ai/context-length-range", "50-60,90-150"),
        ("llm-d.ai/context-length-range", "10-1"),
        ("kubernetes.io/hostname", "h1"),
        ("kubernetes.io/hostname", "h2"),
        ("topology.kubernetes.io/rack", "r1"),
        ("topology.kubernetes.io/zone", "z1"),
        ("topology.kubernetes.io/region", "e"),
    ]);
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    proptest::collection::vec(label.prop_map(owned), 0..4)
}

fn arbitrary_adapters() -> impl Strategy<Value = Adapters> {
    let names = || {
        let name = prop::sample::select(vec!["model", "other"]).prop_map(Box::from);
        proptest::collection::vec(name, 0..3)
    };
    (0_u32..4, names(), names()).prop_map(|(max, running, waiting)| Adapters {
        max,
        running,
        waiting,
    })
}

fn arbitrary_headers() -> impl Strategy<Value = HeaderList> {
    let header = prop::sample::select(vec![
        ("x-session-id", "a"),
        ("x-session-id", ""),
        ("x-session-token", "d29ya2VyLTE="),
        ("x-session-token", "nonsense"),
        ("x-wanted-zone", "z1"),
        ("x-pointsman-topology-host", "h2"),
        ("x-pointsman-topology-region", "e"),
        (
            "test-epp-endpoint-selection",
            "10.0.0.1:8001,10.0.0.1:8003,10.9.9.9",
        ),
    ]);
    let owned = |(key, value): (&'static str, &str)| (key, value.to_owned());
    proptest::collection::vec(header.prop_map(owned), 0..4).prop_map(HeaderList)
}
