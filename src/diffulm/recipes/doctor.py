"""`diffulm doctor`: what is here, what is missing, and what for. Ready to be pasted into a bug report.

`examine` yields one section after the other, the cheap ones first, so that what is known stands on the screen should an
import take the interpreter down. Nothing in here may fail: a section that cannot be found out says why. No home folder, user
name or absolute path is in what comes out. torch is imported once, by `imports`, and everything works without it.
"""

import getpass
import importlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from diffulm.recipes import machine
from diffulm.recipes.machine import Section, version

# Not asked for by the package's own metadata, but a bug may hang on them.
OTHERS = (
    *("numpy", "tokenizers", "huggingface-hub", "bitsandbytes", "flash-attn", "liger-kernel", "triton"),
    *("protobuf", "psutil", "lm-eval", "fastapi"),
)
MODULES = {"pyyaml": "yaml"}  # where it is not the package's name
# Imported, to see if they can be, beside the packages that diffulm cannot do without.
CORE = "inspect, generate, infill, score"
IMPORTED = ("matplotlib", "sentencepiece", "bitsandbytes", "flash-attn")


class Need(NamedTuple):
    """A package that diffulm asks for: the lowest version, and the extra that brings it ("" for one it always needs)."""

    package: str
    at_least: str
    extra: str

    @property
    def spec(self) -> str:
        return f'"{self.package}>={self.at_least}"' if self.at_least else self.package


def examine(release: str, network: bool = False) -> Iterator[tuple[str, Section]]:
    """(title, plain dict) of one section after the other. release: of diffulm; network: also ask if the hub answers."""
    needs = needed()
    report: dict[str, Section] = {}
    sections: dict[str, Callable[[], Section]] = {
        "versions": lambda: versions(release),
        "packages": lambda: packages(needs),
        "machine": machine.hardware,
        "environment": machine.environment,
        "shipped models": shipped_models,
        "imports": lambda: imports(needs, report["packages"]),
        "devices": lambda: machine.devices(sys.modules.get("torch")),
        "kernels": lambda: machine.kernels(sys.modules.get("torch")),
        **({"network": machine.hub} if network else {}),
        "features": lambda: features(needs, report),
    }
    for title, section in sections.items():
        try:
            found = section()
        except Exception as error:  # whatever a driver, a library or an odd machine may raise
            found = {"failed": reason(error)}
        report[title] = private(found)
        yield title, report[title]


def verdict(report: dict[str, Section]) -> str | None:
    """Why diffulm itself cannot work and what to do about it, in one line; None when it can."""
    bad = report["features"].get(CORE)
    if bad is None or bad["state"] == "ready":
        return None
    return f"{bad['missing']}; run: {bad['get']}"


def reason(error: BaseException) -> str:
    """Kind and first line of what a foreign package raised."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:200].removesuffix(": ")


def private(value: Any) -> Any:
    """`value` with the home folder as ~, of any other absolute path only the last part, and no user name."""
    if isinstance(value, dict):
        return {key: private(item) for key, item in value.items()}
    if isinstance(value, list):
        return [private(item) for item in value]
    if not isinstance(value, str):
        return value
    home, user = os.path.expanduser("~"), _user()
    if len(home) > 1:
        value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
    value = re.sub(r"(?<![\w~.:/])/(?:[^\s/:'\",;()]+/)*([^\s/:'\",;()]+)/?", r".../\1", value)
    return re.sub(rf"\b{re.escape(user)}\b", "USER", value) if len(user) > 2 and user != "root" else value


def _user() -> str:
    try:
        return getpass.getuser()
    except Exception:  # no such user id, no variable that names one: KeyError, OSError or ImportError
        return ""


def needed() -> list[Need]:
    """What the package's metadata asks for; without an installation, what the pyproject.toml above it does."""
    try:
        lines = metadata.requires("diffulm") or []
    except metadata.PackageNotFoundError:
        import tomllib

        file = Path(__file__).parents[3] / "pyproject.toml"
        project = tomllib.loads(file.read_text("utf-8"))["project"] if file.is_file() else {}
        extras = project.get("optional-dependencies", {}).items()
        lines = [*project.get("dependencies", []), *(f'{n}; extra == "{e}"' for e, names in extras for n in names)]
    parsed = [re.match(r"([\w.-]+)[^;>]*(?:>=\s*([\d.]+))?(?:.*extra\s*==\s*['\"]([\w-]+))?", line) for line in lines]
    return [Need(m[1].lower(), m[2] or "", m[3] or "") for m in parsed if m and m[1].lower() != "diffulm"]


def packages(needs: list[Need]) -> Section:
    """package -> version or None, at_least, extra, state: "ok", "missing" or "too old". From metadata, nothing is imported."""
    asked = {need.package: need for need in needs}
    asked |= {name: Need(name, "", "") for name in OTHERS if name not in asked}
    found: Section = {}
    for name, need in asked.items():
        here = version(name)
        state = "missing" if here is None else "too old" if _release(here) < _release(need.at_least) else "ok"
        found[name] = {"version": here, "at_least": need.at_least or None, "extra": need.extra or None, "state": state}
    return found


