//! Small tokenizers of every family, trained on adversarial texts so that wrong cuts change ids, and
//! each cut of each text against encoding it whole.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::Prepend;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::line_starts::NEWER_PATTERNS;
use super::*;

/// What texts are put together from: added tokens whole, in part and overlapping; runs of white
/// space of every kind; characters that combine, contract, or change under normalisation.
const FRAGMENTS: &[&str] = &[
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "start|>",
    "<|",
    "|>",
    "|><|",
    "<",
    ">",
    "<s>",
    "</s>",
    "[INST]",
    "[INST",
    "]",
    "<mask>",
    "<rest>",
    "single",
    "norm",
    "Norm",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r",
    "\t",
    "\u{a0}",
    "\u{2003}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "\u{301}",
    "\u{327}",
    "e\u{301}",
    "é",
    "ﬁ",
    "²",
    "①",
    "½",
    "👩\u{200d}🚀",
    "🇩🇪",
    "👍🏽",
    "1",
    "12",
    "1234",
    "٣",
    "'s",
    "'S",
    "'ll",
    "'ſ",
    "'",
    "a",
    "b",
    "The",
    "the",
    " the",
    "user",
    "assistant",
    "Hello",
    " world",
    "ſ",
    "Ünder",
    "你好",
    "、",
    "日本",
    "か\u{3099}",
    "\u{1100}",
    "\u{1161}",
    "\u{11a8}",
    "▁",
    "_",
    ".",
    ". ",
    "!?",
    "/",
    "://",
    "-",
    "\n- ",
    "\n/\n",
    ":\n",
    ".\n\n",
];

/// A tokenizer to be made: how texts become words, and the model of the words.
struct Family {
    name: &'static str,
    model: Model,
    normalizer: Value,
    pre_tokenizer: Value,
    added_tokens: Vec<AddedToken>,
    /// What [`Cuts`] says of it.
    cuts: &'static str,
}

#[derive(Clone, Copy)]
enum Model {
    ByteLevelBpe,
    Bpe,
    WordPiece,
    Unigram,
}

const BOTH: &str = "at added tokens and at lines";
const NO_LINES: &str = "at added tokens; not at lines: ";

fn special(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

/// The tokens of published chat models.
fn chat_tokens() -> Vec<AddedToken> {
    [
        "<|im_start|>",
        "<|im_end|>",
        "|><|",
        "<s>",
        "</s>",
        "[INST]",
    ]
    .map(special)
    .to_vec()
}

/// Tokens that look at their surroundings, beside the others.
fn awkward_tokens() -> Vec<AddedToken> {
    let mut tokens = chat_tokens();
    tokens.push(special("<mask>").lstrip(true));
    tokens.push(special("<rest>").rstrip(true));
    tokens.push(
        AddedToken::from("single", false)
            .single_word(true)
            .normalized(false),
    );
    tokens.push(AddedToken::from("Norm", false).normalized(true));
    tokens.push(special("\n- "));
    tokens
}

fn byte_level(use_regex: bool, add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

fn digits_and_byte_level() -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        byte_level(true, false),
    ]})
}

fn split(pattern: &str, removed: bool) -> Value {
    let behavior = if removed { "Removed" } else { "Isolated" };
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": removed},
        byte_level(false, false),
    ]})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true})
}

fn byte_level_families() -> Vec<Family> {
    let family = |name, normalizer, pre_tokenizer, added_tokens, cuts| Family {
        name,
        model: Model::ByteLevelBpe,
        normalizer,
        pre_tokenizer,
        added_tokens,
        cuts,
    };
    let nfc = json!({"type": "NFC"});
    let mut rstrip = chat_tokens();
    rstrip.push(special("<rest>").rstrip(true));
    rstrip.push(AddedToken::from("Norm", false).normalized(true));
    vec![
        family(
            "gpt-2",
            Value::Null,
            byte_level(true, false),
            chat_tokens(),
            BOTH,
        ),
        family(
            "gpt-2 with digits",
            json!({"type": "NFKC"}),
            digits_and_byte_level(),
            rstrip.clone(),
            BOTH,
        ),
        family(
            "gpt-2 with a prefix space",
            Value::Null,
            byte_level(true, true),
            chat_tokens(),
            "at added tokens; not at lines: the pre-tokenizer is none that is known to split at line starts",
        ),
        family(
            "llama-3",
            Value::Null,
            split(NEWER_PATTERNS[0], false),
            rstrip.clone(),
            BOTH,
        ),
        family(
            "llama-3 removed",
            json!({"type": "NFKD"}),
            split(NEWER_PATTERNS[0], true),
            chat_tokens(),
            BOTH,
        ),
        family(
            "qwen-2",
            nfc.clone(),
            split(NEWER_PATTERNS[1], false),
            rstrip,
            BOTH,
        ),
        family(
            "o200k",
            json!({"type": "NFD"}),
            split(NEWER_PATTERNS[2], false),
            chat_tokens(),
            BOTH,
        ),
        family(
            "awkward",
            nfc,
            split(NEWER_PATTERNS[1], false),
            awkward_tokens(),
            "at added tokens; not at lines: an added token may act across a line start",
        ),
    ]
}

