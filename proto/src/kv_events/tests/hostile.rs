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

/// One block's extras: images as pairs, or a digest of embeddings.
fn extras() -> impl Strategy<Value = Box<[u8]>> {
    let image = ("[a-f0-9]{0,64}", any::<i32>()).prop_map(|(identifier, offset)| {
        let mut key = vec![0x92];
        rmp::encode::write_str(&mut key, &identifier).expect("a Vec");
        rmp::encode::write_sint(&mut key, i64::from(offset)).expect("a Vec");
        key
    });
    let embeddings = vec(any::<u8>(), 0..300).prop_map(|digest| {
        let mut key = Vec::new();
        rmp::encode::write_bin(&mut key, &digest).expect("a Vec");
        key
    });
    vec(prop_oneof![image, embeddings], 0..4).prop_map(|keys| {
        if keys.is_empty() {
            return Box::default();
        }
        let mut entry = vec![0x90 | keys.len() as u8];
        entry.extend(keys.concat());
        entry.into()
    })
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
        vec(extras(), 5),
    )
        .prop_map(
            |(
                block_hashes,
                parent,
                token_ids,
                block_size,
                lora_name,
                medium,
                cache_salt,
                extras,
            )| {
                let extras: Vec<_> = extras.into_iter().take(block_hashes.len()).collect();
                let has_any = extras.iter().any(|entry| !entry.is_empty());
                Event::BlockStored(BlockStored {
                    block_hashes,
                    parent,
                    token_ids,
                    block_size,
                    lora_name,
                    medium,
                    cache_salt: cache_salt.filter(|_| parent.is_none()),
                    extras: if has_any { extras } else { Vec::new() },
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

#[test]
fn a_payload_of_tiny_events_costs_no_more_memory_than_its_report() {
    let mut many = Vec::new();
    write_array_len(&mut many, 2).expect("a Vec");
    write_f64(&mut many, 1.0).expect("a Vec");
    write_array_len(&mut many, MAX_EVENTS as u32).expect("a Vec");
    many.resize(many.len() + MAX_EVENTS, 0xc0);
    let decoded = decode(&many).expect("nothing but nils");
    assert_eq!(decoded.skipped.len(), MAX_SKIPPED_LISTED);
    assert_eq!(Batch::open(&many).expect("the same").count(), MAX_EVENTS);
}

#[test]
fn events_of_more_tokens_or_blocks_than_any_prompt_are_skipped() {
    let long = |tokens: usize, hashes: usize| {
        batch_of(|out| {
            write_array_len(out, 5).expect("a Vec");
            text(out, "BlockStored");
            write_array_len(out, hashes as u32).expect("a Vec");
            out.resize(out.len() + hashes, 1);
            out.push(0xc0);
            write_array_len(out, tokens as u32).expect("a Vec");
            out.resize(out.len() + tokens, 1);
            out.push(16);
        })
    };
    only_event(&long(MAX_EVENT_TOKENS, 1));
    assert_eq!(
        skip_reason(&long(MAX_EVENT_TOKENS + 1, 1)),
        "token_ids: 1048577 entries, at most 1048576 are read"
    );
    assert_eq!(
        skip_reason(&long(1, MAX_EVENT_BLOCKS + 1)),
        "block_hashes: 1048577 entries, at most 1048576 are read"
    );
}
