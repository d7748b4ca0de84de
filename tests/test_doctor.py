"""`diffulm doctor`: true on this machine, and on machines that lack something; private; it never fails."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffulm
from diffulm.checkpoint import files
from diffulm.cli import main
from diffulm.recipes import doctor, machine
from diffulm.recipes.doctor import CORE, Need

TITLES = [
    "versions",
    "packages",
    "machine",
    "environment",
    "shipped models",
    "imports",
    "devices",
    "kernels",
    "features",
]


@pytest.fixture(scope="module")
def report():
    return dict(doctor.examine(diffulm.__version__))


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["doctor", *arguments])
        return end.value.code, *capsys.readouterr()

    return call


def test_it_is_true_here(report):
    assert list(report) == TITLES
    assert not any("failed" in section for section in report.values())
    assert report["versions"]["diffulm"].startswith(f"{diffulm.__version__}, ")
    assert report["packages"]["torch"] == {
        "version": metadata.version("torch"), "at_least": "2.6", "extra": None, "state": "ok"
    }  # fmt: skip
    assert report["packages"]["peft"]["extra"] == "lora"
    assert report["machine"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert 0 < report["machine"]["available_bytes"] <= report["machine"]["memory_bytes"]
    assert report["shipped models"] == {"pocket": "whole", "pocket-ar": "whole"}
    assert report["imports"] == {}
    assert report["devices"]["threads"] == torch.get_num_threads()
    assert len(report["devices"]["accelerators"]) == torch.cuda.device_count()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert "math" in report["kernels"][f"sdpa_with_mask_on_{device}"]  # the one that is everywhere
    assert {report["features"][name]["state"] for name in (CORE, "adapt", "demo")} == {"ready"}
    assert doctor.verdict(report) is None


def test_it_is_a_document(report):
    assert json.loads(json.dumps(report)) == report


def test_nothing_private_is_in_it(report):
    text = json.dumps(report)
    assert str(Path.home()) not in text
    assert str(Path(doctor.__file__).parents[3]) not in text


CANNED = {
    "versions": {"diffulm": "1.2.3"},
    "packages": {
        "torch": {"version": "2.7", "at_least": "2.6", "extra": None, "state": "ok"},
        "rich": {"version": "12.0", "at_least": "13", "extra": None, "state": "too old"},
        "peft": {"version": None, "at_least": "0.17", "extra": "lora", "state": "missing"},
        "triton": {"version": None, "at_least": None, "extra": None, "state": "missing"},
        "psutil": {"version": None, "at_least": None, "extra": None, "state": "missing"},
    },
    "machine": {"memory_bytes": 3 * 2**29, "core_quota": None, "writable_here": True},
    "environment": {"HF_TOKEN": "set", "OMP_NUM_THREADS": "2", "HF_HOME": None},
    "imports": {"matplotlib": "RuntimeError: naïve"},
    "devices": {"accelerators": [{"device": "cuda:0", "name": "H", "memory_bytes": 2**30, "bf16": True}]},
    "kernels": {"failed": "torch cannot be imported"},
    "features": {
        CORE: {"state": "missing", "missing": "rich is too old (12.0)", "get": 'pip install "rich>=13"', "extra": None},
        "LoRA": {"state": "missing", "missing": "peft is missing", "get": "pip install peft", "extra": "lora"},
        "demo": {"state": "ready", "missing": None, "get": None, "extra": None},
    },
}
PRINTED = """\
### Versions
- diffulm: 1.2.3

### Packages
- torch 2.7
- too old: rich 12.0; 13 is needed
- not installed (extra lora): peft
- not installed: triton, psutil

### Machine
- memory: 1.5 GiB
- writable here: yes

### Environment
- HF_TOKEN=set
- OMP_NUM_THREADS=2
- not set: HF_HOME

### Imports
- broken: matplotlib (RuntimeError: naïve)

### Devices
- accelerators: cuda:0, H, memory 1.0 GiB, bf16 yes

### Kernels
- failed: torch cannot be imported

### Features
- inspect, generate, infill, score: not ready: rich is too old (12.0); run: pip install "rich>=13"
- LoRA: not ready: peft is missing; run: pip install peft (extra lora)
- demo: ready

