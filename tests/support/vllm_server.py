"""vLLM's own server with OpenAI's API, on a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from actors.engine_options import environment

START_S = 240.0


@contextmanager
def vllm_server(model: str, log: Path, *, name: str, max_length: int) -> Iterator[str]:
    """Its URL, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"--served-model-name": name, "--host": "127.0.0.1", "--port": port}
    options |= {"--max-model-len": max_length, "--kv-cache-memory-bytes": 64 << 20, "--max-num-seqs": 8}
    words = [str(word) for pair in options.items() for word in pair]
    # Not `vllm serve`, which looks for a package of that name; the build for CPU has another.
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command = [*server, *words, "--enforce-eager"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment(False), stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])
