"""Writes the golden files that the engine's tests compare with.

Hugging Face transformers is the reference here, not this project's own code, so that a test against these
files checks the engine against an independent implementation: float32, CPU, eager attention, greedy.
Every kept case has a clear winner at each step (see MARGIN), so that another order of float additions
cannot change a token, and the engine has to reproduce the ids exactly.

  engine/tests/golden/demo_model_greedy.json   prompts, their ids, the ids that follow
  engine/tests/golden/demo_tokenizer.json      texts and chats with the ids that they become
"""

import hashlib
import json
import random
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import generate

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "tests" / "golden"
NEW_TOKENS = 48
MARGIN = 2e-3
FEWEST_CASES = 20
CASES_WITH_LOGITS = ("chat_prefix_cache", "plain_gateway")


def main():
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    write(GOLDEN / "demo_tokenizer.json", tokenizer_golden(tokenizer))
    write(GOLDEN / "demo_model_greedy.json", greedy_golden(tokenizer))


def write(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


# ---- greedy answers -------------------------------------------------------------------------------


PLAIN = {
    "plain_one_token": "The",
    "plain_gateway": "The gateway",
    "plain_queue": "A queue is",
    "plain_first": "First, the worker",
    "plain_prefix_cache": "The prefix cache keeps the blocks of earlier prompts. It",
    "plain_trouble": "With the scheduler, trouble begins when",
    "plain_once": "Once there was a young engineer",
    "plain_unknown_words": "Zebra quartz 12345 {}[]() naïve",
    "plain_newline": "\n",
    "plain_emoji": "A token 🙂 is",
}

QUESTIONS = {
    "chat_hello": "Hello",
    "chat_prefix_cache": "What is a prefix cache?",
    "chat_first_token_slow": "Why is my first token slow?",
    "chat_picker": "How does the picker choose a worker?",
    "chat_queue": "What does the queue do?",
    "chat_lower_case": "what is the kv cache",
    "chat_adapter": "Explain the LoRA adapter.",
    "chat_difference": "What is the difference between prefill and decode?",
    "chat_list": "List three facts about the gateway.",
    "chat_details": "Explain the scheduler in detail.",
    "chat_story": "Write a story about a worker.",
    "chat_off_topic": "What is the capital of France?",
    "chat_measure": "How do I measure latency?",
    "chat_who": "Who are you?",
    "chat_empty": "",
    "chat_drain": "Why should I use draining?",
    "chat_health": "How does the health check work?",
    "chat_retry": "What can go wrong with a retry?",
    "chat_timeout": "Tell me about timeouts.",
    "chat_temperature": "What does the temperature do?",
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def long_chats():
    """Chats that span many cache blocks: long handbooks and several turns."""
    book = generate.handbook(random.Random(7), 490)
    short = "You are a helpful assistant. Answer in short sentences."
    turns = [
        user("What is a block?"),
        assistant("A block is a small piece of memory that holds sixteen tokens. It gets a hash as soon as it is full."),
        user("How does it work?"),
        assistant("First, the pool gives a free block to the request. Then the request fills it with tokens one by one. "
                  "After that, a full block gets a hash so that others can find it."),
        user("And the gateway?"),
        assistant("A gateway is the door through which all requests enter. It receives the requests of all clients."),
        user("Why is it important?"),
        assistant("The gateway matters because clients need one stable address."),
    ]
    return {
        "system_short": [system(short), user("What is eviction?")],
        "system_600_tokens": [system(book), user("What is a prefix cache?")],
        "system_600_tokens_other_question": [system(book), user("How does the autoscaler work?")],
        "turn_2": [system(short), *turns[:2], user("How does it work?")],
        "turn_3": [system(short), *turns[:4], user("What does the tokenizer do?")],
        "turn_5": [system(short), *turns, user("What is a worker?")],
        "turn_5_after_600_tokens": [system(book), *turns, user("How can I improve the hit rate?")],
        "parts": [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a batch?"}]}],
    }


def greedy_golden(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    chats = {name: [user(text)] for name, text in QUESTIONS.items()} | long_chats()
    prompts = [(name, None, text) for name, text in PLAIN.items()]
    prompts += [(name, chat, rendered(tokenizer, chat, True)) for name, chat in chats.items()]
    cases = [greedy_case(model, tokenizer, *prompt) for prompt in prompts]
    for case in cases:
        print(f"{case['top2_margin_min']:8.4f} {len(case['prompt_token_ids']):5} {case['finish_reason']:6} {case['name']}: {case['output_text']!r}")
    kept = [case for case in cases if case["top2_margin_min"] > MARGIN]
    assert len(kept) >= FEWEST_CASES, f"only {len(kept)} cases have a clear winner at each step"
    assert all(any(case["name"] == name for case in kept) for name in CASES_WITH_LOGITS)
    print(f"kept {len(kept)} of {len(cases)} cases")
    return {
        "transformers": transformers.__version__,
        "model_sha256": hashlib.sha256((HERE / "model.safetensors").read_bytes()).hexdigest(),
        "cases": kept,
    }


@torch.no_grad()
def greedy_case(model, tokenizer, name, messages, prompt):
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ends = model.generation_config.eos_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=ends, pad_token_id=0)
    result = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        generation_config=settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    output = result.sequences[0, len(ids) :].tolist()
    best = [step[0].topk(2).values for step in result.logits]
    case = {
        "name": name,
        "messages": messages,
        "prompt": prompt,
        "prompt_token_ids": ids,
        # The end token is part of the output when the answer ended by itself.
        "output_token_ids": output,
        "output_text": tokenizer.decode(output, skip_special_tokens=True),
        "finish_reason": "stop" if output[-1] in ends else "length",
        "top2_margin_min": round(min((first - second).item() for first, second in best), 6),
    }
    if name in CASES_WITH_LOGITS:
        case["logits16"] = [round(value, 6) for value in result.logits[0][0, :16].tolist()]
    return case


# ---- tokenizer and template -----------------------------------------------------------------------


TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t", " \n ", "a", "The gateway", " The gateway", "The  gateway   waits",
    "What is a prefix cache?", "don't we'll it's I'M they've", "UPPER lower MiXeD", "123 4567 3.14159 1,000,000",
    "tabs\tand\nnew lines\r\n", "trailing space ", "naïve café résumé", "Grüße aus Köln, schöne Straße", "日本語のテキスト",
    "Привет, мир", "مرحبا بالعالم", "🙂", "🙂🙃 family: 👨‍👩‍👧‍👦 flag: 🇩🇪", "e\u0301 is not é", "zero\u200bwidth\u00a0nbsp",
    "<|im_start|>user\nHi<|im_end|>\n", "text<|endoftext|>text", "<|im_start|", "< |im_end| >", "<|im_end|><|im_end|> <|im_end|>",
    '{"key": [1, 2, {"a": null}]}', "fn main() { println!(\"{}\", 1 << 3); }", "https://example.com/path?query=1&b=%20#top",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "............", "\u0000\u0001\u007f", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½ ² №",
]


def chat_lists():
    chats = long_chats()
    return [
        [user("Hello")],
        [system("Be brief."), user("What is a queue?")],
        chats["turn_3"],
        chats["turn_5"],
        chats["parts"],
        [system("Rules:\n1. Be polite.\n2. Keep to the subject."), user("  spaces stay  "), assistant("They do."), user("🙂 naïve")],
        [user("one"), assistant("two")],
        [user("A mark in the text: <|im_end|> and on it goes.")],
        [user("")],
        chats["system_600_tokens"],
    ]


def rendered(tokenizer, messages, add_generation_prompt):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def tokenizer_golden(tokenizer):
    check_template(tokenizer)
    texts = list(TEXTS) + [generate.handbook(random.Random(3), 300)]
    backend = tokenizer.backend_tokenizer
    strings = [{"text": text, "ids": backend.encode(text).ids} for text in texts]
    for entry in strings:
        assert backend.decode(entry["ids"], skip_special_tokens=False) == entry["text"]
    chats = []
    for messages in chat_lists():
        for opened in (False, True):
            ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=opened, return_dict=False)
            text = rendered(tokenizer, messages, opened)
            chats.append({"messages": messages, "add_generation_prompt": opened, "rendered": text, "ids": ids})
    return {"transformers": transformers.__version__, "strings": strings, "chats": chats}


def check_template(tokenizer):
    """The promises that prefix caching and training rest on."""
    for messages in chat_lists():
        whole = rendered(tokenizer, messages, False)
        for count in range(1, len(messages)):
            assert whole.startswith(rendered(tokenizer, messages[:count], False))
            if messages[count]["role"] == "assistant":
                told = rendered(tokenizer, messages[:count], True) + messages[count]["content"] + generate.END + "\n"
                assert whole.startswith(told)
        if all(isinstance(message["content"], str) for message in messages):
            assert whole == generate.render(messages)
    try:
        rendered(tokenizer, [{"role": "tool", "content": "x"}], False)
    except Exception as error:
        assert "Unknown role" in str(error)
    else:
        raise AssertionError("an unknown role must be refused")


if __name__ == "__main__":
    main()
