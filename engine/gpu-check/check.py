#!/usr/bin/env python3
"""Checks the CUDA kernels and the backend on a machine with a GPU, which needs neither network nor Rust.

    python3 engine/gpu-check/check.py pack DIR     # here: builds, and puts everything that is needed into DIR
    python3 DIR/check.py run                       # there: takes some minutes, prints one JSON object

What runs there is the test binary of the engine with KERNELS_ON=gpu: the very tests that run the kernels' text on the CPU
launch them on the GPU, against f64 and against the CPU's sampler; and the demo model's whole forward pass on the GPU is
compared with the CPU backend's. Then once more under compute-sanitizer, where that is installed: memcheck, racecheck and
synccheck, on the smallest of them. Kernels that were embedded for the chip are what is loaded.

Then `benches/cuda.rs` measures the kernels at an 8B Llama's shapes beside the copy bandwidth and the matrix rate of the chip;
`table.py` measures the worker over HTTP and transformers beside it (`peers.py`) on random weights that `models.py` writes
there; `parity.py` compares what they compute. Python there has torch, transformers and safetensors; what is missing leaves empty
rows with the reason. All of it ends within eight minutes: what has no time left is not begun, and says so.

    python3 DIR/check.py run --rehearse                 # anywhere: the last two in small, with the CPU backend

The object says for each part whether it passed, how long it took, and the end of its output where it did not.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TESTS = "backend::cuda::tests::"
# compute-sanitizer slows kernels down a hundredfold, so it gets the tests that launch the fewest blocks.
SANITIZED = {
    "memcheck": [TESTS + "rows", TESTS + "attention::windows", TESTS + "products", TESTS + "logits::vocabularies"],
    "racecheck": [TESTS + "rows", TESTS + "attention::windows", TESTS + "logits::vocabularies"],
    "synccheck": [TESTS + "attention::windows", TESTS + "logits::vocabularies"],
}
SECONDS = {"kernels": 120, "speed": 60, "sanitizer": 40}
# All together; what is begun before may take longer.
DEADLINE = 470
# Beside the script.
PARTS = ("check.py", "models.py", "worker.py", "peers.py", "table.py", "parity.py")


def pack(folder):
    """Builds what runs there and copies it, its model and these scripts."""
    root = HERE.parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    builds = {"tests": ["test", "--release", "--lib", "--no-run"], "speed": ["bench", "--bench", "cuda", "--no-run"],
              "engine": ["build", "--release", "--bin", "engine"]}
    for name, target in builds.items():
        command = ["cargo", *target, "-p", "pointsman-engine", "--message-format=json"]
        built = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
        messages = [json.loads(line) for line in built.splitlines() if line.startswith("{")]
        binaries = [message["executable"] for message in messages if message.get("executable")]
        shutil.copy(binaries[-1], folder / name)
        subprocess.run(["strip", folder / name], check=False)
    shutil.copytree(root / "engine" / "demo-model", folder / "demo-model", dirs_exist_ok=True)
    for part in PARTS:
        shutil.copy(HERE / part, folder / part)
    print(f"packed {folder}; there: python3 {folder.name}/check.py run")


def timed(command, seconds, environment):
    """Runs a command; whether it passed, how long it took, and how it ended."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        passed, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or ""
        output = output.decode(errors="replace") if isinstance(output, bytes) else output
        passed, output = False, output + f"\nstopped after {seconds} s"
    result = {"passed": passed, "seconds": round(time.monotonic() - start, 1)}
    if not passed:
        result["output"] = output[-4000:]
    return result, output


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def run(rehearsal):
    begun = time.monotonic()
    left = lambda most: min(most, DEADLINE - (time.monotonic() - begun))
    report = {"device": device(), "date": time.strftime("%Y-%m-%d")}
    rates = None
    if not rehearsal:
        rates = kernels(report, left)
    with tempfile.TemporaryDirectory(dir=roomy(), prefix="gpu-check-") as home:
        home = pathlib.Path(home)
        report["worker"] = part(left, lambda: Table(HERE, home, rates, rehearsal).run(), lambda row: row_passed(row, rehearsal))
        report["parity"] = part(left, lambda: parity.run(HERE, home, rehearsal), lambda row: row["passed"])
    if not rehearsal:
        sanitize(report, left)
    report["seconds"] = round(time.monotonic() - begun, 1)
    print(json.dumps(report, indent=1))
    return all(part["passed"] for part in report.values() if isinstance(part, dict))


def kernels(report, left):
    """The tests and the benchmark of the kernels; the limits that the latter found."""
    environment = dict(os.environ, KERNELS_ON="gpu", DEMO_MODEL=str(HERE / "demo-model"), RUST_BACKTRACE="0")
    tests = [str(HERE / "tests"), "--test-threads=1", TESTS]
    report["kernels and model"], _ = timed(tests, left(SECONDS["kernels"]), environment)
    report["speed"], output = timed([str(HERE / "speed")], left(SECONDS["speed"]), environment)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    report["speed"]["rows"] = rows
    return next((row for row in rows if "copy_bytes_per_second" in row), None)


def sanitize(report, left):
    environment = dict(os.environ, KERNELS_ON="gpu", DEMO_MODEL=str(HERE / "demo-model"), RUST_BACKTRACE="0")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    for tool, names in SANITIZED.items():
        if sanitizer is None or left(SECONDS["sanitizer"]) < 10:
            report[tool] = None
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        tests = [str(HERE / "tests"), "--test-threads=1", *names]
        report[tool], _ = timed(command + tests, left(SECONDS["sanitizer"]), environment)


def part(left, rows, passed):
    """Rows of one part, or why there are none."""
    start = time.monotonic()
    if left(60) < 60:
        return {"passed": False, "output": "no time was left for it", "rows": []}
    try:
        found = rows()
        result = {"passed": all(passed(row) for row in found), "rows": found}
    except Exception as error:
        result = {"passed": False, "output": f"{type(error).__name__}: {error}"[:4000], "rows": []}
    return result | {"seconds": round(time.monotonic() - start, 1)}


def row_passed(row, rehearsal):
    """A row of the table is measured; on a GPU its goal is reached as well."""
    return "error" not in row and (rehearsal or row.get("goal", {}).get("reached", True))


def roomy():
    """Where 30 GB of weights fit: memory, if there is as much, so that starts read from no disk."""
    shared = pathlib.Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > 40 << 30 else None


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "pack":
        pack(pathlib.Path(sys.argv[2]))
    elif sys.argv[1:] in (["run"], ["run", "--rehearse"]):
        import parity
        from table import Table

        sys.exit(0 if run("--rehearse" in sys.argv) else 1)
    else:
        sys.exit(__doc__)