fn other_families() -> Vec<Family> {
    let llama_2 = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let replace = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁▁"});
    let strip = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Lowercase"},
    ]});
    let family = |name, model, normalizer, pre_tokenizer, added_tokens| Family {
        name,
        model,
        normalizer,
        pre_tokenizer,
        added_tokens,
        cuts: NO_LINES,
    };
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    vec![
        family("llama-2", Model::Bpe, llama_2, Value::Null, chat_tokens()),
        family(
            "metaspace first",
            Model::Bpe,
            Value::Null,
            metaspace("first"),
            awkward_tokens(),
        ),
        family(
            "metaspace always",
            Model::Bpe,
            replace,
            metaspace("always"),
            awkward_tokens(),
        ),
        family(
            "bert",
            Model::WordPiece,
            bert,
            json!({"type": "BertPreTokenizer"}),
            awkward_tokens(),
        ),
        family(
            "t5",
            Model::Unigram,
            strip,
            metaspace("first"),
            awkward_tokens(),
        ),
    ]
}

impl Family {
    fn tokenizer(&self) -> Tokenizer {
        let model: ModelWrapper = match self.model {
            Model::ByteLevelBpe | Model::Bpe => BPE::builder()
                .unk_token("<unk>".to_owned())
                .build()
                .unwrap()
                .into(),
            Model::WordPiece => WordPiece::builder().build().unwrap().into(),
            Model::Unigram => unigram().into(),
        };
        let mut tokenizer = Tokenizer::new(model);
        let normalizer: Option<NormalizerWrapper> =
            serde_json::from_value(self.normalizer.clone()).unwrap();
        tokenizer.with_normalizer(normalizer).unwrap();
        let pre_tokenizer: Option<PreTokenizerWrapper> =
            serde_json::from_value(self.pre_tokenizer.clone()).unwrap();
        tokenizer.with_pre_tokenizer(pre_tokenizer);
        if let Some(mut trainer) = self.trainer() {
            tokenizer.train(&mut trainer, corpus().into_iter()).unwrap();
        }
        tokenizer
            .add_tokens(self.added_tokens.iter().cloned())
            .unwrap();
        tokenizer
    }

    fn trainer(&self) -> Option<TrainerWrapper> {
        let unknown = vec![special("<unk>")];
        match self.model {
            Model::ByteLevelBpe => Some(
                BpeTrainer::builder()
                    .vocab_size(1_500)
                    .min_frequency(2)
                    .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                    .build()
                    .into(),
            ),
            Model::Bpe => Some(
                BpeTrainer::builder()
                    .vocab_size(1_500)
                    .min_frequency(2)
                    .special_tokens(unknown)
                    .build()
                    .into(),
            ),
            Model::WordPiece => {
                let unknown = vec![special("[UNK]")];
                Some(
                    WordPieceTrainer::builder()
                        .vocab_size(1_500)
                        .min_frequency(2)
                        .special_tokens(unknown)
                        .build()
                        .into(),
                )
            }
            Model::Unigram => None,
        }
    }
}

/// A vocabulary of the fragments, their characters and some of their pairs, with scores that make
/// long pieces likely.
fn unigram() -> Unigram {
    let mut vocabulary = vec![("<unk>".to_owned(), 0.0)];
    let pairs = FRAGMENTS
        .iter()
        .zip(FRAGMENTS.iter().skip(7))
        .map(|(a, b)| format!("{a}{b}"));
    let characters = FRAGMENTS
        .iter()
        .flat_map(|fragment| fragment.chars())
        .map(String::from);
    let fragments = FRAGMENTS.iter().map(|fragment| format!("▁{fragment}"));
    for text in characters.chain(fragments).chain(pairs) {
        if vocabulary.iter().all(|(known, _)| *known != text) {
            let score = -10.0 + 0.1 * (vocabulary.len() % 17) as f64;
            vocabulary.push((text, score));
        }
    }
    Unigram::from(vocabulary, Some(0), false).unwrap()
}

/// Texts to train on: fragments in an order that a fixed generator draws.
fn corpus() -> Vec<String> {
    let mut state = 1_u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        FRAGMENTS[(state >> 33) as usize % FRAGMENTS.len()]
    };
    (0..400)
        .map(|_| (0..30).map(|_| draw()).collect())
        .collect()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer
        .encode_fast(text, false)
        .unwrap()
        .get_ids()
        .to_vec()
}

/// The cuts of a tokenizer, as many as are safe.
fn all_cuts(tokenizer: &Tokenizer) -> Cuts {
    Cuts {
        turn_bytes_min: 1,
        lines_bytes_min: 1,
        ..Cuts::of(tokenizer)
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        20 => prop::sample::select(FRAGMENTS).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat())
}

