//! Golden bytes of vLLM and of our own, and what each field may look like.

mod extra_keys;
mod hostile;

use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_str, write_uint,
};

use super::*;

/// What vLLM sends for one block of the tokens 1 to 16, its hash as bytes.
const VLLM_STORED: &str = "93cb41d954fc4020000091de000ba474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865\
    7391c420cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682b1706172656e745f626c6f636b5f6861\
    7368c0a9746f6b656e5f696473dc00100102030405060708090a0b0c0d0e0f10aa626c6f636b5f73697a6510a76c6f72615f6964\
    c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63\
    616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00";
const VLLM_REMOVED: &str = "93cb3ff00000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f686173686573\
    91c420cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682a66d656469756da3475055a967726f7570\
    5f6964780000";
const VLLM_CLEARED: &str = "93cb3ff00000000000009181a474797065b0416c6c426c6f636b73436c656172656400";

/// What [`encode`] makes of [`sample_batch`]; the bytes are those of Python's msgpack over the same
/// structures, but for the header of the first map.
const OWN_MAP: &str = "93cb41d954fc4020000093de000ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cf7b0b\
    f7bf7fd0168202b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401cd012cce0001117004aa626c6f63\
    6b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b657973929\
    1a6733363723374c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f\
    6e84a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739107a66d656469756da753544f52414745a967\
    726f75705f6964780081a474797065b0416c6c426c6f636b73436c656172656403";
const OWN_ARRAY: &str = "93cb41d954fc402000009399ab426c6f636b53746f72656492cf7b0bf7bf7fd0168202c09401cd012cce00011170\
    0402c0a3475055c09291a6733363723374c093ac426c6f636b52656d6f7665649107a753544f5241474591b0416c6c426c6f636b\
    73436c6561726564c0";

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hexadecimal");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        })
        .collect()
}

/// A batch whose tokens, hashes and numbers take every length of integer.
fn sample_batch(data_parallel_rank: Option<u32>) -> EventBatch {
    EventBatch {
        timestamp_s: 1_700_000_000.5,
        events: vec![
            Event::BlockStored(BlockStored {
                block_hashes: vec![EngineHash(8_866_452_693_264_111_234), EngineHash(2)],
                parent: None,
                token_ids: vec![1, 300, 70_000, 4],
                block_size: 2,
                lora_name: None,
                medium: Medium::Gpu,
                cache_salt: Some("s3cr3t".to_owned()),
                extras: Vec::new(),
            }),
            Event::BlockRemoved(BlockRemoved {
                block_hashes: vec![EngineHash(7)],
                medium: Medium::Disk,
            }),
            Event::AllBlocksCleared,
        ],
        data_parallel_rank,
    }
}

fn only_event(payload: &[u8]) -> Event {
    let mut decoded = decode(payload).expect("a well-formed batch");
    assert_eq!(decoded.skipped, []);
    assert_eq!(decoded.batch.events.len(), 1);
    decoded.batch.events.remove(0)
}

/// A batch of one event whose bytes `write` makes.
fn batch_of(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write_array_len(&mut out, 2).expect("a Vec");
    write_f64(&mut out, 1.0).expect("a Vec");
    write_array_len(&mut out, 1).expect("a Vec");
    write(&mut out);
    out
}

/// The one reason for which a batch's one event is skipped.
fn skip_reason(payload: &[u8]) -> String {
    let mut decoded = decode(payload).expect("a well-formed batch");
    assert_eq!(decoded.batch.events, []);
    assert_eq!(decoded.skipped.len(), 1);
    decoded.skipped.remove(0).reason
}

fn text(out: &mut Vec<u8>, value: &str) {
    write_str(out, value).expect("a Vec");
}

fn numbers(out: &mut Vec<u8>, values: &[u64]) {
    write_array_len(out, values.len() as u32).expect("a Vec");
    for value in values {
        write_uint(out, *value).expect("a Vec");
    }
}

/// The first five fields of an array-form BlockStored, of which `fields` in all follow the tag's
/// header.
fn short_stored(out: &mut Vec<u8>, fields: u32) {
    write_array_len(out, fields).expect("a Vec");
    text(out, "BlockStored");
    numbers(out, &[11, 12]);
    write_nil(out).expect("a Vec");
    numbers(out, &[1, 2, 3, 4]);
    write_uint(out, 2).expect("a Vec");
}

#[test]
fn vllm_stored_is_read() {
    let decoded = decode(&bytes(VLLM_STORED)).expect("vLLM's own bytes");
    assert_eq!(decoded.skipped, []);
    assert_eq!(
        decoded.batch,
        EventBatch {
            timestamp_s: 1_700_000_000.5,
            events: vec![Event::BlockStored(BlockStored {
                block_hashes: vec![EngineHash(8_866_452_693_264_111_234)],
                parent: None,
                token_ids: (1..=16).collect(),
                block_size: 16,
                lora_name: None,
                medium: Medium::Gpu,
                cache_salt: None,
                extras: Vec::new(),
            })],
            data_parallel_rank: Some(0),
        }
    );
}

