"""A disk that is full or read-only, and limits on the size of files: one line, nothing lost, and it goes on once there is
room."""

import json
from pathlib import Path

import pytest

from diffulm.checkpoint import disk
from forks import Child, Forks
from models import bad
from runs import short, timeless, weights

CHECKPOINT = "about 478.1 KB needed"  # 3 x 39,840 parameters in float32
BLOCKS = "about 20.4 KB needed"


def last_line(child: Child, code: int = 2) -> str:
    """Of a command that ends so: what it says at last, progress may stand before it."""
    assert child.wait() == code, child.err
    assert "Traceback" not in child.err and child.out == ""
    said = child.err.splitlines()
    assert sum("error" in line for line in said) == 1
    return said[-1]


LIMITS = {  # the first file that is too large
    "config": (400, "/run: file too large: a file may have at most 400 bytes (ulimit -f); raise that limit"),
    "blocks": (4_000, f"/run/data: file too large: {BLOCKS}, a file may have at most 4.0 KB (ulimit -f); raise that"),
    "weights": (80_000, f"/run: file too large: {CHECKPOINT}, a file may have at most 80.0 KB (ulimit -f); raise that"),
    "optimizer": (240_000, f"/run: file too large: {CHECKPOINT}, a file may have at most 240.0 KB (ulimit -f); raise"),
}
RARE = ("config", "optimizer")


@pytest.mark.parametrize(
    ("limit", "says"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in RARE)) for name, case in LIMITS.items()],
)
def test_a_file_that_may_not_be_so_large(forks: Forks, home, tmp_path, limit, says):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    assert last_line(forks.diffulm(*command, file_limit=limit)).startswith(f"diffulm: error: {tmp_path}{says}")
    assert not list(tmp_path.rglob("*.tmp")) and not list(out.glob("checkpoint-*"))
    if "run: " in says:  # the folder is begun
        assert forks.diffulm(*command).wait() == 0
        assert weights(out) == weights(forks.whole)


def test_earlier_checkpoints_survive_a_save_that_fails(forks: Forks, home, tmp_path):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))"
    child = forks.diffulm(*command, first=f"when('diffulm.training.trainer:save_file', 3, {limit!r})")
    assert last_line(child).endswith("; the same command goes on from the last checkpoint")
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not list(out.glob("*.tmp"))
    assert forks.diffulm(*command).wait() == 0
    assert weights(out) == weights(forks.whole) and timeless(out) == timeless(forks.whole)


def test_a_save_in_parts_that_fails_is_told_once(forks: Forks, home, tmp_path):
    """The disk of one of two processes is full. Both hear of it, the first says it, and nothing half is left."""
    out, command = tmp_path / "run", short(home, tmp_path / "run", sharding="full")
    limit = "if os.environ['RANK'] == '1': resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    children = forks.launched(2, *command, first=f"when('diffulm.training.sharding:save', 2, {limit!r})")
    said = last_line(children[0])
    assert said.startswith(f"diffulm: error: {out}: file too large: {CHECKPOINT}, ")
    assert said.endswith("; the same command goes on from the last checkpoint")
    assert (children[1].wait(), children[1].err) == (2, "")
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"] and not list(out.glob("*.tmp"))
    assert forks.diffulm(*command).wait() == 0, "one process goes on with what two have left"


@pytest.mark.parametrize("verb", ["save", "export", "import"])
def test_a_model_that_does_not_fit_leaves_nothing(forks: Forks, tmp_path, verb):
    target = tmp_path / "copy"
    if verb == "import":
        assert forks.diffulm("export", str(forks.whole), str(tmp_path / "released")).wait() == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    if verb == "save":
        code = f"from diffulm.lm import load\ntry: load({str(forks.whole)!r}).save({str(target)!r})\n"
        code += "except ValueError as error: import sys; sys.exit(f'diffulm: error: {error}')"
        said = last_line(forks.start(code, file_limit=80_000), code=1)
    else:
        source = tmp_path / "released" if verb == "import" else forks.whole
        said = last_line(forks.diffulm(verb, str(source), str(target), file_limit=80_000))
    assert said.startswith(f"diffulm: error: {target}: file too large: about 1")
    assert " KB needed, a file may have at most 80.0 KB (ulimit -f)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


ON_A_SMALL_DISK = """
import json, os, shutil, sys
from pathlib import Path
from forks import READ_ONLY, command, mount
small, line, copy = json.loads(os.environ["CASE"])
run, found = Path(small, "run"), []
def try_again():
    found.append([command(*line), len(list(run.glob("checkpoint-*"))), (run / "report.json").exists()])
try:
    mount(small, 300)
except OSError as error:
    sys.exit(f"no disk: {error}")
try_again()
mount(small, 900, again=True)
try_again()
mount(small, 900, again=True, flags=READ_ONLY)
try_again()
mount(small, 9000, again=True)
try_again()
shutil.copytree(run, copy)
mount(small, 9000, again=True, flags=READ_ONLY)
try_again()
found.append(command("infill", str(run), "--text", "the <hole:1>"))
print("\\n" + json.dumps(found))
"""


def test_a_run_on_a_disk_that_is_made_larger(forks: Forks, home, tmp_path):
    """Room for no checkpoint, for one, read-only, for all, and read-only when all is done."""
    small, copy = tmp_path / "small", tmp_path / "copy"
    small.mkdir()
    case = json.dumps([str(small), short(home, small / "run"), str(copy)])
    child = forks.start(ON_A_SMALL_DISK, env={"CASE": case})
    code = child.wait()
    if code == 1 and "no disk: " in child.err:
        pytest.skip(child.err.strip().splitlines()[-1])
    assert code == 0 and "Traceback" not in child.err, child.err
    stages = [[2, 0, False], [2, 1, False], [2, 1, False], [0, 2, True], [0, 2, True]]
    assert json.loads(child.out.splitlines()[-1]) == [*stages, 0]
    before, full, read_only = (line for line in child.err.splitlines() if "error" in line)
    run = small / "run"
    assert before.startswith(f"diffulm: error: {run}: the disk is too full: {CHECKPOINT}, ")
    assert full.startswith(f"diffulm: error: {run}: the disk is full: {CHECKPOINT}, ") and "; make room; " in full
    assert f"{run} may not be written" in read_only
    assert weights(copy) == weights(forks.whole) and timeless(copy) == timeless(forks.whole)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "m: the disk is full: about 3.0 GB needed, .* free; make room"),
        (OSError(122, "Disk quota exceeded"), "m: the disk quota is used up"),
        (Exception("I/O error: No space left on device (os error 28)"), "m: the disk is full"),
        (PermissionError(13, "Permission denied", "m/x"), "m/x: may not be written"),
        (OSError(30, "Read-only file system", "m/config.json"), "m/config.json: the disk is read-only"),
    ],
    ids=["full", "quota", "in words", "permission", "read-only"],
)
def test_what_libraries_say_of_a_disk(error, says):
    with bad(says), disk.writing(Path("m"), 3 * 10**9):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(2, "No such file"), PermissionError(13, "no", "/else/where"), ValueError("x")]
)
def test_what_is_no_fault_of_the_disk_stays_what_it_is(error):
    with pytest.raises(type(error)), disk.writing(Path("m")):
        raise error


def test_an_error_over_an_error_is_still_a_full_disk():
    """torch and others raise their own on top of the system's."""
    with bad("the disk is full"), disk.writing(Path("m")):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("write failed")  # noqa: B904 (as libraries do)
