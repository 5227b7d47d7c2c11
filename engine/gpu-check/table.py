"""The speed table: the worker over HTTP and its peers, in turns, on the same random weights of an 8B Llama's shape.

Each row says how long something took, the bytes that had to be read for it and the operations that had to be done, and which
share of the chip's measured limit that is. The goals are those of the worker's issue: a row that has one says whether it was
reached. Rows that could not be measured say why.
"""

import json
import random
import statistics
import subprocess
import sys

import models
from worker import Worker, ranks

GOALS = {
    "decode, batch 1": ("share_of_copy_rate", 0.85, "at least"),
    "decode, batch 64, context 1024": ("ms", 7.5, "at most"),
    "prefill, 8192 tokens": ("share_of_matrix_rate", 0.70, "at least"),
    "decode of FP8 weights, batch 1": ("times_bf16", 1.6, "at least"),
    "256 requests of 512 + 256 tokens": ("times_transformers", 4.0, "at least"),
    "single stream": ("times_compiled_loop", 1.15, "at least"),
    "start to first token, weights in page cache": ("seconds", 6.0, "at most"),
}
ROUNDS = 3


class Peer:
    """`peers.py` on one model."""

    def __init__(self, here, folder, log):
        self.log = open(log, "w")
        command = [sys.executable, str(here / "peers.py"), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def ask(self, do, **arguments):
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the peer's process has ended"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Table:
    """Rows for one kind of model, at sizes that a rehearsal makes small."""

    def __init__(self, here, home, rates, rehearsal):
        self.here, self.home, self.rates, self.rehearsal = here, home, rates, rehearsal
        self.config = models.LLAMA_8B | (models.SMALL if rehearsal else {})
        self.random = random.Random(5)
        self.rows = []

    def run(self):
        folder = models.write(self.home / "8b", self.config, self.here / "demo-model")
        self.cold_start(folder)
        with self.worker(folder, "bf16", 0.45) as worker:
            worker.ready(120)
            with Peer(self.here, folder, self.home / "peers.log") as peer:
                bf16 = self.guard("single stream", self.single, worker, peer)
                self.guard("decode, batch 64, context 1024", self.full, worker)
                self.guard("prefill, 8192 tokens", self.prefill, worker)
                self.guard("256 requests of 512 + 256 tokens", self.throughput, worker, peer)
        self.guard("decode of FP8 weights, batch 1", self.fp8, bf16)
        if ranks(self.rehearsal) > 1:
            self.guard("decode, batch 1, over ranks", self.over_ranks, folder, bf16)
        return self.rows

    def worker(self, folder, name, share, *more):
        device = ["--backend", "cpu"] if self.rehearsal else ["--backend", "cuda", "--gpu-memory-utilization", share]
        sizes = ["--max-model-len", 9216, "--max-num-batched-tokens", 8192, "--max-num-seqs", 256]
        return Worker(self.here / "engine", folder, self.home / f"worker-{name}.log", *device, *sizes, *more)

    def guard(self, what, measure, *arguments):
        """A measurement that fails leaves a row that says so, and the others theirs."""
        try:
            return measure(*arguments)
        except Exception as error:
            self.rows.append({"what": what, "error": f"{type(error).__name__}: {error}"[:500]})
            return None

    def row(self, what, seconds, bytes_=0, operations=0, **more):
        row = {"what": what, "ms": round(seconds * 1e3, 3), "bytes": bytes_, "operations": operations}
        if self.rates:
            row["share_of_copy_rate"] = round(bytes_ / seconds / self.rates["copy_bytes_per_second"], 4)
            row["share_of_matrix_rate"] = round(operations / seconds / self.rates["matrix_operations_per_second"], 4)
        row |= more
        if what in GOALS:
            name, goal, sense = GOALS[what]
            value = row["ms"] / 1e3 if name == "seconds" else row.get(name)
            reached = value is not None and (value >= goal if sense == "at least" else value <= goal)
            row["goal"] = {"of": name, sense: goal, "reached": reached}
        self.rows.append(row)

    def prompt(self, tokens):
        return [self.random.randrange(3, self.config["vocab_size"] - 1) for _ in range(tokens)]

    def cold_start(self, folder):
        with self.worker(folder, "cold", 0.45) as worker:
            ready = worker.ready(120)
            _, first = worker.complete(self.prompt(16), 1)
            self.row("start to first token, weights in page cache", ready + first)

    def decode(self, worker, tokens):
        """Seconds a token of one stream."""
        prompt = self.prompt(128)
        return worker.gap_during(lambda: worker.complete(prompt, tokens))

    def single(self, worker, peer):
        tokens = 16 if self.rehearsal else 256
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(self.decode(worker, tokens))
            answer = peer.ask("single", prompt=self.prompt(128), tokens=tokens)
            theirs.append(answer.get("seconds", answer))
        work, best = models.work(self.config), statistics.median(ours)
        bytes_ = work["weight_bytes"] + (128 + tokens / 2) * work["kv_bytes"]
        self.row("decode, batch 1", best, bytes_, work["operations"], rounds_ms=[round(1e3 * gap, 3) for gap in ours])
        if any(isinstance(gap, dict) for gap in theirs):
            self.row("single stream", best, bytes_, work["operations"], peer=theirs[-1])
        else:
            ratios = [their / our for our, their in zip(ours, theirs)]
            peer_ms = round(1e3 * statistics.median(theirs), 3)
            self.row("single stream", best, bytes_, work["operations"], compiled_loop_ms=peer_ms,
                     times_compiled_loop=round(statistics.median(ratios), 3))
        return best

    def full(self, worker):
        count, context, tokens = (4, 32, 8) if self.rehearsal else (64, 1024, 64)
        prompts = [self.prompt(context) for _ in range(count)]
        # Once for the cache, so that all are at their decodes at once when time is taken.
        worker.all(prompts, 1)
        gap = worker.gap_during(lambda: worker.all(prompts, tokens))
        work = models.work(self.config)
        bytes_ = work["weight_bytes"] + count * (context + tokens / 2) * work["kv_bytes"]
        self.row("decode, batch 64, context 1024", gap, bytes_, count * work["operations"])

    def prefill(self, worker):
        tokens = 256 if self.rehearsal else 8192
        worker.complete(self.prompt(tokens), 1)
        took = statistics.median(worker.complete(self.prompt(tokens), 1)[1] for _ in range(ROUNDS))
        work = models.work(self.config)
        operations = tokens * work["matrix_operations"] + tokens * (tokens + 1) / 2 * work["pair_operations"]
        self.row("prefill, 8192 tokens", took, work["weight_bytes"], operations)

    def throughput(self, worker, peer):
        count, tokens, answer = (4, 32, 8) if self.rehearsal else (256, 512, 256)
        prompts = [self.prompt(tokens) for _ in range(count)]
        ours = worker.all(prompts, answer)
        theirs = peer.ask("batch", prompts=[self.prompt(tokens) for _ in range(count)], tokens=answer)
        more = {"tokens_per_second": round(count * answer / ours, 1)}
        if "seconds" in theirs:
            more |= {"transformers_seconds": round(theirs["seconds"], 2), "times_transformers": round(theirs["seconds"] / ours, 3)}
        else:
            more["peer"] = theirs
        self.row("256 requests of 512 + 256 tokens", ours, **more)

    def fp8(self, bf16):
        folder = models.write(self.home / "8b-fp8", self.config, self.here / "demo-model", fp8=True)
        tokens = 16 if self.rehearsal else 256
        with self.worker(folder, "fp8", 0.45) as worker:
            worker.ready(120)
            gap = statistics.median(self.decode(worker, tokens) for _ in range(ROUNDS))
        work = models.work(self.config, fp8=True)
        more = {"times_bf16": round(bf16 / gap, 3)} if bf16 else {}
        bytes_ = work["weight_bytes"] + (128 + tokens / 2) * work["kv_bytes"]
        self.row("decode of FP8 weights, batch 1", gap, bytes_, work["operations"], **more)

    def over_ranks(self, folder, bf16):
        size, tokens = ranks(self.rehearsal), 16 if self.rehearsal else 256
        with self.worker(folder, "ranks", 0.45, "--tensor-parallel-size", size) as worker:
            worker.ready(120)
            gap = statistics.median(self.decode(worker, tokens) for _ in range(ROUNDS))
        work = models.work(self.config)
        more = {"ranks": size, "times_one": round(bf16 / gap, 3)} if bf16 else {"ranks": size}
        # Bytes of each rank.
        bytes_ = (work["weight_bytes"] + (128 + tokens / 2) * work["kv_bytes"]) / size
        self.row("decode, batch 1, over ranks", gap, bytes_, work["operations"] / size, **more)
