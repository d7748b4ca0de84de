"""Processes for the tests of faults: one helper has everything imported and forks a child for each command, so that a
command costs what it does and not the seconds of its imports.

    with Forks(folder) as forks:
        child = forks.diffulm("adapt", "tiny", ...)     # as the command line runs it, signals and streams included
        child.kill(signal.SIGINT)
        assert child.wait() == 130

Run as a script this file is that helper.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

from runs import short

NEW_MOUNTS, NEW_USER, PRIVATE, REMOUNT, READ_ONLY = 0x20000, 0x10000000, 0x4000 | 0x40000, 32, 1  # of Linux
GONE = "gone"  # a pipe whose reader has gone, as the rest of `| head`
# Taking such a process apart, module by module, costs more than the command: it ends as `main` said, at once.
MAIN = """
import os
from diffulm.cli import main
try:
    main()
except SystemExit as end:
    os._exit(end.code)
"""


class Child:
    """A forked process. Its output lies in files, or goes to a terminal."""

    def __init__(self, forks: "Forks", pid: int, out: Path, err: Path) -> None:
        self.forks, self.pid, self._out, self._err = forks, pid, out, err

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code, as subprocess gives it."""
        code = self.wait_some(seconds)
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.err}")
        return code

    def wait_some(self, seconds: float) -> int | None:
        """The same; None when it is still running after so many seconds."""
        status = self.forks.ask({"wait": self.pid, "seconds": seconds})["status"]
        return None if status is None else os.waitstatus_to_exitcode(status)

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", "surrogateescape") if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", "surrogateescape") if self._err.exists() else ""


class Forks:
    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.count, self.whole = folder, 0, folder / "whole"
        mine, theirs = os.pipe(), os.pipe()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment = {k: v for k, v in environment.items() if k not in ("NO_COLOR", "DIFFULM_DEBUG", "RANK")}
        command = [sys.executable, __file__, str(theirs[0]), str(mine[1]), *short(home, self.whole)]
        with (folder / "helper").open("w") as said:
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=(theirs[0], mine[1]), stdout=said, stderr=said
            )
        os.close(theirs[0])
        os.close(mine[1])
        self.replies, self.requests = os.fdopen(mine[0]), os.fdopen(theirs[1], "w")

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: Any) -> None:
        for stream in (self.requests, self.replies):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()
        reply = self.replies.readline()
        assert reply, (self.folder / "helper").read_text("utf-8")
        return json.loads(reply)

    def start(self, code: str, arguments: tuple[str, ...] = (), **settings: Any) -> Child:
        """settings: env (added), stdin, stdout, stderr (a path, GONE, or None: closed), file_limit (bytes), terminal (a
        path), encoding (of the streams)."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        streams = {"stdin": os.devnull, "stdout": str(out), "stderr": str(err)}
        request = {"code": code, "arguments": ["diffulm", *arguments], **streams, **settings}
        return Child(self, self.ask(request)["pid"], out, err)

    def diffulm(self, *arguments: str, first: str = "", **settings: Any) -> Child:
        """A command line; `first` is code that runs before it, with `when` at hand."""
        return self.start(f"from forks import when\n{first}\n{MAIN}", arguments, **settings)

    def launched(self, count: int, *arguments: str, first: str = "", code: str = "") -> list[Child]:
        """So many processes of one run, as torchrun would start them: of a command line, or of `code`."""
        fresh = "from accelerate.state import PartialState; PartialState._reset_state()  # of the helper's own run\n"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        if code:
            return [self.start(fresh + code, env=rank) for rank in ranks]
        return [self.diffulm(*arguments, env=rank, first=fresh + first) for rank in ranks]


def when(place: str, call: int, act: str) -> None:
    """In a child: before call number `call` (from 1) of "module:attribute.attribute", run the code `act`."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), [0]

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            exec(act, {"os": os, "signal": signal, "time": time, "resource": resource, "when": when})
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def mount(folder: Path, kilobytes: int, again: bool = False, flags: int = 0) -> None:
    """In a child: a disk of its own at `folder`, which nobody else sees and which ends with it. OSError where this may not
    be. again: another size, or flags, for the one that is there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(done: int) -> None:
        if done:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    if not again:
        user, group = os.getuid(), os.getgid()
        call(libc.unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        call(libc.mount(b"none", b"/", None, PRIVATE, None))
    kind, size = (b"tmpfs", f"size={kilobytes}k".encode())
    call(libc.mount(kind, os.fsencode(folder), kind, flags | (REMOUNT if again else 0), size))


def command(*arguments: str) -> int:
    """In a child: a command line, and its exit code."""
    from diffulm.cli import main

    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("main always leaves")


def open_terminal(columns: int) -> tuple[int, str]:
    """(descriptor of our end, path of the other end) of a new terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    path = os.ttyname(theirs)
    os.set_blocking(ours, False)
    os.close(theirs)
    return ours, path


def read_terminal(descriptor: int) -> str:
    """What was drawn since the last call; to be called before the other end is full (4 KB)."""
    found = b""
    with contextlib.suppress(BlockingIOError, OSError):  # OSError: the other end is closed
        while piece := os.read(descriptor, 65536):
            found += piece
    return found.decode("utf-8", "replace")


def _serve(requests: int, replies: int) -> dict[str, Any] | None:
    """Answer requests; returns in the forked children only, with what they are to do."""
    with os.fdopen(requests, "rb", buffering=0) as lines:
        while line := lines.readline():
            request = json.loads(line)
            if "wait" in request:
                answer = {"status": _wait(request["wait"], request["seconds"])}
            else:
                pid = os.fork()
                if pid == 0:
                    os.close(replies)
                    return request
                answer = {"pid": pid}
            os.write(replies, (json.dumps(answer) + "\n").encode())
    return None


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def _become(request: dict[str, Any]) -> None:
    """The streams, limits and environment of the request."""
    os.environ.update(request.get("env", {}))
    if request.get("terminal"):
        os.setsid()
        request |= dict.fromkeys(("stdin", "stdout", "stderr"), request["terminal"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if request[name] is None:
            os.close(number)
            setattr(sys, name, None)
        else:
            if request[name] == GONE:
                reader, opened = os.pipe()
                os.close(reader)
            else:
                opened = os.open(request[name], (os.O_RDWR | os.O_CREAT) if number else os.O_RDWR, 0o644)
            os.dup2(opened, number)
            os.close(opened)
            errors = "backslashreplace" if number == 2 else "strict"  # as Python makes them
            at_once = number == 2 or os.isatty(number)
            encoding = request.get("encoding", "utf-8")
            stream = open(number, "w" if number else "r", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
            stream.reconfigure(line_buffering=at_once)
            setattr(sys, name, stream)
    if request.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    sys.argv[:] = request["arguments"]


def _warm(arguments: list[str]) -> None:
    """Everything imported and every cache filled, by a whole run; then the garbage collector is told to let all that
    alone, or each child would copy it."""
    import gc

    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # drawing curves is half of a run of half a second
    import diffulm.cli
    import diffulm.recipes.inspect  # noqa: F401
    from diffulm.lm import load
    from diffulm.recipes.adapt import run

    report = run("tiny", dict(pair.split("=", 1) for pair in arguments[2:]))
    load(report["out"]).infill("the cat <hole:1> on a mat")
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _warm(sys.argv[3:])
    job = _serve(int(sys.argv[1]), int(sys.argv[2]))
    if job is not None:
        _become(job)
        exec(job["code"], {"__name__": "__main__"})