"""


@pytest.fixture
def canned(monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "examine", lambda _, network: asked.append(network) or iter(CANNED.items()))
    return asked


def test_what_is_printed(canned, run):
    advice = 'diffulm: error: rich is too old (12.0); run: pip install "rich>=13"\n'
    assert run() == (2, PRINTED, advice)
    code, out, err = run("--json", "--network")
    assert (code, json.loads(out), err) == (2, CANNED, advice)
    assert canned == [False, True]


def test_what_the_terminal_cannot_show(canned, run, monkeypatch):
    class Ascii:
        encoding, text = "ascii", ""

        def write(self, text):
            self.text += text.encode("ascii").decode()  # what it cannot show is an error, as on a real one

        def flush(self):
            pass

    screen = Ascii()
    monkeypatch.setattr(sys, "stdout", screen)
    assert run()[0] == 2
    assert r"na\xefve" in screen.text


def test_when_all_is_well_the_exit_code_is_0(run, monkeypatch):
    core = {CORE: {"state": "ready", "missing": None, "get": None, "extra": None}}
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([("features", core)]))
    assert run() == (0, "### Features\n- inspect, generate, infill, score: ready\n\n", "")


def test_a_machine_without_a_working_torch(tmp_path):
    """The whole program: a torch that cannot be imported, an optional package that raises, one that exits."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open /home/somebody/lib/x.so\\nmore')")
    (tmp_path / "matplotlib.py").write_text("raise RuntimeError('built for another numpy')")
    (tmp_path / "sentencepiece.py").write_text("raise SystemExit(3)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-m", "diffulm", "doctor"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "- broken: torch (OSError: libcudart.so: cannot open .../x.so)" in done.stdout
    assert "- broken: matplotlib (RuntimeError: built for another numpy)" in done.stdout
    assert "- broken: sentencepiece (SystemExit: 3)" in done.stdout
    assert f"- adapt: not ready: see {CORE}" in done.stdout
    assert (
        "plots in reports: not ready: matplotlib is broken (RuntimeError: built for another numpy); run:" in done.stdout
    )
    assert "somebody" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("diffulm:")]
    assert len(errors) == 1
    assert errors[0].startswith("diffulm: error: torch is broken (OSError: libcudart.so")
    assert "Traceback" not in done.stderr


