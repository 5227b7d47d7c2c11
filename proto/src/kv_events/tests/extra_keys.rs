//! Adapter, salt and extras out of the keys that engines send without tags.

use rmp::encode::{write_bin, write_sint};

use super::*;

/// `extra_keys` of two blocks as Python's msgpack writes `[["img-a", 3], ["img-b", -12], "s3cr3t",
/// b"\x01\x02"]` and `None`: what vLLM sends for a salted prompt that begins with two images and
/// prompt embeddings.
const VLLM_KEYS: &str = "929492a5696d672d610392a5696d672d62f4a673336372337\
    4c4020102c0";
/// The first block's entry in `extras`: the same keys without the salt.
const VLLM_EXTRAS: &str = "9392a5696d672d610392a5696d672d62f4c4020102";

fn bytes_of(hex: &str) -> Vec<u8> {
    super::bytes(&hex.replace([' ', '\n', '\\'], ""))
}

/// A stored event of two blocks with these extra keys.
fn stored(parent: bool, adapter: Option<&str>, keys: &dyn Fn(&mut Vec<u8>)) -> Vec<u8> {
    batch_of(|out| {
        write_array_len(out, 9).expect("a Vec");
        text(out, "BlockStored");
        numbers(out, &[11, 12]);
        if parent {
            write_uint(out, 10).expect("a Vec");
        } else {
            write_nil(out).expect("a Vec");
        }
        numbers(out, &[1, 2, 3, 4]);
        write_uint(out, 2).expect("a Vec");
        write_nil(out).expect("a Vec");
        text(out, "gpu");
        match adapter {
            Some(name) => text(out, name),
            None => write_nil(out).expect("a Vec"),
        }
        keys(out);
    })
}

/// The salt, and the extras.
fn read(payload: &[u8]) -> (Option<String>, Vec<Box<[u8]>>) {
    match only_event(payload) {
        Event::BlockStored(stored) => (stored.cache_salt, stored.extras),
        other => panic!("{other:?}"),
    }
}

/// Two blocks, the first of which has these bare strings.
fn strings(values: &'static [&'static str]) -> impl Fn(&mut Vec<u8>) {
    move |out| {
        write_array_len(out, 2).expect("a Vec");
        write_array_len(out, values.len() as u32).expect("a Vec");
        for value in values {
            text(out, value);
        }
        write_nil(out).expect("a Vec");
    }
}

#[test]
fn the_salt_is_the_last_string_of_a_prompts_first_block() {
    let salt = |adapter, keys: &'static [&'static str]| {
        let (salt, extras) = read(&stored(false, adapter, &strings(keys)));
        assert!(extras.is_empty(), "{extras:?}");
        salt
    };
    assert_eq!(salt(None, &["s"]), Some("s".to_owned()));
    assert_eq!(salt(Some("a"), &["a"]), None);
    assert_eq!(salt(Some("a"), &["a", "s"]), Some("s".to_owned()));
    assert_eq!(salt(Some("a"), &["a", "a"]), Some("a".to_owned()));
    assert_eq!(salt(None, &[]), None);
    // A block in the middle of a prompt has none: its strings are an older release's images.
    let (salt, extras) = read(&stored(true, None, &strings(&["image"])));
    assert_eq!(salt, None);
    assert_eq!(extras, [Box::from(&b"\x91\xa5image"[..]), Box::default()]);
}

#[test]
fn extras_are_committed_bytes() {
    let keys = bytes_of(VLLM_KEYS);
    let (salt, extras) = read(&stored(false, None, &|out| out.extend_from_slice(&keys)));
    assert_eq!(salt.as_deref(), Some("s3cr3t"));
    assert_eq!(extras, [bytes_of(VLLM_EXTRAS).into(), Box::default()]);
}

