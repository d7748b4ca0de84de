"""What happens to the process of a command: Ctrl-C and SIGTERM anywhere, a second run in the folder, several processes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from diffulm.training.run_folder import read_metrics
from forks import Forks
from runs import short, timeless, weights

GOES_ON = "the same command goes on from the last checkpoint"
TRAINER = "diffulm.training.trainer:DiffusionTrainer"
PLACES = {
    "opening the parent": ("diffulm.recipes.pretraining:adopt", 1),
    "packing text": ("diffulm.data.blocks:write_arrow", 1),
    "the first look": ("diffulm.recipes.train:first_look", 1),
    "a step": (f"{TRAINER}.training_step", 4),
    "a save": ("diffulm.training.trainer:save_file", 2),
    "the model's last step": ("diffulm.training.run_folder:sync", 1),
    "the report": ("diffulm.recipes.train:write_report", 1),
}


def kill_at(place: str, call: int, number: int) -> str:
    return f"when({place!r}, {call}, 'os.kill(os.getpid(), {int(number)})')\n"


def test_ctrl_c_and_sigterm_anywhere_and_the_same_command_again(forks: Forks, home, tmp_path):
    """One run, stopped at one place after the other: each time one line, and in the end what it would have been anyway."""
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    for number, (place, call) in enumerate(PLACES.values()):
        sent = signal.SIGTERM if number % 2 else signal.SIGINT
        child = forks.diffulm(*command, first=kill_at(place, call, sent))
        word = "terminated" if number % 2 else "interrupted"
        assert child.wait() == 128 + sent, child.err
        assert child.err.splitlines()[-1] == f"diffulm: {word}; {GOES_ON}"
        assert "Traceback" not in child.err and child.out == ""
        assert not (out / "report.json").exists() and not (out / "saving.tmp").exists()
    assert len(list(out.glob("checkpoint-*"))) == 2, "it got as far as the end"
    child = forks.diffulm(*command)
    assert child.wait() == 0, child.err
    assert weights(out) == weights(forks.whole)
    assert timeless(out) == timeless(forks.whole)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a save", "diffulm.training.trainer:shutil.rmtree"),
        pytest.param("a step", "diffulm.recipes.train:ProgressLine.close", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_again_while_the_first_is_handled(forks: Forks, home, tmp_path, first, second):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    place, call = PLACES[first]
    # the second one arrives when what the first began is being cleared away
    act = kill_at(second, 1, signal.SIGINT) + "os.kill(os.getpid(), 2)"
    child = forks.diffulm(*command, first=f"when({place!r}, {call}, {act!r})")
    assert child.wait() == 130, child.err
    assert child.err.count(f"diffulm: interrupted; {GOES_ON}\n") == 1 and "Traceback" not in child.err
    assert forks.diffulm(*command).wait() == 0
    assert weights(out) == weights(forks.whole)


def test_ctrl_c_that_a_library_swallows_ends_the_command_the_second_time(forks: Forks, home, tmp_path):
    swallowed = "try: os.kill(os.getpid(), 2); time.sleep(1)\nexcept KeyboardInterrupt: pass\n" * 2
    child = forks.diffulm(
        *short(home, tmp_path / "a"), first=f"when('diffulm.recipes.pretraining:adopt', 1, {swallowed!r})"
    )
    assert (child.wait(), child.err) == (130, f"diffulm: interrupted; {GOES_ON}\n")


def test_ctrl_c_that_falls_into_a_destructor_or_an_import(forks: Forks, home, tmp_path):
    """Python drops what a destructor raises; C code that imports makes an ImportError of it. Both still end the command."""
    dropped = "class D:\n    def __del__(self): os.kill(os.getpid(), 2); time.sleep(1)\nD()"
    child = forks.diffulm(
        *short(home, tmp_path / "a"), first=f"when('diffulm.recipes.pretraining:adopt', 1, {dropped!r})"
    )
    assert (child.wait(), child.err) == (130, f"diffulm: interrupted; {GOES_ON}\n")
    turned = "try: os.kill(os.getpid(), 2); time.sleep(1)\nexcept KeyboardInterrupt: raise ImportError('numpy')"
    child = forks.diffulm(
        *short(home, tmp_path / "b"), first=f"when('diffulm.recipes.pretraining:adopt', 1, {turned!r})"
    )
    assert (child.wait(), child.err) == (130, f"diffulm: interrupted; {GOES_ON}\n")


def twice(delay: float, home, out) -> tuple[int, str]:
    """Two Ctrl-C a moment apart, `delay` seconds after a process of its own has begun to load torch."""
    command = [sys.executable, "-m", "diffulm", *short(home, out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 20
    while maps.exists() and "torch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.wait(60), process.communicate()[1]


def told_once(code: int, said: str) -> bool:
    return code == 130 and said.count("diffulm: interrupted") == 1 and "Traceback" not in said


def test_ctrl_c_twice_while_libraries_are_imported(home, tmp_path):
    assert told_once(*(found := twice(0.1, home, tmp_path / "run"))), found


@pytest.mark.slow
def test_ctrl_c_twice_at_any_moment_of_the_start(home, tmp_path):
    draw = random.Random(0)
    for _ in range(40):
        assert told_once(*(found := twice(draw.uniform(0.0, 4.0), home, tmp_path / "run"))), found


KILLS = {
    "a step": (f"{TRAINER}.training_step", 3),
    "a save": ("diffulm.training.trainer:save_file", 2),
    "an evaluation": (f"{TRAINER}.evaluate", 1),
    "the end of a save": ("diffulm.training.checkpoints:keep_newest", 1),
    "the last files": ("diffulm.training.run_folder:sync", 1),
}


def test_sigkill_in_the_middle_of_anything_and_the_same_command_again(forks: Forks, home, tmp_path):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    for place, call in KILLS.values():
        child = forks.diffulm(*command, first=kill_at(place, call, signal.SIGKILL))
        assert child.wait() == -signal.SIGKILL, child.err
        assert not (out / "report.json").exists()
    assert forks.diffulm(*command).wait() == 0
    assert weights(out) == weights(forks.whole) and timeless(out) == timeless(forks.whole)
    assert not list(out.rglob("*.tmp"))


def test_what_a_launcher_says_of_precision_is_not_the_run_s(forks: Forks, home, tmp_path):
    child = forks.diffulm(*short(home, tmp_path / "run"), env={"ACCELERATE_MIXED_PRECISION": "bf16"})
    assert child.wait() == 0, child.err
    assert weights(tmp_path / "run") == weights(forks.whole)


def test_experts_go_on_from_the_checkpoint_too(forks: Forks, home, tmp_path):
    """transformers writes the weights of experts under other names than the model has."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=300, num_hidden_layers=1, num_local_experts=2, eos_token_id=0, **shape)
    shutil.copytree(home / "parent", tmp_path / "parent")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MixtralForCausalLM(config).save_pretrained(tmp_path / "parent")
    runs = [short(home, tmp_path / name, model=tmp_path / "parent", eval_samples=2) for name in ("whole", "killed")]
    assert forks.diffulm(*runs[0]).wait() == 0
    assert forks.diffulm(*runs[1], first=kill_at(f"{TRAINER}.training_step", 6, signal.SIGKILL)).wait() < 0
    child = forks.diffulm(*runs[1])
    assert child.wait() == 0 and "missing keys" not in child.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments(forks: Forks, home, tmp_path):
    draw, out, kills, started = random.Random(0), tmp_path / "0", 0, time.monotonic()
    assert forks.diffulm(*short(home, out)).wait() == 0
    longest = time.monotonic() - started
    while kills < 20:
        if (out / "report.json").exists():
            assert weights(out) == weights(forks.whole) and timeless(out) == timeless(forks.whole)
            out = tmp_path / str(kills + 1)
        child = forks.diffulm(*short(home, out))
        time.sleep(draw.uniform(0, longest))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert forks.diffulm(*short(home, out)).wait() == 0
    assert weights(out) == weights(forks.whole) and timeless(out) == timeless(forks.whole)


