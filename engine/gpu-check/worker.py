"""The worker as its clients see it: started as a process, asked over HTTP, stopped."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor


def ranks(rehearsal):
    """How many share a model: the GPUs that are there, up to 8 and a power of two; in a rehearsal two threads."""
    if rehearsal:
        return 2
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 1
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return max(size for size in (1, 2, 4, 8) if size <= max(count, 1))


class Worker:
    """A worker of one model; use it as a context, which stops it at the end."""

    def __init__(self, binary, model, log, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [binary, "--model", model, "--served-model-name", "m", "--host", "127.0.0.1", "--port", self.port, *flags]
        self.log = open(log, "w")
        self.started = time.monotonic()
        quiet = dict(os.environ, RUST_BACKTRACE="0")
        self.process = subprocess.Popen([str(word) for word in command], stdout=self.log, stderr=self.log, env=quiet)

    def ready(self, seconds):
        """Waits until it serves; how long it took since it was started."""
        while time.monotonic() - self.started < seconds:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/health")[0] == 200:
                    return time.monotonic() - self.started
            except OSError:
                pass
            time.sleep(0.01)
        with open(self.log.name) as log:
            raise RuntimeError(f"the worker does not serve after {seconds} s; its log ends with: {log.read()[-2000:]}")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def complete(self, prompt, max_tokens, **more):
        """One answer to a prompt of token ids, whole, and the seconds it took."""
        body = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {text[:500]}")
        return json.loads(text), time.monotonic() - start

    def all(self, prompts, max_tokens):
        """Many at once; the seconds until the last is answered."""
        start = time.monotonic()
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(lambda prompt: self.complete(prompt, max_tokens), prompts))
        for answer, _ in answers:
            got = answer["usage"]["completion_tokens"]
            if got != max_tokens:
                raise RuntimeError(f"{got} tokens came in place of {max_tokens}")
        return time.monotonic() - start

    def gaps(self):
        """Seconds between tokens so far, summed up, and how many there were."""
        text = self.get("/metrics")[1]
        of = lambda name: sum(float(value) for value in re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))
        return of("inter_token_latency_seconds_sum"), of("inter_token_latency_seconds_count")

    def gap_during(self, work):
        """The mean gap between tokens while `work` goes on."""
        before = self.gaps()
        work()
        after = self.gaps()
        return (after[0] - before[0]) / (after[1] - before[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