#[test]
fn vllm_removed_and_cleared_are_read() {
    assert_eq!(
        only_event(&bytes(VLLM_REMOVED)),
        Event::BlockRemoved(BlockRemoved {
            block_hashes: vec![EngineHash(8_866_452_693_264_111_234)],
            medium: Medium::Gpu,
        })
    );
    assert_eq!(only_event(&bytes(VLLM_CLEARED)), Event::AllBlocksCleared);
}

#[test]
fn the_map_form_is_vllms_byte_for_byte() {
    let digest: BlockDigest =
        bytes("cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682")
            .try_into()
            .expect("32 bytes");
    let batch = |timestamp_s, event| EventBatch {
        timestamp_s,
        events: vec![event],
        data_parallel_rank: Some(0),
    };
    let stored = Event::BlockStored(BlockStored {
        block_hashes: vec![digest],
        parent: None,
        token_ids: (1..=16).collect(),
        block_size: 16,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    });
    let removed = Event::BlockRemoved(BlockRemoved {
        block_hashes: vec![digest],
        medium: Medium::Gpu,
    });
    for (batch, expected) in [
        (batch(1_700_000_000.5, stored.clone()), VLLM_STORED),
        (batch(1.0, removed), VLLM_REMOVED),
        (batch(1.0, Event::AllBlocksCleared), VLLM_CLEARED),
    ] {
        let mut out = Vec::new();
        encode_digests(&batch, Form::Map, HashForm::Bytes, &mut out);
        assert_eq!(out, bytes(expected));
        for form in [Form::Map, Form::Array] {
            let (mut whole, mut low) = (Vec::new(), Vec::new());
            encode_digests(&batch, form, HashForm::Bytes, &mut whole);
            encode_digests(&batch, form, HashForm::Integer, &mut low);
            assert_eq!(decode(&whole), decode(&low), "one hash in two forms");
        }
    }
    let Event::BlockStored(stored) = stored.map_hashes(|digest| EngineHash::from(&digest)) else {
        panic!("a stored block stays one")
    };
    assert_eq!(stored.block_hashes, [EngineHash(8_866_452_693_264_111_234)]);
}

#[test]
fn a_digest_of_16_bytes_goes_out_without_its_padding() {
    let mut digest = BlockDigest::default();
    digest[16..].copy_from_slice(&[9; 16]);
    let batch = EventBatch {
        timestamp_s: 1.0,
        events: vec![Event::BlockRemoved(BlockRemoved {
            block_hashes: vec![digest],
            medium: Medium::Cpu,
        })],
        data_parallel_rank: None,
    };
    let mut out = Vec::new();
    encode_digests(&batch, Form::Array, HashForm::Bytes, &mut out);
    let mut bin = vec![0x91, 0xc4, 16];
    bin.extend([9; 16]);
    bin.push(0xa3);
    assert!(
        out.windows(bin.len()).any(|window| window == bin),
        "{out:x?}"
    );
}

#[test]
fn own_bytes_are_committed() {
    let mut out = Vec::new();
    encode(&sample_batch(Some(3)), Form::Map, &mut out);
    assert_eq!(out, bytes(OWN_MAP));
    // What is in the buffer stays.
    encode(&sample_batch(None), Form::Array, &mut out);
    assert_eq!(out[bytes(OWN_MAP).len()..], bytes(OWN_ARRAY));
}

#[test]
fn trailing_fields_of_the_array_form_may_be_missing() {
    let shortest = batch_of(|out| short_stored(out, 5));
    let expected = BlockStored {
        block_hashes: vec![EngineHash(11), EngineHash(12)],
        parent: None,
        token_ids: vec![1, 2, 3, 4],
        block_size: 2,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    };
    assert_eq!(only_event(&shortest), Event::BlockStored(expected.clone()));
    // SGLang: the adapter's number and the medium, then a map where vLLM has the adapter's name.
    let sglang = batch_of(|out| {
        short_stored(out, 8);
        write_nil(out).expect("a Vec");
        text(out, "CPU_PINNED");
        write_map_len(out, 2).expect("a Vec");
        text(out, "priority");
        write_uint(out, 3).expect("a Vec");
        text(out, "cache_salt");
        text(out, "s");
    });
    let on_host = BlockStored {
        medium: Medium::Cpu,
        cache_salt: Some("s".to_owned()),
        ..expected
    };
    assert_eq!(only_event(&sglang), Event::BlockStored(on_host));
    let removed = batch_of(|out| {
        write_array_len(out, 2).expect("a Vec");
        text(out, "BlockRemoved");
        numbers(out, &[5]);
    });
    let expected = BlockRemoved {
        block_hashes: vec![EngineHash(5)],
        medium: Medium::Gpu,
    };
    assert_eq!(only_event(&removed), Event::BlockRemoved(expected));
}

