"""Files that something cut short, and saves killed half-way: the result is the right one, or a line says what is broken."""

import json
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffulm.checkpoint import disk
from diffulm.lm import load
from forks import Forks
from models import bad
from runs import short, timeless, weights

TRAINER = "diffulm.training.trainer:DiffusionTrainer"
UNIMPORTANT = {".lock", "README.md", "report.html"}


@pytest.fixture(scope="module")
def stopped(forks: Forks, home, tmp_path_factory) -> Path:
    """A run that died in its fifth of eight steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert forks.diffulm(*short(home, out), first=f"when('{TRAINER}.training_step', 5, 'os._exit(9)')").wait() == 9
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    return out


def facts(folder: Path) -> dict:
    """What of a finished run may not depend on what happened on the way."""
    report = json.loads((folder / "report.json").read_text())
    kept = {key: value for key, value in report.items() if key not in ("out", "seconds_of_last_part")}
    return {"weights": weights(folder), "log": timeless(folder), "report": kept}


def harm(file: Path, how: str, share: float) -> bool:
    """Remove a file, cut it off or flip a bit; False where that would change nothing."""
    data = file.read_bytes()
    at = int(share * len(data))
    if how == "removed":
        file.unlink()
        return True
    if how == "cut":
        file.write_bytes(data[:at])
        return at < len(data)
    flipped = bytearray(data)
    flipped[at : at + 1] = bytes(byte ^ 1 for byte in flipped[at : at + 1])
    file.write_bytes(flipped)
    return bytes(flipped) != data


def resumes_or_says_why(forks: Forks, home: Path, run: Path, name: str, how: str, share: float) -> None:
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "run"
        shutil.copytree(run, out)
        harm(out / name, how, share)
        child = forks.diffulm(*short(home, out))
        code, said = child.wait(), child.err.splitlines()
        assert "Traceback" not in child.err, child.err
        if code == 0:
            assert facts(out) == facts(forks.whole)
            assert load(out).generate("the", length=2, steps=1).text
            return
        assert code == 2, child.err
        assert said[-1].startswith("diffulm: error: ") and child.out == ""
        assert Path(name).name in said[-1] and str(out) in said[-1], "it names the file"
        assert name not in UNIMPORTANT and not (how == "cut" and name == "metrics.jsonl" and run != forks.whole)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@st.composite
def harms(draw):
    """(which run, which of its files by share of the list, how, where)."""
    of = st.floats(0, 1, exclude_max=True)
    return (
        draw(st.sampled_from(["finished", "stopped"])),
        draw(of),
        draw(st.sampled_from(["cut", "removed", "flip"])),
        draw(of),
    )


def check_harm(forks: Forks, home: Path, stopped: Path, drawn: tuple[str, float, str, float]) -> None:
    kind, which, how, share = drawn
    run = stopped if kind == "stopped" else forks.whole
    listed = names(run)
    name = listed[int(which * len(listed))]
    if how == "flip" and name in ("config.yaml", "report.json"):
        how = "cut"  # small text of which there is no checksum: what it says is compared or copied, not trained on
    resumes_or_says_why(forks, home, run, name, how, share)


few = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None)
many = settings(few, max_examples=300)


@given(drawn=harms())
@few
def test_any_harm_to_a_run_folder(forks: Forks, home, stopped, drawn):
    check_harm(forks, home, stopped, drawn)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@given(drawn=harms())
@many
def test_any_harm_to_a_run_folder_at_length(forks: Forks, home, stopped, drawn):
    check_harm(forks, home, stopped, drawn)


def test_a_damaged_checkpoint_is_set_aside_and_said(forks: Forks, home, stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    harm(out / "checkpoint-4" / "optimizer.safetensors", "cut", 0.9)
    child = forks.diffulm(*short(home, out))
    assert child.wait() == 0, child.err
    first = child.err.splitlines()[0]
    assert first.startswith(f"{out}/checkpoint-4/optimizer.safetensors is damaged")
    assert first.endswith("; going on from checkpoint-2, checkpoint-4.damaged can be deleted")
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-4.damaged",
        "checkpoint-6",
        "checkpoint-8",
    ]
    assert facts(out) == facts(forks.whole)


def test_without_a_whole_checkpoint_nothing_is_thrown_away(forks: Forks, home, stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    for number in (2, 4):
        harm(out / f"checkpoint-{number}" / "generators.json", "removed", 0)
    child = forks.diffulm(*short(home, out))
    assert child.wait() == 2
    assert child.err == (
        f"diffulm: error: {out}/checkpoint-4/generators.json is missing, though manifest.json lists it, "
        f"and there is no whole checkpoint; delete {out}/checkpoint-* to begin again\n"
    )
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_text_that_changed_is_not_trained_on(forks: Forks, home, stopped, tmp_path):
    """The same command on other text would be half of one run and half of another."""
    out, text = tmp_path / "run", tmp_path / "text.jsonl"
    shutil.copy(home / "text.jsonl", text)
    command = short(home, out, data=text)
    assert forks.diffulm(*command, first=f"when('{TRAINER}.training_step', 5, 'os._exit(9)')").wait() == 9
    text.write_text(text.read_text().replace("cat", "dog"))
    child = forks.diffulm(*command)
    assert child.wait() == 2 and "packs into other blocks than those" in child.err
    shutil.copy(home / "text.jsonl", text)  # the same text, at another time
    assert forks.diffulm(*command).wait() == 0
    assert weights(out) == weights(forks.whole)


# -- saves that are killed


SAVE = """
import os, signal, time
from diffulm.lm import load
lm, target, delay, overwrite = load(os.environ["NEW"]), os.environ["TARGET"], float(os.environ["DELAY"]), "OLD" in os.environ
start = time.perf_counter()
if delay:
    signal.setitimer(signal.ITIMER_REAL, delay)  # ends the process as SIGKILL does: nothing gets to tidy up
