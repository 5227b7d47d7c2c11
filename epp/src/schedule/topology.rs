//! Where endpoints stand, and how near two of them are: what the topology filter and the topology
//! scorer share.
//!
//! Near to what? The field's answer is the peer: the endpoint that an earlier profile picked for
//! the same request, so that prefill lands near decode and the KV blocks travel a short way
//! (`pkg/epp/framework/plugins/scheduling/util/topology` of llm-d-router). That is
//! [`Request::peer`](super::Request::peer) here. A request without a peer may name the place itself
//! in headers of ours, `x-pointsman-topology-host`, `-rack`, `-zone` and `-region`; a client or a
//! gateway that knows where it stands can keep its traffic near. With neither, the plugins have no
//! opinion, as in the field: taking the endpoint with the longest cached prefix instead would narrow
//! first profiles that the same configuration leaves alone there.
//!
//! A place is read from the labels that Kubernetes puts on nodes and that operators copy to pods.

use super::by_member::ByMember;
use super::plugin::{Context, Headers};
use crate::fleet::Endpoint;

/// Labels of a place, nearest level first.
const LABELS: [&str; 4] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// Headers of a place, nearest level first.
const HEADERS: [&str; 4] = [
    "x-pointsman-topology-host",
    "x-pointsman-topology-rack",
    "x-pointsman-topology-zone",
    "x-pointsman-topology-region",
];

/// How near two places are, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Nearness {
    SameHost,
    SameRack,
    SameZone,
    SameRegion,
    Apart,
}

/// Of each level, the name; `None` where it is not known or empty.
type Place = [Option<Box<str>>; 4];
type PlaceRef<'a> = [Option<&'a str>; 4];

/// The places of the members, and of what candidates are compared with.
#[derive(Default, Debug)]
pub struct Places {
    by_member: ByMember<Place>,
}

impl Places {
    /// Gives `read` a function from a snapshot position to how near it is to the request's place.
    /// `None` where the request has no place.
    pub fn near<R>(
        &self,
        context: &Context<'_>,
        read: impl FnOnce(&dyn Fn(usize) -> Nearness) -> R,
    ) -> Option<R> {
        let members = &context.snapshot.members;
        self.by_member.with(members, labelled, |places| {
            let of_peer = |position: usize| Some(borrowed(places.get(position)?));
            let asked = match context.request.peer {
                Some(position) => of_peer(position)?,
                None => from_headers(context.request.headers),
            };
            if asked.iter().all(Option::is_none) {
                return None;
            }
            Some(read(&|position| {
                places
                    .get(position)
                    .map_or(Nearness::Apart, |place| compare(&asked, &borrowed(place)))
            }))
        })
    }
}

fn labelled(member: &Endpoint) -> Place {
    LABELS.map(|label| {
        let name = member.spec.labels.get(label)?;
        (!name.is_empty()).then(|| name.as_str().into())
    })
}

fn from_headers(headers: &dyn Headers) -> PlaceRef<'_> {
    HEADERS.map(|header| {
        let name = headers.get(header)?.trim();
        (!name.is_empty()).then_some(name)
    })
}

fn borrowed(place: &Place) -> PlaceRef<'_> {
    place.each_ref().map(Option::as_deref)
}

/// The nearest level on which both have the same name. What is not known equals nothing.
fn compare(left: &PlaceRef<'_>, right: &PlaceRef<'_>) -> Nearness {
    let mut levels = left.iter().zip(right);
    match levels.position(|(left, right)| left.is_some() && left == right) {
        Some(0) => Nearness::SameHost,
        Some(1) => Nearness::SameRack,
        Some(2) => Nearness::SameZone,
        Some(3) => Nearness::SameRegion,
        _ => Nearness::Apart,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{HeaderList, labelled, request};
    use super::*;
    use crate::fleet::{Matches, Snapshot};

    fn fleet() -> Snapshot {
        let zone = "topology.kubernetes.io/zone";
        labelled(&[
            &[
                ("kubernetes.io/hostname", "h1"),
                ("topology.kubernetes.io/rack", "r1"),
                (zone, "z1"),
            ],
            &[
                ("kubernetes.io/hostname", "h1"),
                ("topology.kubernetes.io/rack", "r1"),
                (zone, "z1"),
            ],
            &[
                ("kubernetes.io/hostname", "h2"),
                ("topology.kubernetes.io/rack", "r1"),
                (zone, "z1"),
            ],
            &[("kubernetes.io/hostname", "h3"), (zone, "z1")],
            &[
                (zone, "z2"),
                ("topology.kubernetes.io/region", "e"),
                ("kubernetes.io/hostname", ""),
            ],
            &[],
        ])
    }

    fn near(peer: Option<usize>, headers: &HeaderList) -> Option<Vec<Nearness>> {
        let fleet = fleet();
        let matches = Matches::default();
        let mut request = request(0, &matches, 0);
        request.peer = peer;
        request.headers = headers;
        let context = Context {
            snapshot: &fleet,
            request: &request,
            now_ms: 0,
        };
        Places::default().near(&context, |near| (0..6).map(near).collect())
    }

    #[test]
    fn places_are_compared_with_the_peer_level_by_level() {
        use Nearness::{Apart, SameHost, SameRack, SameZone};
        let none = HeaderList(Vec::new());
        assert_eq!(
            near(Some(0), &none),
            Some(vec![SameHost, SameHost, SameRack, SameZone, Apart, Apart])
        );
        // A peer of which nothing is known, one outside of the fleet, and none at all.
        assert_eq!(near(Some(5), &none), None);
        assert_eq!(near(Some(6), &none), None);
        assert_eq!(near(None, &none), None);
    }

    #[test]
    fn a_request_without_a_peer_may_name_its_place() {
        use Nearness::{Apart, SameRegion};
        let region = HeaderList::one("x-pointsman-topology-region", "e");
        let expected = vec![Apart, Apart, Apart, Apart, SameRegion, Apart];
        assert_eq!(near(None, &region), Some(expected));
        // Empty equals nothing, not even empty.
        assert_eq!(
            near(None, &HeaderList::one("x-pointsman-topology-host", " ")),
            None
        );
        // The peer counts before the headers.
        assert_eq!(near(Some(0), &region).map(|found| found[4]), Some(Apart));
    }
}
