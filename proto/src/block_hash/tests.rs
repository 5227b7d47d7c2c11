//! Golden values of both recipes, and the properties that make request keys a chain.
//!
//! The digests were made with vLLM's own libraries (cbor2, hashlib); the request keys with the
//! reference implementation of XXH3 (xxhash for Python).

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn hex(digest: &BlockDigest) -> String {
    let bytes: Vec<_> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.concat()
}

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn none_hash_matches_vllm() {
    assert_eq!(
        hex(&none_hash(DEFAULT_SEED)),
        "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
    );
    assert_eq!(
        hex(&none_hash("0")),
        "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"
    );
}

#[test]
fn sha256_cbor_matches_vllm() {
    let none = none_hash(DEFAULT_SEED);
    let first = sha256_cbor(&none, &tokens(1..17), &[]);
    assert_eq!(
        hex(&first),
        "cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682"
    );
    let second = sha256_cbor(&first, &tokens(100_000..100_016), &[]);
    assert_eq!(
        hex(&second),
        "fab60e3bebad6e3f897ee302394986ae3ecde0b37a81558f014d054af21bcf29"
    );
    let salt = ExtraKey::CacheSalt("s3cr3t");
    let salted = sha256_cbor(&none, &tokens(1..17), &[salt]);
    assert_eq!(
        hex(&salted),
        "b48b943e12a1bc55b0d43ada3fb904d825ba84163ccac4080e9c04c674044e34"
    );
    let lora = ExtraKey::Lora {
        name: "sql-lora",
        path: "/adapters/sql",
    };
    let both = sha256_cbor(&none, &tokens(1..17), &[lora, salt]);
    assert_eq!(
        hex(&both),
        "f3c824d6789f076d1a6b555a356eb1156e38f3904f200e01a0c2b0fd05ea44e9"
    );
}

#[test]
fn sha256_cbor_writes_every_length_of_head() {
    let none = none_hash(DEFAULT_SEED);
    let bounds = [0, 23, 24, 255, 256, 65_535, 65_536, u32::MAX];
    assert_eq!(
        hex(&sha256_cbor(&none, &bounds, &[])),
        "deaa46fcabbf6b126d28ad1292550fb894177c76c7b8e270e04824cbf674d83f"
    );
    assert_eq!(
        hex(&sha256_cbor(&none, &tokens(0..300), &[])),
        "d7ab9edba6bc3b3e1b0ed93351a4ab55480954fad9dd9381e5cda18bd1a823b2"
    );
    let salt = "x".repeat(300);
    assert_eq!(
        hex(&sha256_cbor(&none, &[1], &[ExtraKey::CacheSalt(&salt)])),
        "563dea5c6e35ceeaabb48752726e242ec13af3e9e19b750f5f0aedacde2800fa"
    );
}

fn scope<'a>(
    model: &'a str,
    adapter: Option<&'a str>,
    cache_salt: Option<&'a str>,
) -> KeyScope<'a> {
    KeyScope {
        model,
        adapter,
        cache_salt,
    }
}

#[test]
fn request_keys_are_committed() {
    let root = RequestKey::root(&scope("demo", None, None));
    assert_eq!(root, RequestKey(0x6752_f8dd_28b7_4155));
    let long = "m".repeat(600);
    let roots = [
        (scope("demo", Some("sql-lora"), None), 0xfdab_f009_6292_6059),
        (scope("demo", None, Some("s3cr3t")), 0xc5d7_c8d1_cd2c_29f5),
        (
            scope("demo", Some("sql-lora"), Some("s3cr3t")),
            0x7e70_4c13_f46a_b7b1,
        ),
        // Longer than the buffer on the stack.
        (scope(&long, None, None), 0x646d_1c16_dd0c_7fb7),
    ];
    for (scope, key) in roots {
        assert_eq!(RequestKey::root(&scope), RequestKey(key), "{scope:?}");
    }
    let first = root.child(&tokens(1..17), &[]);
    assert_eq!(first, RequestKey(0xdf61_b543_b4fc_01eb));
    assert_eq!(
        first.child(&tokens(100_000..100_016), &[]),
        RequestKey(0x9857_4196_b7a4_883b)
    );
    assert_eq!(
        root.child(&tokens(1..17), b"image"),
        RequestKey(0x23ac_21ef_d4b6_fa30)
    );
    // Longer than the buffer on the stack.
    assert_eq!(
        root.child(&tokens(0..256), &[]),
        RequestKey(0x76c3_8686_f4aa_3188)
    );
    assert_eq!(root.child(&[], &[]), RequestKey(0x76ec_d0a1_5010_31b1));
}