lm.save(target, overwrite=overwrite)
print(time.perf_counter() - start, flush=True)
os._exit(0)
"""


def contents(folder: Path) -> dict[str, bytes] | None:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else None


def kill_saves(forks: Forks, tmp_path: Path, kills: int, overwrite: bool, old: Path, new: Path) -> dict[str, int]:
    """What the folder held after each of so many saves killed at a random moment: counts of "old" and "new"."""
    place, draw, target = tmp_path / "place", random.Random(0), tmp_path / "place" / "model"
    place.mkdir()

    def save(delay: float) -> tuple[int, str]:
        told = {"NEW": str(new), "TARGET": str(target), "DELAY": str(delay)} | ({"OLD": "1"} if overwrite else {})
        child = forks.start(SAVE, env=told)
        return child.wait(), child.out

    def restore() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if overwrite:
            shutil.copytree(old, target)

    restore()
    before = contents(target)
    code, out = save(0)
    assert code == 0
    after, seconds, found = contents(target), float(out), {"old": 0, "new": 0}
    restore()
    for _ in range(kills):
        save(draw.uniform(0, 1.2 * seconds))
        now = contents(target)
        assert now in (before, after), "neither the old model nor the new one"
        found["new" if now == after else "old"] += 1
        if now is not None:
            load(target)
        if now == after:
            restore()
    assert save(0)[0] == 0, "nothing that was left behind is in the way"
    assert contents(target) == after and [path.name for path in place.iterdir()] == ["model"]
    return found


@pytest.fixture(scope="module")
def models(forks: Forks, stopped, tmp_path_factory) -> tuple[Path, Path]:
    """Two models with different weights, as `save` leaves them."""
    root = tmp_path_factory.mktemp("models")
    load(stopped / "checkpoint-4").save(root / "old")
    return root / "old", forks.whole


@pytest.mark.parametrize("overwrite", [False, True], ids=["new folder", "overwrite"])
def test_a_save_killed_at_any_moment(forks: Forks, models, tmp_path, overwrite):
    kill_saves(forks, tmp_path, 6, overwrite, *models)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new folder", "overwrite"])
def test_a_save_killed_at_fifty_moments(forks: Forks, models, tmp_path, overwrite):
    found = kill_saves(forks, tmp_path, 50, overwrite, *models)
    assert min(found.values()) > 0, "some kills fell before the rename, some after it"


def test_only_what_the_dead_left_is_cleared_away(tmp_path):
    here = f".model.{platform.node()}"
    left = [f"{here}.{os.getpid()}.tmp", f"{here}.{2**22 + 1}.tmp"]  # this process; none has so high a number on Linux
    stays = [f"{here}.1.tmp", f".model.elsewhere.{2**22 + 1}.tmp", f".models.{platform.node()}.9.tmp", f"{here}.x.tmp"]
    for name in (*left, *stays):
        (tmp_path / name).mkdir()
    assert disk.partial(tmp_path / "model") == tmp_path / left[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


PUBLISH = """
import os, signal, time
from pathlib import Path
from diffulm.checkpoint.save import write_model
from diffulm.lm import load
from diffulm.training.run_folder import RunFolder
lm, run, delay = load(os.environ["NEW"]), RunFolder(Path(os.environ["TARGET"]), {}), float(os.environ["DELAY"])
start = time.perf_counter()
if delay:
    signal.setitimer(signal.ITIMER_REAL, delay)
