//! Takes ZMQ messages of KV events apart.
//!
//! ```text
//! live      [topic, sequence u64 BE, payload]
//! request   ["", first sequence u64 BE]                    (the empty frame is REQ's envelope)
//! answer    ["", topic, sequence u64 BE, payload]          (older engines leave the topic out)
//! end       ["", "", -1 i64 BE, ""]                        (or no topic; an empty payload ends it, too)
//! ```
//!
//! Topics are `kv@<pod>@<model>` by the field's convention, and free text without it.

use bytes::Bytes;

/// A sequence number of this value ends a replay: -1 as an unsigned number.
const END: u64 = u64::MAX;

/// One batch as it was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub topic: Bytes,
    pub sequence: u64,
    pub payload: Bytes,
}

/// One answer of a replay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Batch(Message),
    End,
}

/// A message whose frames do not fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("{0} frames")]
    Count(usize),
    #[error("a sequence number of {0} bytes")]
    SequenceLength(usize),
    #[error("the end marker on the live stream")]
    UnexpectedEnd,
}

/// Reads a live message.
pub fn live(frames: &[Bytes]) -> Result<Message, FrameError> {
    let [topic, sequence, payload] = frames else {
        return Err(FrameError::Count(frames.len()));
    };
    match sequence_number(sequence)? {
        END => Err(FrameError::UnexpectedEnd),
        sequence => Ok(Message {
            topic: topic.clone(),
            sequence,
            payload: payload.clone(),
        }),
    }
}

/// Reads an answer of a replay, its envelope included.
pub fn answer(frames: &[Bytes]) -> Result<Answer, FrameError> {
    let inner = match frames {
        [first, inner @ ..] if first.is_empty() && inner.len() >= 2 => inner,
        all => all,
    };
    let (topic, sequence, payload) = match inner {
        [topic, sequence, payload] => (topic.clone(), sequence, payload),
        [sequence, payload] => (Bytes::new(), sequence, payload),
        _ => return Err(FrameError::Count(frames.len())),
    };
    let sequence = sequence_number(sequence)?;
    if sequence == END || payload.is_empty() {
        return Ok(Answer::End);
    }
    Ok(Answer::Batch(Message {
        topic,
        sequence,
        payload: payload.clone(),
    }))
}

/// The frames that ask for everything from `first` on.
pub fn request(first: u64) -> [Bytes; 2] {
    [Bytes::new(), Bytes::copy_from_slice(&first.to_be_bytes())]
}

/// The model that a topic names, if it names one.
pub fn model_of(topic: &[u8]) -> Option<&str> {
    let topic = std::str::from_utf8(topic).ok()?;
    let (_pod, model) = topic.strip_prefix("kv@")?.split_once('@')?;
    (!model.is_empty()).then_some(model)
}

fn sequence_number(frame: &Bytes) -> Result<u64, FrameError> {
    let bytes: [u8; 8] = frame
        .as_ref()
        .try_into()
        .map_err(|_| FrameError::SequenceLength(frame.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(list: &[&[u8]]) -> Vec<Bytes> {
        list.iter()
            .map(|frame| Bytes::copy_from_slice(frame))
            .collect()
    }

    const SEVEN: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 7];
    const MINUS_ONE: &[u8] = &[0xff; 8];

    #[test]
    fn live_messages_have_three_frames() {
        let message = live(&frames(&[b"kv@a@m", SEVEN, b"payload"])).unwrap();
        assert_eq!(message.sequence, 7);
        assert_eq!(message.payload, "payload");
        assert_eq!(live(&frames(&[b"t", SEVEN])), Err(FrameError::Count(2)));
        assert_eq!(
            live(&frames(&[b"t", b"7", b"p"])),
            Err(FrameError::SequenceLength(1))
        );
        assert_eq!(
            live(&frames(&[b"t", MINUS_ONE, b""])),
            Err(FrameError::UnexpectedEnd)
        );
    }

    #[test]
    fn answers_come_with_and_without_envelope_and_topic() {
        let batch = |list: &[&[u8]]| match answer(&frames(list)) {
            Ok(Answer::Batch(message)) => (message.topic, message.sequence, message.payload),
            other => panic!("{other:?}"),
        };
        let with_topic = (Bytes::from("t"), 7, Bytes::from("p"));
        let without = (Bytes::new(), 7, Bytes::from("p"));
        assert_eq!(batch(&[b"", b"t", SEVEN, b"p"]), with_topic);
        assert_eq!(batch(&[b"t", SEVEN, b"p"]), with_topic);
        assert_eq!(batch(&[b"", b"", SEVEN, b"p"]), without);
        assert_eq!(batch(&[b"", SEVEN, b"p"]), without);
        assert_eq!(batch(&[SEVEN, b"p"]), without);
        for end in [
            &[b"" as &[u8], b"", MINUS_ONE, b""] as &[&[u8]],
            &[b"", MINUS_ONE, b""],
            &[MINUS_ONE, b""],
            &[b"", b"t", SEVEN, b""],
        ] {
            assert_eq!(answer(&frames(end)), Ok(Answer::End), "{end:?}");
        }
        assert_eq!(answer(&frames(&[b""])), Err(FrameError::Count(1)));
        assert_eq!(answer(&[]), Err(FrameError::Count(0)));
    }

    #[test]
    fn the_request_is_an_envelope_and_a_number() {
        assert_eq!(
            request(258),
            [Bytes::new(), Bytes::from_static(&[0, 0, 0, 0, 0, 0, 1, 2])]
        );
    }

    #[test]
    fn topics_name_models() {
        assert_eq!(model_of(b"kv@10.0.0.1:8000@org/model"), Some("org/model"));
        assert_eq!(model_of(b"kv@[fd00::1]:8000@m@v2"), Some("m@v2"));
        for topic in ["", "kv@pod", "kv@pod@", "other@pod@model"] {
            assert_eq!(model_of(topic.as_bytes()), None, "{topic:?}");
        }
        assert_eq!(model_of(b"kv@pod@\xff"), None);
    }
}