def test_a_second_run_in_the_folder_is_refused_at_once_until_the_first_is_dead(forks: Forks, home, tmp_path):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    waits = f"when('{TRAINER}.training_step', 4, 'time.sleep(60)')"
    first = forks.diffulm(*command, first=waits)
    deadline = time.monotonic() + 30
    while not list(out.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = forks.diffulm(*command, first="when('diffulm.recipes.train:open_model', 1, 'os._exit(99)')")
    assert second.wait() == 2
    assert second.err == f"diffulm: error: out={out}: another process is running in it\n"
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    first.kill(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert forks.diffulm(*command).wait() == 0, "the lock died with its process"
    assert weights(out) == weights(forks.whole)


def test_of_two_processes_the_first_writes_and_speaks(forks: Forks, home, tmp_path):
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    stop = f"when('{TRAINER}.training_step', 10, 'os.kill(os.getpid(), 2)')"  # accumulation: 2 micro-batches a step
    first, second = forks.launched(2, *command, "micro_batch=1", first=stop)
    assert [first.wait(), second.wait()] == [130, 130], first.err + second.err
    assert first.err.endswith(f"diffulm: interrupted; {GOES_ON}\n") and second.err == ""
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]
    first, second = forks.launched(2, *command)
    assert [first.wait(), second.wait()] == [0, 0], first.err + second.err
    assert "bound: " in first.out and (second.out, second.err) == ("", "")
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl")]
    assert steps == [row["step"] for row in read_metrics(forks.whole / "metrics.jsonl")], "each line once"
    for mine, alone in zip(timeless(out), timeless(forks.whole), strict=True):
        assert mine == pytest.approx(alone, abs=2e-4)  # sums in another order, float32, through 8 steps
    again, other = forks.launched(2, *command)
    assert [again.wait(), other.wait()] == [0, 0]
    assert "finished already" in again.err and (other.out, other.err) == ("", "")


SHARED = """
import os
from diffulm.errors import BadInput
from diffulm.training import processes
processes.start(cpu=True)
def fail():
    raise BadInput("no")
try:
    processes.from_first(fail)
except BadInput as error:
    print(type(error).__name__, error, processes.all_of(processes.index()), flush=True)
os._exit(0)
"""


def test_all_processes_hear_of_an_error_of_the_first_and_can_go_on(forks: Forks):
    first, second = forks.launched(2, code=SHARED)
    assert [first.wait(), second.wait()] == [0, 0], first.err + second.err
    assert (first.out, second.out) == ("BadInput no [0, 1]\n", "Elsewhere no [0, 1]\n")


def test_an_error_in_one_of_two_processes_is_one_line(forks: Forks, home, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    for data, says in (("bad.jsonl", "bad.jsonl, line 2"), ("nowhere.txt", "nowhere.txt: no such file")):
        first, second = forks.launched(2, *short(home, tmp_path / "a", data=tmp_path / data))
        assert [first.wait(), second.wait()] == [2, 2]
        assert says in first.err and first.err.count("\n") == 1 and second.err == ""
    full = "when('diffulm.training.trainer:DiffusionTrainer._save', 1, 'raise OSError(28, \"full\")')"
    first, second = forks.launched(2, *short(home, tmp_path / "b"), first=full)
    assert [first.wait(), second.wait()] == [2, 2]
    assert first.err.splitlines()[-1].startswith(f"diffulm: error: {tmp_path / 'b'}: the disk is full")
    assert "Traceback" not in first.err + second.err


@pytest.mark.parametrize("killed", [0, 1])
def test_of_two_processes_one_is_killed(forks: Forks, home, tmp_path, killed):
    """In the middle of a step. The other does not wait for it: one line, and the job goes on when it is started again."""
    out, command = tmp_path / "run", short(home, tmp_path / "run")
    kill = f"if os.environ['RANK'] == '{killed}': os.kill(os.getpid(), 9)"
    children = forks.launched(2, *command, first=f"when('{TRAINER}.training_step', 6, {kill!r})")
    assert children[killed].wait() == -signal.SIGKILL
    other = children[1 - killed]
    assert other.wait(60) == 2, other.err
    said = "diffulm: error: another process of this run has died; what it wrote says why"
    assert other.err.splitlines()[-1] == f"{said}; {GOES_ON}" and "Traceback" not in other.err
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]
    assert [child.wait() for child in forks.launched(2, *command)] == [0, 0]
    for mine, alone in zip(timeless(out), timeless(forks.whole), strict=True):
        assert mine == pytest.approx(alone, abs=2e-4)  # sums in another order, float32, through 8 steps


@pytest.mark.slow
def test_the_launchers_themselves(home, tmp_path):
    """torchrun, told to stop as SLURM does it before the time is up; then accelerate launch, with other words on precision."""
    out, command = tmp_path / "run", ["-m", "diffulm", *short(home, tmp_path / "run", tokens=40 * 4 * 16)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with (tmp_path / "said").open("w") as said:
        started = subprocess.Popen([*launcher, *command], env=environment, stdout=said, stderr=said)
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoint-*")) and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        started.terminate()
        assert started.wait(60) != 0 and not (out / "report.json").exists(), (tmp_path / "said").read_text()
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines.count(f"diffulm: terminated; {GOES_ON}") == 1, "the first process says it, whatever torchrun adds"
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bound: ") == 1 and (out / "report.json").exists()