/// Holds every cut of `cases` random texts against encoding the whole, and counts the cuts.
fn check(family: &Family, cases: u32) {
    let tokenizer = family.tokenizer();
    let cuts = all_cuts(&tokenizer);
    let said = cuts.to_string();
    assert!(said.starts_with(family.cuts), "{}: {said}", family.name);
    let mut cut_count = 0_usize;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&any_text(), |text| {
        let pieces = cuts.pieces(&text);
        prop_assert_eq!(pieces.concat(), text.as_str());
        prop_assert!(text.is_empty() || pieces.iter().all(|piece| !piece.is_empty()));
        let joined: Vec<u32> = pieces
            .iter()
            .flat_map(|piece| ids(&tokenizer, piece))
            .collect();
        prop_assert_eq!(joined, ids(&tokenizer, &text), "cut as {:?}", pieces);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{}: {error}", family.name);
    }
    for text in corpus() {
        cut_count += cuts.pieces(&text).len() - 1;
    }
    assert!(
        cut_count > 400,
        "{}: {cut_count} cuts in 400 texts",
        family.name
    );
}

#[test]
fn pieces_of_byte_level_tokenizers_have_the_ids_of_the_whole() {
    for family in byte_level_families() {
        check(&family, 1_500);
    }
}

#[test]
fn pieces_of_other_tokenizers_have_the_ids_of_the_whole() {
    for family in other_families() {
        check(&family, 1_000);
    }
}

#[test]
fn pieces_of_the_demo_model_have_the_ids_of_the_whole() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/demo-model/tokenizer.json");
    let tokenizer = Tokenizer::from_file(path).unwrap();
    let cuts = all_cuts(&tokenizer);
    assert_eq!(cuts.to_string(), BOTH);
    proptest!(ProptestConfig::with_cases(2_000), |(text in any_text())| {
        let pieces = cuts.pieces(&text);
        let joined: Vec<u32> = pieces.iter().flat_map(|piece| ids(&tokenizer, piece)).collect();
        prop_assert_eq!(joined, ids(&tokenizer, &text), "cut as {:?}", pieces);
    });
}

#[test]
fn a_tokenizer_without_a_safe_place_is_cut_nowhere_and_says_why() {
    let awkward = vec![
        special("<mask>").lstrip(true),
        AddedToken::from("single", false)
            .single_word(true)
            .normalized(false),
        AddedToken::from("<|norm|>", false).normalized(true),
        special("word"),
    ];
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_normalizer(Some(Prepend::new("▁".to_owned())))
        .unwrap();
    tokenizer.add_tokens(awkward).unwrap();
    let cuts = all_cuts(&tokenizer);
    assert_eq!(
        cuts.to_string(),
        "nowhere: no added token is independent of the text around it; the normalizer may act across a line start"
    );
    let text = "<mask> a\nbc single <|norm|>word".repeat(100);
    assert_eq!(cuts.pieces(&text), [text.as_str()]);
    let random = Tokenizer::new(BPE::builder().dropout(0.5).build().unwrap());
    assert_eq!(
        Cuts::of(&random).to_string(),
        "nowhere: the tokenizer encodes at random"
    );
}

#[test]
fn pieces_have_their_least_lengths() {
    let cuts = Cuts::of(&byte_level_families()[0].tokenizer());
    let turn = format!("<|im_start|>user\n{}<|im_end|>\n", "x".repeat(70));
    let text = turn.repeat(3);
    let pieces = cuts.pieces(&text);
    let begins: Vec<&str> = pieces.iter().map(|piece| &piece[..8]).collect();
    assert_eq!(begins, ["<|im_sta", "<|im_end", "<|im_end", "<|im_end"]);
    let lines = "a line of text\n".repeat(1_000);
    let pieces = cuts.pieces(&lines);
    assert!(
        pieces
            .iter()
            .rev()
            .skip(1)
            .all(|piece| (1_024..1_040).contains(&piece.len()))
    );
    assert_eq!(cuts.pieces(""), [""]);
    let dense = "<s>".repeat(10_000);
    assert!(
        cuts.pieces(&dense)
            .iter()
            .rev()
            .skip(1)
            .all(|piece| piece.len() >= TURN_BYTES_MIN)
    );
}

proptest! {
    #[test]
    fn a_longer_text_is_cut_alike(text in any_text(), more in any_text()) {
        thread_local! {
            static CUTS: Cuts = all_cuts(&byte_level_families()[3].tokenizer());
        }
        let longer = format!("{text}{more}");
        let (before, after) = CUTS.with(|cuts| {
            let ends = |text: &str| {
                let mut end = 0;
                cuts.pieces(text).iter().map(|piece| { end += piece.len(); end }).collect::<Vec<_>>()
            };
            (ends(&text), ends(&longer))
        });
        // Within a token's length of its end, a text can still become something else.
        let settled = text.len().saturating_sub(16);
        let settled = |ends: &[usize]| ends.iter().copied().filter(|end| *end < settled).collect::<Vec<_>>();
        prop_assert_eq!(settled(&before), settled(&after));
    }
}