#[test]
fn equal_keys_make_equal_bytes_however_they_are_encoded() {
    let wide = |out: &mut Vec<u8>| {
        write_array_len(out, 1).expect("a Vec");
        // An array32 of a str32 and an int64.
        out.extend([0xdd, 0, 0, 0, 1, 0xdd, 0, 0, 0, 2, 0xdb, 0, 0, 0, 1, b'x']);
        out.extend([0xd3, 0, 0, 0, 0, 0, 0, 0, 3]);
    };
    let short = |out: &mut Vec<u8>| {
        write_array_len(out, 1).expect("a Vec");
        out.extend([0x91, 0x92, 0xa1, b'x', 3]);
    };
    let of_wide = read(&stored(false, None, &wide));
    assert_eq!(of_wide, read(&stored(false, None, &short)));
    assert_eq!(&*of_wide.1[0], [0x91, 0x92, 0xa1, b'x', 3]);
}

#[test]
fn every_kind_of_scalar_has_a_form() {
    let keys = |out: &mut Vec<u8>| {
        write_array_len(out, 1).expect("a Vec");
        write_array_len(out, 6).expect("a Vec");
        write_nil(out).expect("a Vec");
        out.extend([0xc2, 0xc3, 0xca, 0x3f, 0x80, 0, 0]);
        write_sint(out, -70_000).expect("a Vec");
        write_bin(out, &[7]).expect("a Vec");
    };
    let (_, extras) = read(&stored(false, None, &keys));
    let expected = bytes_of("96c0c2c3cb3ff0000000000000d2fffeee90c40107");
    assert_eq!(*extras[0], *expected);
}

#[test]
fn keys_that_tell_nothing_certain_skip_the_event() {
    let reason = |keys: &dyn Fn(&mut Vec<u8>)| skip_reason(&stored(false, None, keys));
    let map = |out: &mut Vec<u8>| {
        write_array_len(out, 1).expect("a Vec");
        write_array_len(out, 1).expect("a Vec");
        write_map_len(out, 0).expect("a Vec");
    };
    assert_eq!(
        reason(&map),
        "extra_keys: a key that is a map or an extension"
    );
    let no_list = |out: &mut Vec<u8>| {
        write_array_len(out, 1).expect("a Vec");
        text(out, "image");
    };
    assert_eq!(reason(&no_list), "extra_keys: expected an array");
    let too_many = |out: &mut Vec<u8>| {
        write_array_len(out, 3).expect("a Vec");
        write_nil(out).expect("a Vec");
        write_nil(out).expect("a Vec");
        numbers(out, &[1]);
    };
    assert_eq!(reason(&too_many), "extra_keys: 3 entries for 2 blocks");
    // Entries without keys tell nothing, however many they are.
    let all_nil = |out: &mut Vec<u8>| {
        write_array_len(out, 3).expect("a Vec");
        (0..3).for_each(|_| write_nil(out).expect("a Vec"));
    };
    assert_eq!(read(&stored(false, None, &all_nil)), (None, Vec::new()));
    assert_eq!(
        read(&stored(false, None, &|out| text(out, "not a list"))),
        (None, Vec::new())
    );
}

#[test]
fn sglang_has_its_keys_in_the_place_of_the_adapters_name() {
    let payload = batch_of(|out| {
        short_stored(out, 8);
        write_nil(out).expect("a Vec");
        text(out, "GPU");
        strings(&["s"])(out);
    });
    assert_eq!(read(&payload), (Some("s".to_owned()), Vec::new()));
}

#[test]
fn extras_that_are_no_array_go_out_as_bytes() {
    let stored = BlockStored {
        block_hashes: vec![EngineHash(1)],
        parent: None,
        token_ids: vec![1],
        block_size: 1,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: vec![Box::from(&b"\x92\x01"[..])],
    };
    let batch = EventBatch {
        timestamp_s: 1.0,
        events: vec![Event::BlockStored(stored)],
        data_parallel_rank: None,
    };
    let mut out = Vec::new();
    encode(&batch, Form::Map, &mut out);
    let (_, extras) = read(&out);
    assert_eq!(&*extras[0], b"\x91\xc4\x02\x92\x01");
}
