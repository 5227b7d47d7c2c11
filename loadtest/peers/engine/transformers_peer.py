"""Hugging Face transformers in bf16 on the CPU, greedy, with its dynamic KV cache.

    python transformers_peer.py MODEL_FOLDER THREADS
"""

import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from peer import serve, token_ids


class Engine:
    def __init__(self, folder, threads):
        torch.set_num_threads(threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.eval()
        self.vocabulary = model.config.vocab_size
        self.seed = 0

    def prompts(self, batch, tokens):
        self.seed += 1
        rows = [token_ids(tokens, self.vocabulary, self.seed * 64 + row) for row in range(batch)]
        return torch.tensor(rows)

    @torch.inference_mode()
    def forward(self, ids, cache):
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values

    def prefill(self, tokens):
        ids = self.prompts(1, tokens)
        start = time.perf_counter()
        self.forward(ids, None)
        return time.perf_counter() - start

    def decode(self, batch, context, tokens):
        current, cache = self.forward(self.prompts(batch, context), None)
        start = time.perf_counter()
        for _ in range(tokens):
            current, cache = self.forward(current, cache)
        return time.perf_counter() - start


def main():
    folder, threads = sys.argv[1], int(sys.argv[2])
    engine = Engine(folder, threads)
    serve("transformers", transformers.__version__, threads, engine.prefill, engine.decode)


if __name__ == "__main__":
    main()
