"""llama.cpp through `llama-cpp-python`'s low-level interface, greedy, token ids in and out.

    python llama_cpp_peer.py MODEL.gguf THREADS
"""

import ctypes
import sys
import time
from importlib.metadata import version

import llama_cpp
import numpy

from peer import serve, token_ids

SEQUENCES = 8
CONTEXT = 1024
UBATCH = 512


class Engine:
    def __init__(self, path, threads):
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = SEQUENCES * CONTEXT
        parameters.n_batch = UBATCH
        parameters.n_ubatch = UBATCH
        parameters.n_seq_max = SEQUENCES
        parameters.n_threads = threads
        parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.batch = llama_cpp.llama_batch_init(UBATCH, 0, SEQUENCES)
        self.seed = 0

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def run(self, rows):
        """Computes rows of (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, logits) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = logits
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: {code}")

    def best(self, row):
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        pointer = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(numpy.ctypeslib.as_array(pointer, (self.vocabulary,)).argmax())

    def prompt(self, tokens, sequence):
        """Computes a prompt in pieces of UBATCH; the token that follows."""
        self.seed += 1
        ids = token_ids(tokens, self.vocabulary, self.seed)
        for start in range(0, tokens, UBATCH):
            piece = ids[start : start + UBATCH]
            last = start + len(piece) - 1
            self.run([(t, start + i, sequence, start + i == last) for i, t in enumerate(piece)])
        return self.best(len(piece) - 1)

    def prefill(self, tokens):
        self.clear()
        start = time.perf_counter()
        self.prompt(tokens, 0)
        return time.perf_counter() - start

    def decode(self, batch, context, tokens):
        self.clear()
        current = [self.prompt(context, sequence) for sequence in range(batch)]
        start = time.perf_counter()
        for step in range(tokens):
            self.run([(t, context + step, s, True) for s, t in enumerate(current)])
            current = [self.best(sequence) for sequence in range(batch)]
        return time.perf_counter() - start


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    engine = Engine(path, threads)
    serve("llama.cpp", version("llama-cpp-python"), threads, engine.prefill, engine.decode)


if __name__ == "__main__":
    main()
