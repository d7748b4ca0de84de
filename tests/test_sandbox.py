"""Programs of a model: what they may not do ends them, by name; nothing is left behind; only the end of the test passes."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from diffulm.errors import BadInput
from diffulm.evaluation import _inside, sandbox

ENDLESS = {
    "timed out": ["while True:\n    try:\n        while True: pass\n    except BaseException: pass"],
    "too much output": ["while True: print('x' * 1000)", "import sys\nwhile True: sys.stderr.write('x' * 1000)"],
    "out of memory": ["x = bytearray(10 * 2**30)", "x = []\nwhile True: x.append(bytearray(2**22))"],
}
NOT_ALLOWED = {
    "import os\nwhile True: os.fork()": "os.fork",
    "import subprocess\nsubprocess.run(['true'])": "subprocess.Popen",
    "import os\nos.system('true')": "os.system",
    "import os\nos.kill(os.getppid(), 9)": "os.kill",
    "import socket\nsocket.socket()": "socket.__new__",
    "open('left', 'w')": "open",
    "try:\n    open('left', 'w')\nexcept BaseException: pass": "open",
    "open('/etc/passwd').read()": "open",
    "open('/proc/self/mem', 'rb').read(1)": "open",
    "import os\nos.remove('there')": "os.remove",
    "import os\nos.rmdir(os.getcwd())": "os.rmdir",
    "import os\nos.listdir('/')": "os.listdir",
    "import ctypes\nctypes.pythonapi.getppid()": "ctypes.dlsym",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))": "resource.setrlimit",
    "import gc\ngc.get_objects()": "gc.get_objects",
    "import sys\nsys._current_frames()": "sys._current_frames",
}
EARLY = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    "quit = exit = None\nimport os\nos._exit(1)",
]
FILTERED = sys.platform == "linux" and _inside.os.uname().machine in _inside.ARCHITECTURES


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """No file and no process is there after a test that was not there before."""
    started = []
    start = sandbox._started
    monkeypatch.setattr(sandbox, "_started", lambda *given: started.append(start(*given)) or started[-1])
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    yield
    assert all(process.returncode is not None for process in started)
    assert list(tmp_path.iterdir()) == []


def test_a_right_program_passes_and_a_wrong_one_fails():
    adds = "def f(x):\n    return x + 1\n"
    assert sandbox.run(adds, "assert f(1) == 2") == sandbox.Outcome(True, "passed", "", FILTERED)
    assert sandbox.run(adds, "assert f(1) == 3").why == "failed"
    wrong = sandbox.run("f = lambda x: y", "assert f(1) == 2")
    assert (wrong.passed, wrong.why, wrong.detail) == (False, "error", "NameError")
    assert sandbox.run("def f(:", "pass").why == "syntax error"
    assert sandbox.run("def f(x): return f(x)", "f(1)").detail == "RecursionError"


def test_what_programs_of_the_benchmark_use():
    program = """
        import bisect, collections, copy, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, itertools
        import math, operator, os, random, re, statistics, string, sys, typing
        @dataclasses.dataclass
        class Point:
            x: int = 1
        def deep(n): return n and deep(n - 1)
        assert deep(500) == 0 and hashlib.md5(b'').hexdigest() and Point().x == 1 and random.Random(1).random()
        os.environ['A'] = 'b'
        print('some words')
        class Last:
            def __del__(self): 1 / 0  # ends nothing
        Last()
        """
    assert sandbox.run(textwrap.dedent(program)).why == "passed"


def test_what_a_program_is_given(monkeypatch):
    monkeypatch.setenv("SECRET", "word")
    program = """
        import os, sys
        assert not os.environ and sys.argv == [''] and __name__ == '__main__' and len(sys.modules['__main__'].__dict__) < 20
        try: input()
        except EOFError: pass
        """
    assert sandbox.run(textwrap.dedent(program)).why == "passed"
    order = "assert list({'a', 'b', 'c', 'd', 'e', 'f'}) == "
    found = subprocess.run(
        [sys.executable, "-c", "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"],
        env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sandbox.run(order + found.stdout).why == "passed"


@pytest.mark.parametrize(("why", "program"), [(why, one) for why, programs in ENDLESS.items() for one in programs])
def test_endless_programs_are_ended(why, program):
    assert sandbox.run(program, seconds=1, memory=2**28).why == why


def test_a_program_that_waits_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.75)
    began = time.monotonic()
    assert sandbox.run("import time\ntime.sleep(100)", seconds=1).why == "timed out"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("program", NOT_ALLOWED)
def test_what_is_not_allowed_ends_a_program_even_if_it_would_go_on(program):
    found = sandbox.run(program, seconds=2)
    assert (found.passed, found.why, found.detail) == (False, "forbidden", NOT_ALLOWED[program])


@pytest.mark.skipif(not FILTERED, reason="no filter of system calls on this system")
@pytest.mark.parametrize(
    "act",
    [
        "os.fork()", "os.execv('/bin/true', ['true'])", "os.kill(os.getppid(), 0)", "signal.raise_signal(0)",
        "socket.socket()", "open(os.devnull, 'w')", "os.unlink('there')", "os.mkdir('there')", "os.rename('a', 'b')",
        "_thread.start_new_thread(print, ())", "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", "os.truncate('a', 0)",
    ],
)  # fmt: skip
def test_the_kernel_ends_what_no_hook_has_seen(act, tmp_path):
    found = inside(f"assert _inside._filter()\n{act}", tmp_path)
    assert found.returncode == -signal.SIGSYS, found.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_byte_reaches_a_file(tmp_path):
    """By a limit of the kernel, wherever there is no filter of system calls."""
    code = "_inside._limit(5, 2**30)\nopen('there', 'wb', 0).write(b'x')"
    assert b"File too large" in inside(code, tmp_path).stderr
    assert (tmp_path / "there").stat().st_size == 0
    (tmp_path / "there").unlink()


def inside(code, folder):
    """A bare process that has what the sandbox runs at hand, as `_inside`."""
    code = (
        f"import os, resource, signal, socket, sys, _thread\nsys.path.insert(0, {str(sandbox._INSIDE.parent)!r})\n"
        f"import _inside\n{code}"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False)


@pytest.mark.parametrize("program", EARLY)
def test_leaving_before_the_test_is_not_passing(program):
    found = sandbox.run(program, "assert False")
    assert (found.passed, found.why) == (False, "ended early")


def test_text_left_open_swallows_no_test():
    assert sandbox.run("x = '''", "'''\nassert False").why == "syntax error"
    assert sandbox.run("x = (", "1)\nassert False").why == "syntax error"


def test_the_sign_of_passing_is_out_of_reach():
    program = """
        import os, sys
        try:
            1 / 0
        except ZeroDivisionError as error:
            frame = error.__traceback__.tb_frame
        assert frame.f_back is None and sys._getframe().f_back is None
        assert not [name for name in vars(sys.modules['__main__']) if 'nonce' in name]
        for number in range(3, 32):
            try:
                os.write(number, b'passed\\n')
                found = os.read(number, 100)
            except OSError:
                continue
            assert not found
        os._exit(0)
        """
    found = sandbox.run(textwrap.dedent(program), "assert False")
    assert (found.passed, found.why) == (False, "ended early")


def test_an_interpreter_that_does_not_start_is_no_wrong_answer(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(sandbox, "_INSIDE", tmp_path_factory.mktemp("other") / "missing.py")
    with pytest.raises(BadInput, match="does not start in the sandbox"):
        sandbox.run("pass")


def test_a_system_without_such_processes_is_told(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sandbox.os, "name", "nt")
        with pytest.raises(BadInput) as found:
            sandbox.run("pass")
    assert "Linux and macOS" in str(found.value)
