//! Bytes that no worker should send, and the round trip of those that one does.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rmp::encode::{write_array_len, write_f64};

use super::*;

#[test]
fn every_truncation_is_an_error_and_no_panic() {
    for golden in [VLLM_STORED, VLLM_REMOVED, VLLM_CLEARED, OWN_MAP, OWN_ARRAY] {
        let payload = bytes(golden);
        assert!(decode(&payload).is_ok());
        for length in 0..payload.len() {
            let result = decode(&payload[..length]);
            assert!(result.is_err(), "{length} of {} bytes", payload.len());
        }
    }
}

#[test]
fn every_changed_byte_is_survived() {
    for golden in [VLLM_STORED, OWN_MAP, OWN_ARRAY] {
        let payload = bytes(golden);
        for position in 0..payload.len() {
            for byte in 0..=u8::MAX {
                let mut changed = payload.clone();
                changed[position] = byte;
                let _ = decode(&changed);
            }
        }
    }
}

#[test]
fn limits_hold() {
    assert_eq!(
        decode(&vec![0; MAX_PAYLOAD_BYTES + 1]),
        Err(DecodeError::TooLarge {
            bytes: MAX_PAYLOAD_BYTES + 1
        })
    );
    let mut many = Vec::new();
    write_array_len(&mut many, 2).expect("a Vec");
    write_f64(&mut many, 1.0).expect("a Vec");
    write_array_len(&mut many, MAX_EVENTS as u32 + 1).expect("a Vec");
    many.resize(many.len() + MAX_EVENTS + 1, 0xc0);
    assert_eq!(
        decode(&many),
        Err(DecodeError::TooManyEvents {
            events: MAX_EVENTS + 1
        })
    );
    let nested = |levels: usize| {
        batch_of(|out| {
            out.extend(std::iter::repeat_n(0x91, levels));
            out.push(0xc0);
        })
    };
    assert!(decode(&nested(MAX_NESTING - 2)).is_ok());
    assert_eq!(
        decode(&nested(MAX_NESTING - 1)),
        Err(DecodeError::Malformed {
            part: "events",
            reason: "arrays and maps nest too deep".to_owned()
        })
    );
    // An announced length that the input cannot hold is refused before memory is taken for it.
    let promise = [
        0x92, 0x01, 0x91, 0x92, 0xa1, b'x', 0xdd, 0xff, 0xff, 0xff, 0xff,
    ];
    assert!(matches!(
        decode(&promise),
        Err(DecodeError::Malformed { part: "events", .. })
    ));
}

fn hash() -> impl Strategy<Value = EngineHash> {
    any::<u64>().prop_map(EngineHash)
}

fn medium() -> impl Strategy<Value = Medium> {
    prop_oneof![Just(Medium::Gpu), Just(Medium::Cpu), Just(Medium::Disk)]
}

fn event() -> impl Strategy<Value = Event> {
    let stored = (
        vec(hash(), 1..5),
        option::of(hash()),
        vec(any::<u32>(), 0..70),
        1..=u32::MAX,
        option::of("lora-[a-z]{0,40}"),
        medium(),
        option::of("[ -~]{1,40}"),
    )
        .prop_map(
            |(block_hashes, parent, token_ids, block_size, lora_name, medium, cache_salt)| {
                // A salt that equals the adapter's name is taken for it.
                let cache_salt = cache_salt.filter(|salt| Some(salt) != lora_name.as_ref());
                Event::BlockStored(BlockStored {
                    block_hashes,
                    parent,
                    token_ids,
                    block_size,
                    lora_name,
                    medium,
                    cache_salt,
                })
            },
        );
    let removed = (vec(hash(), 0..5), medium()).prop_map(|(block_hashes, medium)| {
        Event::BlockRemoved(BlockRemoved {
            block_hashes,
            medium,
        })
    });
    prop_oneof![stored, removed, Just(Event::AllBlocksCleared)]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        timestamp_s in -1e12_f64..1e12,
        events in vec(event(), 0..20),
        data_parallel_rank in option::of(any::<u32>()),
        form in prop_oneof![Just(Form::Map), Just(Form::Array)],
    ) {
        let batch = EventBatch { timestamp_s, events, data_parallel_rank };
        let mut out = Vec::new();
        encode(&batch, form, &mut out);
        let decoded = decode(&out).expect("our own bytes");
        prop_assert_eq!(decoded.skipped, []);
        prop_assert_eq!(decoded.batch, batch);
    }

    #[test]
    fn random_bytes_are_survived(payload in vec(any::<u8>(), 0..400)) {
        let _ = decode(&payload);
    }

    #[test]
    fn random_events_are_survived(event in vec(any::<u8>(), 0..200)) {
        let payload = batch_of(|out| out.extend(event));
        if let Ok(decoded) = decode(&payload) {
            prop_assert_eq!(decoded.batch.events.len() + decoded.skipped.len(), 1);
        }
    }
}
