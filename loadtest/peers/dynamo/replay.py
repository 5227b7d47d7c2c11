"""Dynamo's own offline replay of a trace: python replay.py REQUEST, where REQUEST is a JSON object. Prints one.

Virtual time, its mock engine with its default time model, and its own router: no GPU, no server, no network.
"""

import json
import sys

from dynamo.replay import run_trace_replay


def main() -> None:
    asked = json.loads(sys.argv[1])
    report = run_trace_replay(
        asked["trace"],
        num_workers=asked["workers"],
        router_mode=asked["mode"],
        trace_block_size=asked["block_tokens"],
        sla_ttft_ms=asked["slo_ttft_ms"],
        sla_itl_ms=asked["slo_itl_ms"],
    )
    print(json.dumps(report.summary, default=str))


if __name__ == "__main__":
    main()