def test_torch_that_is_not_there(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    needs = [Need("torch", "2.6", "")]
    broken = doctor.imports(needs, report["packages"])
    assert broken["torch"] == "ModuleNotFoundError: import of torch halted; None in sys.modules"
    assert "failed" in machine.devices(sys.modules["torch"])
    assert "failed" in machine.kernels(sys.modules["torch"])


def test_the_cheap_sections_need_no_import():
    code = """
import sys
from diffulm.recipes.doctor import examine
for title, section in examine("1"):
    assert section, title
    if title == "shipped models": break
print([name for name in ("torch", "transformers", "numpy", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_section_that_fails_says_why(monkeypatch, report):
    def odd():
        raise ZeroDivisionError("no\nmemory")

    monkeypatch.setattr(machine, "hardware", odd)
    monkeypatch.setattr(machine, "environment", lambda: {"TMPDIR": "/home/jane/secrets/x"})
    monkeypatch.setattr(doctor, "imports", lambda *_: report["imports"])
    monkeypatch.setattr(machine, "kernels", lambda _: odd())
    found = dict(doctor.examine(diffulm.__version__))
    assert found["machine"] == found["kernels"] == {"failed": "ZeroDivisionError: no"}
    assert found["features"][CORE]["state"] == "ready"
    assert found["environment"] == {"TMPDIR": ".../x"}


ASKED = [
    "torch>=2.6",
    "Transformers<6,>=5.4",
    "rich",
    'peft>=0.17; extra == "lora"',
    "sentencepiece >=0.2 ; python_version > '3' and extra == 'sentencepiece'",
    'diffulm[lora]; extra == "all"',
]


def test_what_the_metadata_asks_for(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _: ASKED)
    assert doctor.needed() == [
        Need("torch", "2.6", ""),
        Need("transformers", "5.4", ""),
        Need("rich", "", ""),
        Need("peft", "0.17", "lora"),
        Need("sentencepiece", "0.2", "sentencepiece"),
    ]


def test_without_an_installation_the_project_file_says_it(monkeypatch):
    def nowhere(_):
        raise metadata.PackageNotFoundError("diffulm")

    monkeypatch.setattr(metadata, "requires", nowhere)
    found = {need.package: need for need in doctor.needed()}
    assert all(need.at_least for need in found.values())
    assert {found[name].extra for name in ("torch", "transformers", "pyyaml")} == {""}
    assert (found["matplotlib"].extra, found["peft"].extra, found["pytest"].extra) == ("plot", "lora", "dev")
    assert "diffulm" not in found


@pytest.mark.parametrize(
    ("here", "at_least", "state"),
    [
        ("2.6", "2.6", "ok"),
        ("2.6.0", "2.6", "ok"),
        ("2.6", "2.6.0", "ok"),
        ("2.13.0+cpu", "2.6", "ok"),  # thirteen, not one and three
        ("2.5.9", "2.6", "too old"),
        ("5.4.0rc1", "5.4", "ok"),
        ("1", "", "ok"),
        ("unknown", "9", "ok"),  # metadata without a version says nothing against it
        (None, "2.6", "missing"),
    ],
)
def test_versions_are_compared_as_numbers(here, at_least, state, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda _: here)
    assert doctor.packages([Need("x", at_least, "")])["x"]["state"] == state


def fake_report(**changes):
    ok = {"version": "1", "at_least": None, "extra": None, "state": "ok"}
    names = ("torch", "transformers", "matplotlib", "sentencepiece", "bitsandbytes", "pytest")
    found = {
        "packages": {name: dict(ok) for name in names},
        "imports": {},
        "shipped models": {"pocket": "whole"},
        "devices": {"accelerators": [], "torch_built_for": machine.PROCESSORS, "nvidia_driver": None},
    }
    return found | changes


NEEDS = [
    Need("torch", "2.6", ""),
    Need("transformers", "5.4", ""),
    Need("pytest", "9", "dev"),
    Need("matplotlib", "3", "plot"),
]


def test_what_is_missing_for_a_feature_and_what_gets_it():
    found = fake_report(imports={"transformers": "E: x"})
    found["packages"]["torch"] |= {"state": "too old", "version": "2.0"}
    found["packages"]["matplotlib"] |= {"state": "missing", "version": None}
    told = doctor.features(NEEDS, found)
    assert told[CORE]["missing"] == "torch is too old (2.0), transformers is broken (E: x)"
    assert told[CORE]["get"].endswith('python -m pip install "torch>=2.6" "transformers>=5.4"')
    assert told["plots in reports"].items() >= {"missing": "matplotlib is missing", "extra": "plot"}.items()
    assert told["tests and checks"]["state"] == "ready"
    assert told["adapt"]["missing"] == told["demo"]["missing"] == f"see {CORE}"


def test_a_damaged_model_stops_the_demo_alone():
    told = doctor.features(NEEDS, fake_report(**{"shipped models": {"pocket": "was altered"}}))
    assert told["demo"]["missing"] == "pocket was altered"
    assert told["adapt"]["state"] == told[CORE]["state"] == "ready"


@pytest.mark.parametrize(
    ("devices", "one", "two"),
    [
        ([], "0 of 1 CUDA or ROCm devices found", "0 of 2 CUDA or ROCm devices found"),
        ([{"device": "mps"}], "0 of 1 CUDA or ROCm devices found", "0 of 2 CUDA or ROCm devices found"),
        ([{"device": "cuda:0"}], None, "1 of 2 CUDA or ROCm devices found"),
        ([{"device": "rocm:0"}, {"device": "rocm:1"}], None, None),
    ],
)
def test_devices(devices, one, two):
    told = doctor.features(NEEDS, fake_report(devices={"accelerators": devices}))
    assert (told["a GPU"]["missing"], told["several GPUs"]["missing"]) == (one, two)


def test_a_driver_without_a_torch_for_it():
    found = fake_report()
    found["devices"]["nvidia_driver"] = "570.1"
    assert "install a build for CUDA" in doctor.features(NEEDS, found)["a GPU"]["missing"]


def fake_torch(hip=None):
    """As much of a torch with two cards as the doctor asks for."""
    seen = SimpleNamespace(name="Card", total_memory=2**30, major=7, minor=5, gcnArchName="gfx90a")
    return SimpleNamespace(
        cuda=SimpleNamespace(
            device_count=lambda: 2, get_device_properties=lambda _: seen, is_bf16_supported=lambda: True
        ),
        version=SimpleNamespace(hip=hip, cuda=None if hip else "12.6"),
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2")),
        get_num_threads=lambda: 3,
    )


def test_cards(monkeypatch):
    monkeypatch.setattr(machine, "first_output", lambda *_: "570.1")
    found = machine.devices(fake_torch())
    assert (found["torch_built_for"], found["nvidia_driver"], found["threads"]) == ("CUDA 12.6", "570.1", 3)
    card = {"device": "cuda:1", "name": "Card", "memory_bytes": 2**30, "capability": "7.5", "bf16": False}
    assert found["accelerators"][1] == card
    found = machine.devices(fake_torch(hip="6.2"))
    assert found["torch_built_for"] == "ROCm 6.2"
    assert found["accelerators"][0] == card | {"device": "rocm:0", "capability": "gfx90a", "bf16": True}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("{home}/models", "~/models"),
        ("{home}", "~"),
        ("{home}2/x", ".../x"),  # another's home
        ("open('/data/jane/lib/x.so') failed", "open('.../x.so') failed"),
        ("a:/b/c:/d", "a:/b/c:/d"),  # a list of folders is never shown; an address stays whole
        ("no module named a/b", "no module named a/b"),
        ("g++ 12 works, 3/4", "g++ 12 works, 3/4"),
        (7, 7),
        (["{home}/x", None], ["~/x", None]),
    ],
)
def test_paths_are_shortened(said, kept):
    fill = [item and item.format(home=Path.home()) for item in said] if isinstance(said, list) else said
    assert doctor.private(fill.format(home=Path.home()) if isinstance(said, str) else fill) == kept


NAMES = st.from_regex(r"[a-z]{4,8}[0-9]{3}", fullmatch=True)


@given(st.lists(NAMES, min_size=2, max_size=5, unique=True), NAMES)
def test_of_a_path_only_the_end_is_left(parts, word):
    said = doctor.private(f"{word} '/{'/'.join(parts)}' {word}")
    assert said == f"{word} '.../{parts[-1]}' {word}"


def test_the_user_has_no_name(monkeypatch):
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "janedoe")
    assert doctor.private("/scratch/janedoe janedoe's, janedoes") == ".../USER USER's, janedoes"

    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr(doctor.getpass, "getuser", nobody)
    assert doctor.private("janedoe") == "janedoe"


def test_secrets_are_set_or_not(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    found = machine.environment()
    assert found.items() >= {"HF_TOKEN": "set", "OMP_NUM_THREADS": "3", "HTTPS_PROXY": None}.items()
    assert "hf_secret" not in json.dumps(found)


@pytest.mark.parametrize("damage", ["altered", "missing", "no tokenizer", "no config", "gone"])
def test_a_shipped_model_that_is_not_whole(damage, tmp_path, monkeypatch):
    for name in ("config.json", "sha256.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}", "utf-8")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    files.write_checksums(tmp_path)

    def locate(name):
        if damage == "gone" and name == "pocket":
            raise diffulm.BadInput("pocket: is not part of this installation")
        return tmp_path

    monkeypatch.setattr(files, "locate", locate)
    if damage == "gone":
        assert doctor.shipped_models() == {"pocket": "pocket: is not part of this installation", "pocket-ar": "whole"}
        return
    assert set(doctor.shipped_models().values()) == {"whole"}
    if damage == "altered":
        weights.write_bytes(b"weightz")
    else:
        gone = {"missing": weights.name, "no tokenizer": "tokenizer.json", "no config": "config.json"}[damage]
        (tmp_path / gone).unlink()
    said = doctor.shipped_models()["pocket"]
    words = {"altered": "sha256", "missing": weights.name, "no tokenizer": "tokenizer.json", "no config": "config.json"}
    assert words[damage] in said


def test_the_compiler_is_tried(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    assert machine.compiler() == "false fails ()"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert machine.compiler() == "no-such-compiler does not run (FileNotFoundError)"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert machine.compiler() == "none found"


@pytest.fixture
def server():
    """A hub that answers 200 to HEAD, and the headers it was sent."""
    sent = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            sent.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{http.server_port}", sent=sent)
        http.shutdown()


def test_the_hub_is_asked_without_the_token(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    assert machine.hub() == {"hub": "answers (200)"}
    assert len(server.sent) == 1
    assert "hf_secret" not in str(server.sent)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert machine.hub()["hub"].startswith("does not answer (")


def test_offline_means_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert machine.hub() == {"hub": "not asked, HF_HUB_OFFLINE is set"}