#[test]
fn a_block_size_of_zero_yields_no_keys() {
    let mut out = vec![RequestKey(1)];
    request_keys(RequestKey(0), &[1, 2, 3], 0, &mut out);
    assert_eq!(out, []);
}

fn name() -> impl Strategy<Value = String> {
    "[ -~é]{0,12}"
}

proptest! {
    #[test]
    fn keys_are_the_chain_of_full_blocks(
        prompt in vec(any::<u32>(), 0..200),
        block_size in 1_usize..40,
        root in any::<u64>(),
    ) {
        let mut keys = vec![RequestKey(9); 3];
        request_keys(RequestKey(root), &prompt, block_size, &mut keys);
        prop_assert_eq!(keys.len(), prompt.len() / block_size);
        let mut parent = RequestKey(root);
        for (key, block) in keys.iter().zip(prompt.chunks(block_size)) {
            parent = parent.child(block, &[]);
            prop_assert_eq!(*key, parent);
        }
    }

    #[test]
    fn keys_are_equal_exactly_as_far_as_the_prompts_are(
        prompt in vec(any::<u32>(), 1..200),
        change in any::<prop::sample::Index>(),
        block_size in 1_usize..40,
    ) {
        let root = RequestKey::root(&scope("m", None, None));
        let position = change.index(prompt.len());
        let mut other = prompt.clone();
        other[position] ^= 1;
        let (mut keys, mut other_keys) = (Vec::new(), Vec::new());
        request_keys(root, &prompt, block_size, &mut keys);
        request_keys(root, &other, block_size, &mut other_keys);
        let shared = position / block_size;
        for (index, (key, other)) in keys.iter().zip(&other_keys).enumerate() {
            prop_assert_eq!(key == other, index < shared);
        }
    }

    #[test]
    fn scopes_differ_exactly_when_their_roots_do(
        left in (name(), proptest::option::of(name()), proptest::option::of(name())),
        right in (name(), proptest::option::of(name()), proptest::option::of(name())),
    ) {
        let root = |parts: &(String, Option<String>, Option<String>)| {
            RequestKey::root(&scope(&parts.0, parts.1.as_deref(), parts.2.as_deref()))
        };
        prop_assert_eq!(left == right, root(&left) == root(&right));
    }

    #[test]
    fn a_byte_moved_between_fields_moves_the_root(
        text in "[a-z]{2,20}",
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = 1 + cut.index(text.len() - 1);
        let whole = RequestKey::root(&scope(&text, Some(""), None));
        let split = RequestKey::root(&scope(&text[..cut], Some(&text[cut..]), None));
        prop_assert_ne!(whole, split);
        let as_salt = RequestKey::root(&scope(&text[..cut], None, Some(&text[cut..])));
        prop_assert_ne!(split, as_salt);
    }

    #[test]
    fn tokens_are_not_mistaken_for_extras(
        prompt in vec(any::<u32>(), 1..300),
        parent in any::<u64>(),
    ) {
        let parent = RequestKey(parent);
        let (last, head) = prompt.split_last().expect("at least one token");
        prop_assert_ne!(
            parent.child(&prompt, &[]),
            parent.child(head, &last.to_le_bytes())
        );
    }

    #[test]
    fn both_ways_of_hashing_a_block_agree(
        prompt in vec(any::<u32>(), 0..150),
        extras in vec(any::<u8>(), 0..60),
        parent in any::<u64>(),
    ) {
        let parent = RequestKey(parent);
        prop_assert_eq!(parent.child(&prompt, &extras), parent.long_child(&prompt, &extras));
    }
}
