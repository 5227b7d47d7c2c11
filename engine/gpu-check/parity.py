"""Whether the worker on the GPU computes what its CPU backend and transformers do, on models of full width and two layers.

All are compared with transformers in f32. Activations of bf16 move log probabilities whoever computes them, so what the
worker may be off by is what transformers in bf16 is off by there, and half as much again. Greedy tokens must be the f32
model's up to where its two likeliest are closer to each other than that.
"""

import random
import statistics

import models
from table import Peer
from worker import Worker, ranks

PROMPT = 200
TOKENS = 24
SLACK = 2e-3


def run(here, home, rehearsal):
    """A row for each model; all must have `passed`."""
    small = models.SMALL if rehearsal else {"num_hidden_layers": 2}
    kinds = {"llama": (models.LLAMA_8B | small, False), "qwen3": (models.QWEN3 | small, False), "llama fp8": (models.LLAMA_8B | small, True)}
    rows = []
    for name, (config, fp8) in kinds.items():
        try:
            rows.append({"model": name, **compare(here, home, config, fp8, rehearsal)})
        except Exception as error:
            rows.append({"model": name, "passed": False, "error": f"{type(error).__name__}: {error}"[:500]})
    if ranks(rehearsal) > 1:
        config = models.LLAMA_8B | small
        try:
            rows.append({"model": f"llama, {ranks(rehearsal)} ranks", **together(here, home, config, rehearsal)})
        except Exception as error:
            rows.append({"model": "llama, ranks", "passed": False, "error": f"{type(error).__name__}: {error}"[:500]})
    return rows


def together(here, home, config, rehearsal):
    """Ranks that share a model against one that has all of it."""
    folder, prompt = written(here, home, config, False)
    backend = "cpu" if rehearsal else "cuda"
    one = of_worker(here, home, folder, backend, prompt)
    all_ = of_worker(here, home, folder, backend, prompt, ranks(rehearsal))
    off = mean_off(all_["logprobs"], one["logprobs"])
    return {"off_from_one_rank": off, "passed": off < 0.02 and agree(all_["tokens"], one["tokens"], one["leads"], 0.1)}


def written(here, home, config, fp8):
    """A model's folder and a prompt for it."""
    folder = models.write(home / f"parity-{config['model_type']}-{fp8}", config, here / "demo-model", fp8=fp8)
    chosen = random.Random(3)
    return folder, [chosen.randrange(3, config["vocab_size"] - 1) for _ in range(PROMPT)]


def compare(here, home, config, fp8, rehearsal):
    folder, prompt = written(here, home, config, fp8)
    cpu = of_worker(here, home, folder, "cpu", prompt)
    gpu = cpu if rehearsal else of_worker(here, home, folder, "cuda", prompt)
    if fp8:
        # transformers multiplies FP8 with kernels that it downloads; the CPU backend widens the very weights to f32.
        off = mean_off(gpu["logprobs"], cpu["logprobs"])
        return {"off_from_cpu": off, "passed": off < 0.02 and agree(gpu["tokens"], cpu["tokens"], cpu["leads"], 0.1)}
    with Peer(here, folder, home / "parity-peers.log") as peer:
        exact = peer.ask("logprobs", prompt=prompt, dtype="float32")["logprobs"]
        rounded = peer.ask("logprobs", prompt=prompt, dtype="bfloat16")["logprobs"]
        greedy = peer.ask("greedy", prompt=prompt, tokens=TOKENS)
    offs = {"cpu": mean_off(cpu["logprobs"], exact), "gpu": mean_off(gpu["logprobs"], exact), "transformers_bf16": mean_off(rounded, exact)}
    close = offs["gpu"] <= 1.5 * offs["transformers_bf16"] + SLACK and offs["cpu"] <= SLACK
    lead = 20 * (offs["transformers_bf16"] + SLACK)
    same = [agree(worker["tokens"], greedy["tokens"], greedy["leads"], lead) for worker in (cpu, gpu)]
    return {"mean_off_from_f32": offs, "same_tokens": same, "passed": close and all(same)}


def of_worker(here, home, folder, backend, prompt, size=1):
    """Log probabilities of a prompt's tokens, and greedy tokens with their leads."""
    share = ["--gpu-memory-utilization", 0.5] if backend == "cuda" else []
    flags = ["--backend", backend, *share, "--max-model-len", 1024, "--tensor-parallel-size", size]
    with Worker(here / "engine", folder, home / f"parity-{backend}.log", *flags) as worker:
        worker.ready(120)
        answer, _ = worker.complete(prompt, TOKENS, prompt_logprobs=0, logprobs=2, return_token_ids=True, return_tokens_as_token_ids=True)
    choice = answer["choices"][0]
    rows = choice["prompt_logprobs"][1:]
    logprobs = [row[str(token)]["logprob"] for row, token in zip(rows, prompt[1:])]
    tops = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
    return {"logprobs": logprobs, "tokens": choice["token_ids"], "leads": [top[0] - top[1] for top in tops]}


def mean_off(found, expected):
    return round(statistics.mean(abs(a - b) for a, b in zip(found, expected, strict=True)), 5)


def agree(found, expected, leads, lead):
    """Whether tokens are the same, or part where the likeliest two of what is expected are as close as that."""
    for one, other, by in zip(found, expected, leads, strict=True):
        if one != other:
            return by < lead
    return True
