"""What runs inside the sandbox (`sandbox.py` says what holds there): a file for a bare interpreter, standard library alone.

The nonce that says "it ran to its end" is a local variable of the main thread. The program runs in another one whose first
frame is its own, called from C, so that walking up its frames leads nowhere.
"""

from __future__ import annotations

import _thread
import ctypes
import functools
import marshal
import operator
import os
import resource
import struct
import sys
import time
import types

TYPE_CHECKING = False  # importing typing takes as long as the rest together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FORBIDDEN = {
    "os",
    "subprocess",
    "socket",
    "ctypes",
    "resource",
    "signal",
    "_thread",
    "gc",
    "code",
    "pty",
    "fcntl",
    "sqlite3",
}
"""First parts of the names of audit events. gc, code: ways to objects of other threads."""
WATCHING = {"sys._current_frames", "sys._current_exceptions", "sys.setprofile", "sys.settrace", "sys.remote_exec"}
HARMLESS = {"os.putenv", "os.unsetenv"}

# System calls by their numbers on (x86_64, aarch64); 0: there is none. Only what is no use to a program that computes.
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CALLS = {
    "fork": (57, 0), "vfork": (58, 0), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "socket": (41, 198), "socketpair": (53, 199),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "setsid": (112, 157), "setpgid": (109, 154),
    "creat": (85, 0), "openat2": (437, 437), "open_by_handle_at": (304, 265), "memfd_create": (319, 279),
    "truncate": (76, 45), "unlink": (87, 0), "unlinkat": (263, 35), "rename": (82, 0), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, 0), "mkdirat": (258, 34), "rmdir": (84, 0), "link": (86, 0), "linkat": (265, 37),
    "symlink": (88, 0), "symlinkat": (266, 36), "mknod": (133, 0), "mknodat": (259, 33), "chmod": (90, 0),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, 0), "lchown": (94, 0), "fchownat": (260, 54),
    "mount": (165, 40), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "shmget": (29, 194),
}  # fmt: skip
OPENING = {"open": ((2, 0), 1), "openat": ((257, 56), 2)}
"""Number, and which argument has the flags."""


def main() -> None:
    report = int(sys.argv[1])
    os.write(report, b"ready\n")
    asked = marshal.loads(b"".join(iter(lambda: os.read(0, 2**20), b"")))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    nonce = asked.pop("nonce").encode()
    os.environ.clear()
    sys.argv = [""]
    _limit(asked["seconds"], asked["memory"])
    try:
        parts = [compile(asked[name], f"<{name}>", "exec", dont_inherit=True) for name in ("program", "test")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        os.write(report, b"syntax error\n")
        os._exit(0)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    done: list[Any] = []
    sys.unraisablehook = functools.partial(_ended, report, done)
    steps = [functools.partial(_guard, report), *(functools.partial(exec, part, module.__dict__) for part in parts)]
    _thread.start_new_thread(done.extend, (map(operator.call, steps),))
    del module, parts, steps
    while not done or _thread._count():  # pyright: ignore[reportAttributeAccessIssue]
        time.sleep(0.001)
    if len(done) == 3:
        os.write(report, nonce)
    os._exit(0)


def _limit(seconds: int, memory: int) -> None:
    for what, most in (("CPU", seconds), ("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NOFILE", 32)):
        # the hard limit of CPU time comes a second later: a signal that cannot be ignored
        _at_most(what, most, most + (what == "CPU"))


def _at_most(what: str, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (soft, hard))
    except (ValueError, OSError):  # macOS has no limit of address space, a caller's own may be lower
        return


def _ended(report: int, done: list[Any], found: Any) -> None:
    """Say what ended the program's thread; errors in its destructors end nothing."""
    if getattr(found.object, "__self__", None) is not done:
        return
    if issubclass(found.exc_type, AssertionError):
        os.write(report, b"failed\n")
    elif issubclass(found.exc_type, MemoryError):
        os.write(report, b"out of memory\n")
    else:
        os.write(report, f"error {found.exc_type.__name__[:80]}\n".encode(errors="replace"))


def _guard(report: int) -> None:
    """From here on, for the thread that calls it and all that come from it."""
    _at_most("NPROC", 0, 0)
    os.write(report, b"filtered\n" if _filter() else b"unfiltered\n")
    sys.addaudithook(_hook(report))


def _filter() -> bool:
    """Have the kernel end the process at a forbidden system call (seccomp); False where it cannot."""
    index, architecture = ARCHITECTURES.get(os.uname().machine, (0, 0))
    if not architecture or not sys.platform.startswith("linux"):
        return False
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow = 0x80000000, 0x7FFF0000
    number = (load, 0, 0, 0)
    rules = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), number]
    rules += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the other numbering of x86_64
    for numbers in CALLS.values():
        if numbers[index]:
            rules += [(equal, 0, 1, numbers[index]), (give, 0, 0, kill)]
    for numbers, argument in OPENING.values():
        if numbers[index]:
            flags = [(load, 0, 0, 16 + 8 * argument), (any_bit, 0, 1, WRITING), (give, 0, 0, kill), number]
            rules += [(equal, 0, len(flags), numbers[index]), *flags]
    code = b"".join(struct.pack("HBBI", *rule) for rule in [*rules, (give, 0, 0, allow)])
    held = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held)))
    libc = ctypes.CDLL(None)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    return libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0 and libc.prctl(seccomp, by_filter, program, 0, 0) == 0


def _hook(report: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that ends the process: an exception could be caught."""
    library = tuple(os.path.join(os.path.abspath(path), "") for path in sys.path)
    write, leave, path_of, join = os.write, os._exit, os.path.abspath, os.path.join

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            fine = isinstance(path, int) or (not flags & WRITING and path_of(os.fsdecode(path)).startswith(library))
        elif event in ("os.listdir", "os.scandir"):  # importing looks into folders
            fine = isinstance(arguments[0], str) and join(path_of(arguments[0]), "").startswith(library)
        else:
            fine = event in HARMLESS or not (event.partition(".")[0] in FORBIDDEN or event in WATCHING)
        if not fine:
            write(report, f"forbidden {event}\n".encode(errors="replace"))
            leave(0)

    return hook


if __name__ == "__main__":
    main()
