//! The replay protocol without its sockets: the buffer of recent batches, the request, the frames of the answer.
//!
//! ```text
//! request    [identity]["" ]?[first sequence u64 BE]
//! answer     [identity]["" ]?[topic][sequence u64 BE][payload]      for each kept batch from there on
//! end        [identity]["" ]?[""][ff ff ff ff ff ff ff ff][""]
//! ```
//!
//! The empty frame is what REQ sockets put before a message, and DEALER clients may; whatever stood before the
//! request stands before each answer, as ROUTER servers do. If the first sequence is older than the buffer, the
//! answer starts with the oldest batch kept, and the client sees from its number what is lost.

use std::collections::VecDeque;

use bytes::Bytes;

/// The sequence number of the message that ends a replay: -1 as i64.
pub(super) const END_SEQUENCE: [u8; 8] = [0xff; 8];

/// The most recent batches, encoded, by ascending sequence number.
#[derive(Debug)]
pub(super) struct ReplayBuffer {
    batches: VecDeque<(u64, Bytes)>,
    /// Batches kept; one more drops the oldest.
    steps_max: usize,
}

impl ReplayBuffer {
    pub(super) fn new(steps_max: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            steps_max,
        }
    }

    pub(super) fn push(&mut self, sequence: u64, payload: Bytes) {
        if self.batches.len() >= self.steps_max {
            self.batches.pop_front();
        }
        self.batches.push_back((sequence, payload));
    }

    /// The kept batches from `sequence` on.
    pub(super) fn since(&self, sequence: u64) -> Vec<(u64, Bytes)> {
        let start = self.batches.partition_point(|(kept, _)| *kept < sequence);
        self.batches.range(start..).cloned().collect()
    }
}

/// A client's request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReplayRequest {
    /// Identity, and the empty frame if the client sent one: what goes before each answer.
    envelope: Vec<Bytes>,
    /// The first sequence number asked for.
    pub(super) first: u64,
}

impl ReplayRequest {
    /// Reads the frames as a ROUTER socket delivers them; none for anything else than the two known shapes.
    pub(super) fn parse(frames: &[Bytes]) -> Option<Self> {
        let (sequence, envelope) = frames.split_last()?;
        let shaped = match envelope {
            [_identity] => true,
            [_identity, delimiter] => delimiter.is_empty(),
            _ => false,
        };
        let first = u64::from_be_bytes(sequence.as_ref().try_into().ok()?);
        shaped.then(|| Self {
            envelope: envelope.to_vec(),
            first,
        })
    }

    /// The frames that carry one batch.
    pub(super) fn answer(&self, topic: &Bytes, sequence: u64, payload: Bytes) -> Vec<Bytes> {
        let sequence = Bytes::copy_from_slice(&sequence.to_be_bytes());
        [
            self.envelope.as_slice(),
            &[topic.clone(), sequence, payload],
        ]
        .concat()
    }

    /// The frames that end the answer.
    pub(super) fn end(&self) -> Vec<Bytes> {
        let end = Bytes::from_static(&END_SEQUENCE);
        [self.envelope.as_slice(), &[Bytes::new(), end, Bytes::new()]].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(bytes: &'static [u8]) -> Bytes {
        Bytes::from_static(bytes)
    }

    #[test]
    fn both_envelopes_are_answered_in_kind() {
        let sequence = Bytes::copy_from_slice(&7_u64.to_be_bytes());
        for envelope in [vec![frame(b"id")], vec![frame(b"id"), frame(b"")]] {
            let frames = [envelope.as_slice(), std::slice::from_ref(&sequence)].concat();
            let request = ReplayRequest::parse(&frames).unwrap();
            assert_eq!(request.first, 7);
            let answer = request.answer(&frame(b"topic"), 7, frame(b"payload"));
            let body = [frame(b"topic"), sequence.clone(), frame(b"payload")];
            assert_eq!(answer, [envelope.as_slice(), &body].concat());
            let body = [frame(b""), frame(&END_SEQUENCE), frame(b"")];
            assert_eq!(request.end(), [envelope.as_slice(), &body].concat());
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let sequence = frame(&[0; 8]);
        for frames in [
            vec![],
            vec![sequence.clone()],
            vec![frame(b"id"), frame(b"short")],
            vec![frame(b"id"), frame(b"not empty"), sequence.clone()],
            vec![frame(b"id"), frame(b""), frame(b""), sequence.clone()],
        ] {
            assert_eq!(ReplayRequest::parse(&frames), None, "{frames:?}");
        }
    }

    proptest! {
        #[test]
        fn the_buffer_holds_the_newest(steps_max in 1_usize..20, steps in 0_u64..60, first in 0_u64..70) {
            let mut buffer = ReplayBuffer::new(steps_max);
            for sequence in 0..steps {
                buffer.push(sequence, Bytes::copy_from_slice(&sequence.to_be_bytes()));
            }
            let oldest = steps.saturating_sub(steps_max as u64).max(first);
            let expected: Vec<_> = (oldest..steps)
                .map(|sequence| (sequence, Bytes::copy_from_slice(&sequence.to_be_bytes())))
                .collect();
            prop_assert_eq!(buffer.since(first), expected);
        }
    }
}
