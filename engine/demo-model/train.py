"""Trains the demo model and writes it as a Hugging Face folder.

Three stages: a byte-level BPE tokenizer over text of generate.py, a small Llama trained with torch on
the CPU, and the export (bf16 safetensors plus the JSON files that loaders expect).

The run is counted in steps, not in seconds, so that the same seed gives the same weights on the same
machine and library versions; --minutes only cuts a run short on a slow machine, and scales the
learning-rate schedule with it. Training starts on short rows, where a token costs least, and ends on
rows of 1024 and 2048 tokens, so that long multi-turn prompts stay inside what the model has seen.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

# Waiting threads sleep instead of spinning: beside other programs, spinning costs most of the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import generate

VOCAB = 1024
TOKENS_PER_STEP = 4096
# (share of the run, row length, seed offset of the text)
STAGES = [(0.70, 256, 1), (0.27, 1024, 2), (0.03, 2048, 3)]
# Questions and handbooks are random choices that nobody samples, so they weigh less than answers.
PROMPT_WEIGHT = 0.25
PEAK_MUON_LR = 0.03
PEAK_ADAM_LR = 0.006
CONTEXT = 2048


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    tokenizer = train_tokenizer(args.seed)
    tokenizer.save(str(out / "tokenizer.json"))
    config = model_config(tokenizer)
    model = LlamaForCausalLM(config)
    print(f"parameters: {sum(p.numel() for p in model.parameters())}", flush=True)
    write_settings(out, tokenizer, config)
    if args.steps:
        train(model, tokenizer, args)
    write_weights(out, model)


def parse_args():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=820, help="0 writes an untrained model")
    parser.add_argument("--minutes", type=float, default=60.0, help="upper bound on training time")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=str(here))
    return parser.parse_args()


# ---- tokenizer ------------------------------------------------------------------------------------


def train_tokenizer(seed):
    """A byte-level BPE: every text has ids, and nothing is added before or after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in generate.SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    texts = [message["content"] for _ in range(3000) for message in generate.document(rng, 256)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# ---- text to rows ---------------------------------------------------------------------------------


def encode_document(tokenizer, messages):
    """Ids and loss weights of one document: a chat, or plain text (role None)."""
    start, end, stop = (tokenizer.token_to_id(t) for t in (generate.START, generate.END, generate.STOP))
    ids, weights = [], []

    def add(new_ids, weight):
        ids.extend(new_ids)
        weights.extend([weight] * len(new_ids))

    for message in messages:
        content = tokenizer.encode(message["content"]).ids
        if message["role"] is None:
            add(content, 1.0)
            continue
        weight = 1.0 if message["role"] == "assistant" else PROMPT_WEIGHT
        add([start] + tokenizer.encode(message["role"] + "\n").ids, PROMPT_WEIGHT)
        add(content + [end], weight)
        add(tokenizer.encode("\n").ids, PROMPT_WEIGHT)
    add([stop], 1.0 if messages[-1]["role"] is None else PROMPT_WEIGHT)
    return ids, weights


def rows(tokenizer, rng, length):
    """Endless rows of length + 1 ids. Each starts with a document's start, as every prompt does."""
    while True:
        ids, weights = [], []
        while len(ids) <= length:
            more_ids, more_weights = encode_document(tokenizer, generate.document(rng, length - len(ids)))
            ids += more_ids
            weights += more_weights
        yield ids[: length + 1], weights[: length + 1]


def batches(tokenizer, seed, length):
    source = rows(tokenizer, random.Random(seed), length)
    while True:
        taken = [next(source) for _ in range(max(1, TOKENS_PER_STEP // length))]
        ids = torch.from_numpy(np.array([row[0] for row in taken], dtype=np.int64))
        weights = torch.from_numpy(np.array([row[1] for row in taken], dtype=np.float32))
        yield ids, weights


# ---- model and training ---------------------------------------------------------------------------


def model_config(tokenizer):
    end, stop = tokenizer.token_to_id(generate.END), tokenizer.token_to_id(generate.STOP)
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=stop,
        eos_token_id=end,
        pad_token_id=stop,
        initializer_range=0.02,
    )


class Muon:
    """Momentum whose matrix updates are made orthogonal (Newton-Schulz).

    On a model this small it reaches a given loss in about half the tokens that AdamW needs, and
    tokens are what a CPU is short of.
    """

    def __init__(self, parameters, momentum=0.95):
        self.parameters = list(parameters)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr):
        for parameter, buffer in zip(self.parameters, self.buffers):
            buffer.lerp_(parameter.grad, 1 - self.momentum)
            update = orthogonal(parameter.grad.lerp(buffer, self.momentum))
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.add_(update, alpha=-lr * scale)


def orthogonal(matrix):
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def train(model, tokenizer, args):
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=PEAK_ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
    stages = [(share, batches(tokenizer, args.seed * 100 + offset, length)) for share, length, offset in STAGES]
    began = time.monotonic()
    step, seen, smooth = 0, 0, None
    model.train()
    while True:
        elapsed = time.monotonic() - began
        progress = max(step / args.steps, elapsed / 60 / args.minutes)
        if progress >= 1:
            break
        rate = learning_rate(step, progress)
        for group in adam.param_groups:
            group["lr"] = PEAK_ADAM_LR * rate
        ids, weights = next(source_at(stages, progress))
        loss = weighted_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(PEAK_MUON_LR * rate)
        adam.step()
        model.zero_grad(set_to_none=True)
        step += 1
        seen += ids.numel()
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 25 == 0:
            print(f"step {step} loss {smooth:.3f} tokens {seen} seconds {time.monotonic() - began:.0f}", flush=True)
    print(f"trained {step} steps, {seen} tokens, {time.monotonic() - began:.0f} s")
    report_validation(model, tokenizer, args.seed)


def source_at(stages, progress):
    for share, source in stages:
        if progress < share:
            return source
        progress -= share
    return stages[-1][1]


def learning_rate(step, progress):
    """A short warm-up, a plateau, then a fall to nearly zero."""
    warm_up = min(1.0, (step + 1) / 20)
    fall = 1.0 if progress < 0.4 else (1 - progress) / 0.6
    return warm_up * max(0.02, fall)


def weighted_loss(model, ids, weights):
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    targets = weights[:, 1:].flatten()
    return (losses * targets).sum() / targets.sum()


@torch.no_grad()
def report_validation(model, tokenizer, seed):
    """Loss on text from a seed that no training stage uses."""
    model.eval()
    source = batches(tokenizer, seed * 100 + 99, 1024)
    taken = [next(source) for _ in range(6)]
    weighted = sum(weighted_loss(model, *batch).item() for batch in taken) / len(taken)
    answers = sum(weighted_loss(model, ids, (w == 1).float()).item() for ids, w in taken) / len(taken)
    print(f"validation loss: weighted {weighted:.3f}, answers only {answers:.3f} (perplexity {math.exp(answers):.2f})")


# ---- export ---------------------------------------------------------------------------------------


def write_settings(out, tokenizer, config):
    end, stop = tokenizer.token_to_id(generate.END), tokenizer.token_to_id(generate.STOP)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": stop,
        "eos_token_id": end,
        "pad_token_id": stop,
        "torch_dtype": "bfloat16",
    }
    write_json(out / "config.json", fields)
    write_json(
        out / "generation_config.json",
        {"bos_token_id": stop, "eos_token_id": [end, stop], "pad_token_id": stop, "temperature": 0.7, "do_sample": True},
    )
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "bos_token": generate.STOP,
            "eos_token": generate.END,
            "pad_token": generate.STOP,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_weights(out, model):
    # lm_head is the embedding itself (tied), so it is not stored a second time.
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