def _release(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13): the numbers before the first part that is none, zeros at the end left out."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else [10**6]  # "unknown" is not called too old
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts) if version else ()


def versions(release: str) -> Section:
    """diffulm itself (the commit too, where it runs from a clone), Python and the system."""
    try:
        text = metadata.distribution("diffulm").read_text("direct_url.json") or ""
        how = "installed from its source folder" if '"editable": true' in text else "installed"
    except metadata.PackageNotFoundError:
        how = "not installed, run from its source folder"
    source = Path(__file__).parents[3]
    if (source / ".git").exists():
        commit = machine.first_output("git", "-C", str(source), "describe", "--always", "--dirty", "--exclude=*")
        how += f", commit {commit}"
    place = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', machine.read("/etc/os-release"), re.M)
    return {
        "diffulm": f"{release}, {how}",
        "python": f"{platform.python_version()} ({platform.python_implementation()}), {place}",
        "system": (f"{name[1]}, " if name else "") + platform.platform(),
    }


def shipped_models() -> Section:
    """name -> "whole", or what is wrong with it: weights are compared with their sha256."""
    found: Section = {}
    try:
        from diffulm.checkpoint.files import SHIPPED, check_sums, locate, read_config
    except Exception as error:
        return {"failed": reason(error)}
    for name in SHIPPED:
        try:
            folder = Path(locate(name))
            read_config(folder)
            missing = [f for f in ("model.safetensors", "tokenizer.json", "sha256.json") if not (folder / f).is_file()]
            check_sums(folder)
            found[name] = f"has no {missing[0]}; install diffulm again" if missing else "whole"
        except Exception as error:
            found[name] = str(error).splitlines()[0]
    return found


def imports(needs: list[Need], found: Section) -> Section:
    """package -> first line of what its import raised, of those that are installed. This is where torch is imported."""
    from diffulm.denoiser import quiet  # noqa: F401 (what packages say at their import is not for here)

    broken: Section = {}
    for name in [*(need.package for need in needs if not need.extra), *IMPORTED]:
        if found.get(name, {}).get("version") is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(MODULES.get(name, name.replace("-", "_")))
        except (Exception, SystemExit) as error:
            broken[name] = reason(error)
    return broken


def features(needs: list[Need], report: dict[str, Section]) -> Section:
    """feature -> state "ready" or "missing", what is missing in words, the command that gets it, the extra that has it."""
    known = {need.package: need for need in needs}

    def entry(names: Iterable[str], *more: str) -> Section:
        wanted = [known.get(name, Need(name, "", "")) for name in names]
        bad = [need for need in wanted if _state(need.package, report) != "ok"]
        words = [f"{need.package} is {_state(need.package, report)}" for need in bad]
        return {
            "state": "missing" if words or more else "ready",
            "missing": "; ".join([", ".join(words), *more] if words else more) or None,
            "get": f"{_python()} -m pip install {' '.join(need.spec for need in bad)}" if bad else None,
            "extra": ", ".join(sorted({need.extra for need in bad} - {""})) or None,
        }

    core = entry(need.package for need in needs if not need.extra)
    training = [] if core["state"] == "ready" else [f"see {CORE}"]
    if not util.find_spec("fcntl"):
        training.append("this system has no file locks (on Windows: use WSL)")
    damaged = [f"{name} {state}" for name, state in report["shipped models"].items() if state != "whole"]
    return {
        CORE: core,
        "adapt": entry([], *training),
        "demo": entry([], *training, *damaged),
        "plots in reports": entry(["matplotlib"]),
        "SentencePiece tokenizers": entry(["sentencepiece"]),
        "quantised parents": entry(["bitsandbytes"]),
        "a GPU": entry([], *_devices_missing(report["devices"], 1)),
        "several GPUs": entry([], *_devices_missing(report["devices"], 2)),
        "tests and checks": entry(need.package for need in needs if need.extra == "dev"),
    }


def _state(package: str, report: dict[str, Section]) -> str:
    """ "ok", or what stands in a sentence after "is"."""
    if package in report["imports"]:
        return f"broken ({report['imports'][package]})"
    here = report["packages"].get(package, {"state": "missing"})
    return f"too old ({here['version']})" if here["state"] == "too old" else here["state"]


def _python() -> str:
    """How to call the interpreter that runs this: by its path where that is below here, for it may not be on the PATH."""
    path = os.path.relpath(sys.executable or "python")
    return "python" if path.startswith(os.pardir) else path


def _devices_missing(devices: Section, wanted: int) -> list[str]:
    """What keeps diffulm from `wanted` devices, in words; nothing when they are there."""
    usable = [each for each in devices.get("accelerators", []) if each["device"].startswith(("cuda", "rocm"))]
    if len(usable) >= wanted:
        return []
    if devices.get("nvidia_driver") and devices.get("torch_built_for") == machine.PROCESSORS:
        return ["there is an NVIDIA driver, but this torch is built for processors only: install a build for CUDA"]
    return [f"{len(usable)} of {wanted} CUDA or ROCm devices found"]
