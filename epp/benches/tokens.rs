//! What turn ten of a chat costs, against encoding the whole of it.
//!
//! `cargo bench -p pointsman-epp --bench tokens`
//!
//! Each iteration of `turn 10` gets an answer and a question that were never seen before, on a cache
//! that has seen the nine turns before them; `whole` renders and encodes the same prompts plainly;
//! `again` repeats a prompt that is known to its end, which is what everything but encoding costs;
//! `render` is the chat template's share of all of them.
//!
//! The vocabulary is trained when the bench starts, on the texts of this repository, as a byte-level
//! BPE with Llama 3's pattern. Its prompts are texts of the repository, too, so their words are as
//! likely to be in the vocabulary as a model's own are in its.

#![expect(
    clippy::print_stdout,
    reason = "the sizes of the prompts belong to the figures"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pointsman_epp::tokens::{TokenLimits, Tokens};
use pointsman_proto::prompt::{ChatPrompt, Prompt, PromptEncoder};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

const VOCABULARY_SIZE: usize = 32_000;

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Bytes of the parts of a chat.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    system: usize,
    question: usize,
    answer: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "short chat",
        system: 500,
        question: 250,
        answer: 1_000,
    },
    Shape {
        name: "long chat",
        system: 4_000,
        question: 500,
        answer: 3_000,
    },
    Shape {
        name: "chat over a document",
        system: 100_000,
        question: 250,
        answer: 1_500,
    },
];

const TURNS: usize = 10;

/// Texts in a row, each taken where the last one ended.
struct Source {
    text: String,
    place: usize,
}

impl Source {
    fn take(&mut self, bytes: usize) -> String {
        let mut taken = String::new();
        while taken.len() < bytes {
            let rest = &self.text[self.place..];
            let end = rest
                .char_indices()
                .map(|(place, _)| place)
                .find(|place| *place >= bytes - taken.len());
            let end = end.unwrap_or(rest.len());
            taken.push_str(&rest[..end]);
            self.place = (self.place + end) % self.text.len();
        }
        taken
    }

    fn turn(&mut self, shape: Shape) -> [Value; 2] {
        [
            json!({"role": "assistant", "content": self.take(shape.answer)}),
            json!({"role": "user", "content": self.take(shape.question)}),
        ]
    }
}

/// Every text of the repository's sources, in the order of their paths.
fn repository_text() -> String {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)
            .expect("a readable folder")
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if [".rs", ".md", ".py", ".yaml", ".cu", ".txt"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    let texts = files
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok());
    texts.collect()
}

fn encoder(text: &str) -> PromptEncoder {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]}))
    .expect("a known pre-tokenizer");
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY_SIZE)
        .min_frequency(1)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), text.lines())
        .expect("a trained vocabulary");
    let tokens =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(tokens).expect("new tokens");
    let folder = tempfile::tempdir().expect("a temporary folder");
    tokenizer
        .save(folder.path().join("tokenizer.json"), false)
        .expect("a written tokenizer");
    let template = include_str!("../../engine/demo-model/chat_template.jinja");
    std::fs::write(folder.path().join("chat_template.jinja"), template)
        .expect("a written template");
    PromptEncoder::load(folder.path()).expect("a good folder")
}

fn chat(messages: Vec<Value>) -> Prompt {
    Prompt::Chat(ChatPrompt::new(Value::from(messages)))
}

fn turns(criterion: &mut Criterion) {
    let text = repository_text();
    let encoder = Arc::new(encoder(&text));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    println!(
        "vocabulary of {} tokens, from {} bytes of text; cuts {}",
        encoder.vocab_size(),
        text.len(),
        encoder.cuts()
    );
    let mut source = Source { text, place: 0 };
    for shape in SHAPES {
        let tokens = Tokens::new(
            [(String::new(), Arc::clone(&encoder))],
            TokenLimits::default(),
        );
        let mut seen = vec![
            json!({"role": "system", "content": source.take(shape.system)}),
            json!({"role": "user", "content": source.take(shape.question)}),
        ];
        seen.extend((2..TURNS).flat_map(|_| source.turn(shape)));
        runtime
            .block_on(tokens.encode("", &chat(seen.clone())))
            .expect("an encoded chat");
        let mut turn_10 = || {
            let mut messages = seen.clone();
            messages.extend(source.turn(shape));
            chat(messages)
        };
        let known = turn_10();
        let ids = runtime
            .block_on(tokens.encode("", &known))
            .expect("an encoded chat");
        assert_eq!(*ids, encoder.encode(&known).expect("an encoded chat"));
        let Prompt::Chat(conversation) = &known else {
            unreachable!()
        };
        let bytes = encoder.render(conversation).expect("a rendered chat").len();
        println!("{}: {bytes} bytes, {} tokens", shape.name, ids.len());
        let mut group = criterion.benchmark_group(shape.name);
        group.throughput(Throughput::Elements(ids.len() as u64));
        group.sample_size(20);
        group.bench_function("whole", |bencher| {
            bencher.iter_batched(
                &mut turn_10,
                |prompt| encoder.encode(&prompt),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("turn 10", |bencher| {
            let encode = |prompt: Prompt| runtime.block_on(tokens.encode("", &prompt));
            bencher.iter_batched(&mut turn_10, encode, BatchSize::SmallInput);
        });
        group.bench_function("again", |bencher| {
            bencher.iter(|| runtime.block_on(tokens.encode("", black_box(&known))));
        });
        group.bench_function("render", |bencher| {
            bencher.iter(|| encoder.render(black_box(conversation)));
        });
        group.finish();
        println!("{:?}", tokens.stats());
    }
}

criterion_group!(benches, turns);
criterion_main!(benches);
