"""`diffulm serve` as a child process, for the tests that talk to it.

with serving("pocket", "--parent", "pocket-ar") as url:
    openai.OpenAI(base_url=f"{url}/v1", api_key="any")
"""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

STARTS = 120.0  # seconds: a busy machine takes many times the 5 that importing and loading take on a quiet one
ENDS = 60.0


class Address(str):
    """The base URL of a server, with the process and the file that its standard error goes to."""

    process: subprocess.Popen[bytes]
    stderr: Path

    @property
    def log(self) -> str:
        return self.stderr.read_text("utf-8", "replace")


@contextlib.contextmanager
def serving(*arguments: str, ready: bool = True, port: int = 0) -> Iterator[Address]:
    """The base URL of a server; it is told to stop at the end, and has to end with 0.

    ready: wait until the model is. port: 0: one that the system picks.
    """
    command = [sys.executable, "-m", "diffulm", "serve", *arguments, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            address = Address(_when(process, log, lambda: re.findall(r"listening on (\S+)", log.read_text()))[0])
            address.process, address.stderr = process, log
            if ready:
                _when(process, log, lambda: answers(f"{address}/ready"), 0.2)
            yield address
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                code = process.wait(ENDS)
                assert code == 0, f"ended with {code}: {log.read_text()}"
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    """Whether there is a 200."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status == 200
    except OSError:
        return False


def _when(process, log, found, pause=0.05):
    end = time.monotonic() + STARTS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}: {log.read_text()}")
        if result := found():
            return result
        time.sleep(pause)
    raise AssertionError(f"not there after {STARTS} s: {log.read_text()}")
