//! Golden values of all recipes, and the properties that make request keys a chain.
//!
//! The digests were made with vLLM's own libraries (cbor2, hashlib, pickle, xxhash); the request keys with the
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

/// The four recipes of vLLM, and what its own libraries make of the same blocks.
struct Golden {
    root: fn(&str) -> BlockDigest,
    block: fn(&BlockDigest, &[u32], &[ExtraKey<'_>]) -> BlockDigest,
    /// Roots of the default seed and of "0"; the tokens 1 to 16; 16 from 100,000 after them; the first block with
    /// a salt, and with adapter and salt; ids at the bounds of each length; 300 tokens and a salt of 300 bytes;
    /// blocks of one, two and three tokens.
    digests: [&'static str; 11],
}

const GOLDEN: [Golden; 4] = [
    Golden {
        root: sha256_pickle_root,
        block: sha256_pickle,
        digests: [
            "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198",
            "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c",
            "7b255da405e1d722823892e4fef187b4d8ac78215d7f0dd2137bb037547f4caf",
            "bec4bb14400cd3f73af1aea14e4be6b2840557c27b44e0e5eb49f0469f08c7b0",
            "bb5ef8dd529f2087825cf54d5b7ad2ef86a5456f4dc891f721d3c263a7fc0a47",
            "227885fb1527a4736ece7f4e1d7a7bf813bdc9a6970b06eedbec9d58916454b6",
            "25fcf88e62a02fff7ba79099e76f8493a9f53d254099937286c5983744e83fd9",
            "dd42a2860c0b36e2d91d7f9a9648c3539bc5575dc7599211cf27b27a7544aa75",
            "67330f0b596ddd4c6e46729007387c80fdf871ce89333aaa8f11ed7ff290cbf0",
            "786f9bbddcb5139e76c24f3ad8bb4e4b20647409291b3f2c769f6f0a874bb774",
            "d6a0584b5995a886add7c1f59433a9171ba6fdf4b936d0b68e6df127e2244c82",
        ],
    },
    Golden {
        root: none_hash,
        block: sha256_cbor,
        digests: [
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
            "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e",
            "cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682",
            "fab60e3bebad6e3f897ee302394986ae3ecde0b37a81558f014d054af21bcf29",
            "b48b943e12a1bc55b0d43ada3fb904d825ba84163ccac4080e9c04c674044e34",
            "f3c824d6789f076d1a6b555a356eb1156e38f3904f200e01a0c2b0fd05ea44e9",
            "7554a8337895744e2a9d1f14930441fdf95f9c477cb58260c881762b70e9ead6",
            "426a7f5486341358802bd18514a3901de8cb86346fde03becf58a0f8e16a635f",
            "810fe9c3fb811ed512a13d4fb46b9136235c661a3cab0eb47ec42673d9a479fd",
            "d448b117d4cbfc4c3f313a1e0494645014cb9c9b678618457bf09471121a0304",
            "e1af50ac0c00965b5980f03c1ec32a46e34ef9fcb43f2ee8b75f1d0f08813da7",
        ],
    },
    Golden {
        root: xxh3_pickle_root,
        block: xxh3_pickle,
        digests: [
            "d98f72b9c430d985211489af307f0229",
            "6fb31cc38bba6066183f7f2104b9c051",
            "c3ef62aeb627e1dbb7d10298670cdfde",
            "0efb5807c7cd84318cdee33d9b44da2c",
            "80a20abc02652f58150e576a20229ddc",
            "536473c616733a4f82cddc35b084729c",
            "c19c82deb9f4c8ab0057f05910ecf4be",
            "aa061acf1605bfc30d255adf7ac7bc4f",
            "3c40c1064c6cb552c4bb79e45b30c37e",
            "a9789b1d287b3b6e0813dd5a899386bb",
            "4af090c81c403dcc8695eff859db5c7c",
        ],
    },
    Golden {
        root: xxh3_cbor_root,
        block: xxh3_cbor,
        digests: [
            "a4e364baa0791a6f63bbf917db9b700d",
            "1ebe36576dcb573f26b99533a20aaeca",
            "94bdea02d195af01562671ef4f8c323f",
            "218c6af2d5f4f623ced18c0486240272",
            "ddcaec06d98bef00be223c4a9e46ee45",
            "2629fa5c64acc0e1bd5c3a428d6b2273",
            "c8af0d0e0256fb7a70e5343c467401f6",
            "e4dde3211e21e24a322e7c1e4a013e26",
            "054cde75cd45cb370fcf6cef62e89761",
            "145abc59ff40323fbd668be243aa909a",
            "c61a5505abfa437f6620ee5cda9f9214",
        ],
    },
];

#[test]
fn vllms_recipes_are_vllms_bit_for_bit() {
    let salt = ExtraKey::CacheSalt("s3cr3t");
    let lora = ExtraKey::Lora {
        name: "sql-lora",
        path: "/adapters/sql",
    };
    let bounds = [
        0,
        23,
        24,
        255,
        256,
        65_535,
        65_536,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
    ];
    let long = "x".repeat(300);
    for Golden {
        root,
        block,
        digests,
    } in &GOLDEN
    {
        let none = root(DEFAULT_SEED);
        let first = block(&none, &tokens(1..17), &[]);
        let got = [
            none,
            root("0"),
            first,
            block(&first, &tokens(100_000..100_016), &[]),
            block(&none, &tokens(1..17), &[salt]),
            block(&none, &tokens(1..17), &[lora, salt]),
            block(&none, &bounds, &[]),
            block(&none, &tokens(0..300), &[ExtraKey::CacheSalt(&long)]),
            block(&none, &tokens(1..2), &[]),
            block(&none, &tokens(1..3), &[]),
            block(&none, &tokens(1..4), &[]),
        ];
        for (place, (got, expected)) in got.iter().zip(digests).enumerate() {
            assert_eq!(
                hex(got).trim_start_matches(&"0".repeat(64 - expected.len())),
                *expected,
                "place {place}"
            );
        }
    }
}

/// With the root of `sha256_cbor` as parent, as the other recipes were first checked against vLLM.
#[test]
fn recipes_take_the_parents_bytes_as_they_are() {
    let none = none_hash(DEFAULT_SEED);
    assert_eq!(
        hex(&sha256_pickle(&none, &tokens(1..17), &[])),
        "d8e30017a6fe9b0082aa9446c9d8c9e178904c87ae2094ec7083785806f4e810"
    );
}

#[test]
fn sha256_cbor_writes_every_length_of_head() {
    let none = none_hash(DEFAULT_SEED);
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

/// The first lines of the table in SipHash's reference implementation: key 00 01 … 0f, input 00 01 … of each length.
#[test]
fn siphash_is_that_of_its_authors() {
    let key = SipKey::new(std::array::from_fn(|byte| byte as u8));
    let table = [
        (0, "a3817f04ba25a8e66df67214c7550293"),
        (1, "da87c1d86b99af44347659119b22fc45"),
        (2, "8177228da4a45dc7fca38bdef60affe4"),
        (3, "9c70b60c5267a94e5f33b6b02985ed51"),
        (7, "a1f1ebbed8dbc153c0b84aa61ff08239"),
        (8, "3b62a9ba6258f5610f83e264f31497b4"),
        (14, "31fcefac66d7de9c7ec7485fe4494902"),
        (15, "5493e99933b0a8117e08ec0f97cfc3d9"),
    ];
    for (length, expected) in table {
        let mut state = sip::State::new(key);
        let input: Vec<u8> = (0..length).collect();
        digest::Put::put(&mut state, &input);
        assert_eq!(
            hex(&digest::padded(state.finish()))[32..],
            *expected,
            "{length} bytes"
        );
    }
}

#[test]
fn siphash_covers_the_key_the_parent_the_tokens_and_the_extras() {
    let key = SipKey::new([7; 16]);
    let root = BlockDigest::default();
    let first = siphash(key, &root, &tokens(1..17), &[]);
    assert_eq!(hex(&first)[..32], "0".repeat(32));
    let others = [
        siphash(SipKey::new([8; 16]), &root, &tokens(1..17), &[]),
        siphash(key, &first, &tokens(1..17), &[]),
        siphash(key, &root, &tokens(2..18), &[]),
        siphash(key, &root, &tokens(1..16), &[]),
        siphash(key, &root, &tokens(1..17), &[ExtraKey::CacheSalt("a")]),
        siphash(key, &root, &tokens(1..17), &[ExtraKey::CacheSalt("b")]),
    ];
    let distinct: std::collections::BTreeSet<_> = others.iter().chain([&first]).collect();
    assert_eq!(distinct.len(), others.len() + 1);
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
    fn siphash_by_words_is_siphash_by_bytes(
        parent in any::<[u8; 16]>(),
        key in any::<[u8; 16]>(),
        prompt in vec(any::<u32>(), 0..40),
    ) {
        let key = SipKey::new(key);
        let mut bytes = parent.to_vec();
        bytes.extend((prompt.len() as u64).to_le_bytes());
        bytes.extend(prompt.iter().flat_map(|token| token.to_le_bytes()));
        let mut state = sip::State::new(key);
        digest::Put::put(&mut state, &bytes);
        let expected = digest::padded(state.finish());
        prop_assert_eq!(siphash(key, &digest::padded(parent), &prompt, &[]), expected);
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
