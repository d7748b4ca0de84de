"""Runs a program that a model has written, in a process of its own that may compute and nothing else.

Held by the kernel: CPU time, address space, no byte written to a file, no core dump, few open files (resource limits); a
wall clock, and a bound on what is read of its output (this process, which then kills the whole group); an empty environment,
an empty working folder, nothing on standard input. On Linux (x86_64, aarch64) also a seccomp filter, which binds root as well:
a process or thread more, another program, a signal, a socket, opening a file for writing, making, renaming or removing one,
and raising a limit each end the process at once.

Held by an audit hook of the interpreter: the same again, so that an outcome has a name, and reading any file outside the
standard library. Without the filter (another system or kernel) this hook is all there is against processes, sockets and
removing files; `Outcome.filtered` says which it was.

This is a guard against accidents, not against an attacker: code that breaks the interpreter meets the kernel's part alone,
and code that knows this file can make a test pass that it does not deserve. What it cannot do by leaving early, by printing or
by looking through its frames is to count as passed: only the end of the test has the number that says so.
"""

import contextlib
import marshal
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffulm.errors import BadInput

SECONDS, MEMORY, OUTPUT = 3, 2**30, 2**16
PATIENCE = 5
"""Wall clock over CPU time: a machine that is busy with other things makes no program wrong."""
_INSIDE = Path(__file__).with_name("_inside.py")


@dataclass(frozen=True)
class Outcome:
    """why: "passed", "failed" (an assertion), "error" (another exception, by name in `detail`), "syntax error", "timed out",
    "out of memory", "too much output", "forbidden" (what, in `detail`), "ended early" or "crashed"."""

    passed: bool
    why: str
    detail: str = ""
    filtered: bool = True
    """Whether the kernel filtered system calls."""


def run(program: str, test: str = "", seconds: int = SECONDS, memory: int = MEMORY, output: int = OUTPUT) -> Outcome:
    """The program, then the test in its namespace, as modules of their own: what a program leaves open swallows no test.

    seconds: of CPU time, and `PATIENCE` times as many by the clock. memory, output: bytes. BadInput where this system has
    no such processes, or the interpreter does not start in one.
    """
    if os.name != "posix":
        raise BadInput("programs can be run safely on Linux and macOS only: leave this task out here")
    nonce = secrets.token_hex(16)
    asked = {"program": program, "test": test, "seconds": seconds, "memory": memory, "nonce": nonce}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as request:
        request.write(marshal.dumps(asked))
        request.seek(0)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", 0) as report:
            try:
                process = _started(writing, request, folder)
            finally:
                os.close(writing)
            try:
                said, printed, late = _watched(process, report.fileno(), seconds * PATIENCE, output)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone already
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
    lines = said.decode(errors="replace").splitlines()
    if lines[:1] != ["ready"]:
        last = printed.decode(errors="replace").strip().splitlines()[-1:]
        raise BadInput(f"{sys.executable}: does not start in the sandbox: {''.join(last) or process.returncode}")
    why, detail = _verdict(lines, nonce, max(len(said), len(printed)) > output, late, process.returncode)
    return Outcome(why == "passed", why, detail, "unfiltered" not in lines)


def _started(report: int, request: Any, folder: str) -> subprocess.Popen[bytes]:
    bare = ["-P", "-s", "-S", "-B", "-W", "ignore"]  # -I would leave out what fixes the order of sets
    return subprocess.Popen(
        [sys.executable, *bare, str(_INSIDE), str(report)],
        stdin=request,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={"PYTHONHASHSEED": "0"},  # the same program, the same outcome
        pass_fds=(report,),
        start_new_session=True,
    )


def _watched(process: subprocess.Popen[bytes], report: int, seconds: float, output: int) -> tuple[bytes, bytes, bool]:
    """(what came through `report`, what was printed, whether time ran out); ends when the process does, or has to."""
    deadline = time.monotonic() + seconds
    assert process.stdout is not None
    printing = process.stdout.fileno()
    read = {report: b"", printing: b""}
    with selectors.DefaultSelector() as selector:
        for one in read:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return read[report], read[printing], True
            for key, _ in ready:
                new = os.read(key.fd, 2**16)
                read[key.fd] += new
                if not new:
                    selector.unregister(key.fd)
                elif len(read[key.fd]) > output:
                    return read[report], read[printing], False
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return read[report], read[printing], True
    return read[report], read[printing], False


def _verdict(lines: list[str], nonce: str, too_much: bool, late: bool, code: int) -> tuple[str, str]:
    if too_much:
        return "too much output", ""
    if lines[-1] == nonce:
        return "passed", ""
    for line in reversed(lines):
        for why in ("forbidden", "error"):
            if line.startswith(f"{why} "):
                return why, line.removeprefix(f"{why} ")
        if line in ("failed", "out of memory", "syntax error"):
            return line, ""
    if late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timed out", ""
    if code == -signal.SIGSYS:
        return "forbidden", "a system call"
    return ("crashed", signal.Signals(-code).name) if code < 0 else ("ended early", "")