#[test]
fn too_few_fields_are_named() {
    let stored = batch_of(|out| {
        write_array_len(out, 2).expect("a Vec");
        text(out, "BlockStored");
        numbers(out, &[11]);
    });
    assert_eq!(skip_reason(&stored), "token_ids is missing");
    let removed = batch_of(|out| {
        write_array_len(out, 1).expect("a Vec");
        text(out, "BlockRemoved");
    });
    assert_eq!(skip_reason(&removed), "block_hashes is missing");
    let untagged = batch_of(|out| {
        write_map_len(out, 0).expect("a Vec");
    });
    assert_eq!(skip_reason(&untagged), "type is missing");
    let empty = batch_of(|out| {
        write_array_len(out, 0).expect("a Vec");
    });
    assert_eq!(skip_reason(&empty), "type is missing");
    let number = batch_of(|out| {
        write_uint(out, 7).expect("a Vec");
    });
    assert_eq!(skip_reason(&number), "expected a map or an array");
}

#[test]
fn keys_come_in_any_order_and_unknown_ones_are_passed_over() {
    let payload = batch_of(|out| {
        write_map_len(out, 7).expect("a Vec");
        text(out, "block_size");
        write_uint(out, 1).expect("a Vec");
        text(out, "ownership");
        write_map_len(out, 1).expect("a Vec");
        text(out, "deep");
        numbers(out, &[1, 2]);
        text(out, "token_ids");
        numbers(out, &[9]);
        write_uint(out, 3).expect("a Vec");
        write_nil(out).expect("a Vec");
        text(out, "lora_name");
        text(out, "sql-lora");
        text(out, "block_hashes");
        numbers(out, &[4]);
        text(out, "type");
        text(out, "BlockStored");
    });
    assert_eq!(
        only_event(&payload),
        Event::BlockStored(BlockStored {
            block_hashes: vec![EngineHash(4)],
            parent: None,
            token_ids: vec![9],
            block_size: 1,
            lora_name: Some("sql-lora".to_owned()),
            medium: Medium::Gpu,
            cache_salt: None,
            extras: Vec::new(),
        })
    );
}

#[test]
fn hashes_are_numbers_of_either_sign_or_bytes() {
    let hashes = |write: &dyn Fn(&mut Vec<u8>)| {
        batch_of(|out| {
            write_array_len(out, 2).expect("a Vec");
            text(out, "BlockRemoved");
            write_array_len(out, 1).expect("a Vec");
            write(out);
        })
    };
    let read = |payload: &[u8]| match only_event(payload) {
        Event::BlockRemoved(removed) => removed.block_hashes[0].0,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&hashes(&|out| out.push(0xff))), u64::MAX);
    let negative = hashes(&|out| {
        rmp::encode::write_sint(out, i64::MIN).expect("a Vec");
    });
    assert_eq!(read(&negative), 1 << 63);
    let short = hashes(&|out| write_bin(out, &[1, 2]).expect("a Vec"));
    assert_eq!(read(&short), 0x0102);
    let long = hashes(&|out| write_bin(out, &[9, 1, 2, 3, 4, 5, 6, 7, 8]).expect("a Vec"));
    assert_eq!(read(&long), 0x0102_0304_0506_0708);
    let empty = hashes(&|out| write_bin(out, &[]).expect("a Vec"));
    assert_eq!(skip_reason(&empty), "a hash of no bytes");
    let text_hash = hashes(&|out| text(out, "abc"));
    assert_eq!(skip_reason(&text_hash), "block_hashes: expected an integer");
}

#[test]
fn a_bad_event_is_skipped_alone() {
    let mut out = Vec::new();
    write_array_len(&mut out, 3).expect("a Vec");
    write_uint(&mut out, 5).expect("a Vec");
    write_array_len(&mut out, 4).expect("a Vec");
    write_array_len(&mut out, 2).expect("a Vec");
    text(&mut out, "BlockMoved");
    numbers(&mut out, &[1]);
    short_stored(&mut out, 5);
    write_array_len(&mut out, 2).expect("a Vec");
    text(&mut out, "BlockRemoved");
    text(&mut out, "no list");
    write_array_len(&mut out, 1).expect("a Vec");
    text(&mut out, "AllBlocksCleared");
    write_nil(&mut out).expect("a Vec");
    let decoded = decode(&out).expect("a well-formed batch");
    assert_eq!(decoded.batch.timestamp_s.to_bits(), 5.0_f64.to_bits());
    assert_eq!(decoded.batch.data_parallel_rank, None);
    assert_eq!(decoded.batch.events.len(), 2);
    assert_eq!(decoded.batch.events[1], Event::AllBlocksCleared);
    let skipped = |skip, tag: &str, reason: &str| Skipped {
        skip,
        tag: tag.to_owned(),
        reason: reason.to_owned(),
    };
    assert_eq!(
        decoded.skipped,
        [
            skipped(Skip::UnknownTag, "BlockMoved", "unknown event"),
            skipped(
                Skip::Malformed,
                "BlockRemoved",
                "block_hashes: expected an array"
            ),
        ]
    );
}

