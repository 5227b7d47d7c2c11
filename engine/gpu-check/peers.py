"""What the worker is compared with: Hugging Face transformers on the same weights, in a process of its own.

    python3 peers.py MODEL      commands come as lines of JSON on standard input, answers go as lines to standard output

    {"do": "single", "prompt": [ids], "tokens": n}      a static cache and a compiled loop: seconds a token
    {"do": "batch", "prompts": [[ids]], "tokens": n}    continuous batching over paged attention: seconds until all are there
    {"do": "logprobs", "prompt": [ids], "dtype": ".."}  log probabilities of each token of a prompt but the first
    {"do": "greedy", "prompt": [ids], "tokens": n}      the likeliest next tokens, each with its lead, in f32
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, StaticCache

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Peers:
    def __init__(self, folder):
        self.folder = folder
        self.models = {}
        self.cache = self.step = None

    def model(self, dtype, **more):
        key = (dtype, *more.items())
        if key not in self.models:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, dtype), **more)
            self.models[key] = model.to(DEVICE).eval()
        return self.models[key]

    def single(self, prompt, tokens):
        model = self.model("bfloat16")
        if self.cache is None:
            # One cache for all turns: what was compiled and recorded holds its addresses.
            self.cache = StaticCache(config=model.config, max_cache_len=len(prompt) + tokens + 8)
            mode = {"mode": "reduce-overhead"} if DEVICE == "cuda" else {}
            self.step = torch.compile(self.forward, fullgraph=True, **mode)
        cache = self.cache
        cache.reset()
        ids = torch.tensor([prompt], device=DEVICE)
        at = torch.arange(len(prompt), device=DEVICE)
        last = self.forward(ids, at, cache)
        at = at[-1:] + 1
        for count in range(tokens):
            # The first ones compile, and record what is run from then on.
            if count == min(8, tokens // 2):
                self.wait()
                start, timed = time.monotonic(), tokens - count
            last = self.step(last.clone(), at, cache).clone()
            at += 1
        self.wait()
        return {"seconds": (time.monotonic() - start) / timed}

    def forward(self, ids, at, cache):
        logits = self.model("bfloat16")(ids, cache_position=at, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def batch(self, prompts, tokens):
        from transformers import ContinuousBatchingConfig, GenerationConfig

        model = self.model("bfloat16", attn_implementation="paged|sdpa")
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(max_memory_percent=0.6)
        run = lambda prompts: model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, persistent_manager=True, progress_bar=False
        )
        # Its manager takes memory and compiles before its first request, and stays.
        run([prompts[0]])
        self.wait()
        start = time.monotonic()
        answers = run(prompts)
        self.wait()
        took = time.monotonic() - start
        lengths = {len(answer.generated_tokens) for answer in answers.values()}
        if len(answers) != len(prompts) or lengths != {tokens}:
            raise RuntimeError(f"{len(answers)} answers of {lengths} tokens")
        return {"seconds": took}

    def logprobs(self, prompt, dtype):
        ids = torch.tensor([prompt], device=DEVICE)
        scores = self.model(dtype)(ids).logits[0].double().log_softmax(-1)
        return {"logprobs": scores[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()}

    def greedy(self, prompt, tokens):
        ids, leads, cache = list(prompt), [], None
        new = torch.tensor([prompt], device=DEVICE)
        for _ in range(tokens):
            out = self.model("float32")(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            best = out.logits[0, -1].double().log_softmax(-1).topk(2)
            leads.append((best.values[0] - best.values[1]).item())
            ids.append(best.indices[0].item())
            new = best.indices[:1].view(1, 1)
        return {"tokens": ids[len(prompt):], "leads": leads}

    def wait(self):
        if DEVICE == "cuda":
            torch.cuda.synchronize()


def main():
    answers, sys.stdout = sys.stdout, sys.stderr
    peers = Peers(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            with torch.no_grad():
                answer = getattr(peers, command.pop("do"))(**command)
        except Exception as error:  # An empty row with its reason is worth more than none.
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
