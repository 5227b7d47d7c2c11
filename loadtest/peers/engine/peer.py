"""What every peer has in common: commands in as JSON lines, answers out as JSON lines.

A peer is a process that holds a model in memory and measures itself on command, so that the benchmark can let it take
turns with the others. Only the work is timed, never start-up, loading or the making of inputs.

    {"op": "prefill", "tokens": 512}                           -> {"seconds": 0.41}
    {"op": "decode", "batch": 8, "context": 16, "tokens": 64}  -> {"seconds": 1.93}   64 tokens in each of 8 sequences
    {"op": "quit"}
"""

import json
import random
import sys


def token_ids(count, vocabulary, seed):
    """Reproducible ids that are in every vocabulary from its middle on."""
    generator = random.Random(seed)
    return [generator.randrange(vocabulary // 2, vocabulary) for _ in range(count)]


def answer(**fields):
    print(json.dumps(fields), flush=True)


def serve(name, version, threads, prefill, decode):
    """Answers commands until the input ends. `prefill(tokens)` and `decode(batch, context, tokens)` give seconds."""
    answer(ready=name, version=version, threads=threads)
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        if operation == "quit":
            return
        try:
            work = {"prefill": prefill, "decode": decode}[operation]
            answer(seconds=work(**command))
        except Exception as error:  # A peer that fails says so; the benchmark decides what that means.
            answer(error=f"{operation} {command}: {type(error).__name__}: {error}")