#[test]
fn values_out_of_range_are_named() {
    let stored = |medium: &'static str, kind: &'static str, token: u64, size: u64| {
        batch_of(|out| {
            write_map_len(out, 6).expect("a Vec");
            text(out, "type");
            text(out, "BlockStored");
            text(out, "block_hashes");
            numbers(out, &[1]);
            text(out, "token_ids");
            numbers(out, &[token]);
            text(out, "block_size");
            write_uint(out, size).expect("a Vec");
            text(out, "medium");
            text(out, medium);
            text(out, "kv_cache_spec_kind");
            text(out, kind);
        })
    };
    only_event(&stored("storage", "mla", 7, 1));
    let cases = [
        (stored("TAPE", "mla", 7, 1), "unknown medium"),
        (
            stored("GPU", "sliding_window", 7, 1),
            "blocks of this cache kind do not make a prefix",
        ),
        (
            stored("GPU", "mla", 1 << 32, 1),
            "token_ids: expected an integer from 0 to 2^32 - 1",
        ),
        (stored("GPU", "mla", 7, 0), "block_size is 0"),
    ];
    for (payload, reason) in cases {
        assert_eq!(skip_reason(&payload), reason);
    }
}

#[test]
fn a_batch_may_be_a_map_too() {
    let mut out = Vec::new();
    write_map_len(&mut out, 4).expect("a Vec");
    text(&mut out, "data_parallel_rank");
    write_uint(&mut out, 5).expect("a Vec");
    text(&mut out, "events");
    write_array_len(&mut out, 1).expect("a Vec");
    write_array_len(&mut out, 1).expect("a Vec");
    text(&mut out, "AllBlocksCleared");
    text(&mut out, "session");
    write_nil(&mut out).expect("a Vec");
    text(&mut out, "ts");
    write_f64(&mut out, 2.5).expect("a Vec");
    let decoded = decode(&out).expect("a well-formed batch");
    assert_eq!(decoded.batch.data_parallel_rank, Some(5));
    assert_eq!(decoded.batch.timestamp_s.to_bits(), 2.5_f64.to_bits());
    assert_eq!(decoded.batch.events, [Event::AllBlocksCleared]);
    let mut without_events = Vec::new();
    write_map_len(&mut without_events, 1).expect("a Vec");
    text(&mut without_events, "ts");
    write_uint(&mut without_events, 1).expect("a Vec");
    let error = decode(&without_events).expect_err("no events");
    assert_eq!(error.to_string(), "malformed batch: events: missing");
}

#[test]
fn every_event_comes_with_its_cache_group() {
    let group = |payload: &[u8]| {
        let mut batch = Batch::open(payload).expect("a well-formed batch");
        batch.next().expect("an event").expect("not skipped").group
    };
    assert_eq!(group(&bytes(VLLM_STORED)), 0);
    let removed = |fields: u32, group: u64| {
        batch_of(|out| {
            write_array_len(out, fields).expect("a Vec");
            text(out, "BlockRemoved");
            numbers(out, &[5]);
            text(out, "GPU");
            write_uint(out, group).expect("a Vec");
        })
    };
    assert_eq!(group(&removed(4, 3)), 3);
    let mapped = batch_of(|out| {
        write_map_len(out, 3).expect("a Vec");
        text(out, "type");
        text(out, "BlockRemoved");
        text(out, "group_idx");
        write_uint(out, 2).expect("a Vec");
        text(out, "block_hashes");
        numbers(out, &[5]);
    });
    assert_eq!(group(&mapped), 2);
}

#[test]
fn an_adapter_without_a_name_is_not_taken_for_none() {
    let stored = |id: u64, name: Option<&str>| {
        batch_of(|out| {
            short_stored(out, 8);
            write_uint(out, id).expect("a Vec");
            text(out, "GPU");
            match name {
                Some(name) => text(out, name),
                None => write_nil(out).expect("a Vec"),
            }
        })
    };
    assert_eq!(skip_reason(&stored(7, None)), "an adapter without its name");
    only_event(&stored(0, None));
    only_event(&stored(7, Some("sql")));
}