run.publish(lambda path: write_model(lm.model, lm.tokenizer, path, lm.denoiser.record.to_dict()))
print(time.perf_counter() - start, flush=True)
os._exit(0)
"""


def check_published(forks: Forks, stopped: Path, tmp_path: Path, deaths: Iterable[tuple[str, str]]) -> None:
    """Publish, dying each time in another way (code that runs before, delay): the root is the new model or no model yet,
    and publishing again puts it right. Ends early when one does not die."""
    out = tmp_path / "run"
    told = {"NEW": str(forks.whole), "TARGET": str(out)}
    after = {}
    for before, delay in chain([("", "0")], deaths):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(stopped, out)
        child = forks.start(before + PUBLISH, env=told | {"DELAY": delay})
        code = child.wait()
        after = after or {name: (out / name).read_bytes() for name in names(out)}
        if (out / "config.json").exists():
            assert weights(out) == weights(forks.whole) and load(out)
        else:
            with bad("not finished, its newest checkpoint is"):
                load(out)
        if code == 0 and before:
            return
        assert forks.start(PUBLISH, env=told | {"DELAY": "0"}).wait() == 0
        assert {name: (out / name).read_bytes() for name in names(out)} == after


def test_a_run_that_dies_between_any_two_files_of_its_model(forks: Forks, stopped, tmp_path):
    dies = "from forks import when; when('diffulm.training.run_folder:os.replace', {}, 'os._exit(9)')"
    check_published(forks, stopped, tmp_path, ((dies.format(call), "0") for call in count(1)))


@pytest.mark.slow
def test_a_run_killed_at_fifty_moments_of_publishing_its_model(forks: Forks, stopped, tmp_path):
    draw = random.Random(1)  # it takes 40 ms on an idle machine
    check_published(forks, stopped, tmp_path, [("", str(draw.uniform(1e-4, 0.06))) for _ in range(50)])


def kill_runs(forks: Forks, home: Path, out: Path, longest: float, draw: random.Random) -> int:
    """Start the same run over and over, kill it after at most `longest` seconds; the number of kills until it was done."""
    timer = "import signal; signal.setitimer(signal.ITIMER_REAL, {})"
    for kills in range(200):
        child = forks.diffulm(*short(home, out), first=timer.format(draw.uniform(0.01, longest)))
        if (code := child.wait()) == 0:
            assert facts(out) == facts(forks.whole) and not list(out.rglob("*.tmp"))
            return kills
        assert code < 0, child.err
        longest *= 1.03  # it ends, however slow the machine
    raise AssertionError("200 kills")


@pytest.mark.slow
def test_a_run_killed_again_and_again(forks: Forks, home, tmp_path):
    """At any moment: while it starts, packs, looks, steps, saves, publishes."""
    draw = random.Random(2)
    assert sum(kill_runs(forks, home, tmp_path / str(number), 0.4, draw) for number in range(6)) >= 6
