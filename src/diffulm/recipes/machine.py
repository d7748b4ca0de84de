"""What the machine is: processor, memory, space, devices, attention kernels, compiler, environment variables.

Functions that return plain dicts; sizes in bytes. Nothing is imported here: those that need torch are handed it, or None.
"""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
import warnings
from importlib import metadata, util
from pathlib import Path
from typing import Any

Section = dict[str, Any]
PROCESSORS = "processors only"

# Shown as they are; of the others only that they are set, for what they hold may be private.
SHOWN = (
    "CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES OMP_NUM_THREADS MKL_NUM_THREADS PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF "
    "PYTORCH_ENABLE_MPS_FALLBACK TOKENIZERS_PARALLELISM HF_HUB_OFFLINE HF_DATASETS_OFFLINE TRANSFORMERS_OFFLINE "
    "HF_HOME HF_HUB_CACHE RANK WORLD_SIZE LOCAL_RANK DIFFULM_DEBUG DIFFULM_SHARED CC CXX TMPDIR TERM LANG LC_ALL NO_COLOR"
).split()
HIDDEN = "HF_TOKEN HF_ENDPOINT HTTP_PROXY HTTPS_PROXY MASTER_ADDR PYTHONPATH LD_LIBRARY_PATH".split()


def hardware() -> Section:
    """Processor, memory in bytes, free space in bytes where runs, models and temporary files go."""
    flags = read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", flags, re.M)
    quota = read("/sys/fs/cgroup/cpu.max").split()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    available = re.search(r"^MemAvailable:\s*(\d+)", read("/proc/meminfo"), re.M)
    limit = read("/sys/fs/cgroup/memory.max").strip()
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": affinity,
        "core_quota": int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdigit() else None,
        "bf16_instructions": sorted(set(re.findall(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags))) or None,
        "memory_bytes": page * os.sysconf("SC_PHYS_PAGES") if page else None,
        "available_bytes": int(available[1]) * 1024 if available else None,
        "memory_limit_bytes": int(limit) if limit.isdigit() else None,
        "free_here_bytes": _free(Path.cwd()),
        "free_model_cache_bytes": _free(_cache()),
        "free_temporary_bytes": _free(Path(tempfile.gettempdir())),
        "writable_here": os.access(Path.cwd(), os.W_OK),
    }


def read(file: str) -> str:
    """A small file; "" where it cannot be read."""
    try:
        return Path(file).read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _cache() -> Path:
    """Where the hub's files go."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home).expanduser()


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.is_dir())).free
    except (OSError, StopIteration):
        return None


def version(package: str) -> str | None:
    """From the metadata: "unknown" where it does not say, None where the package is not installed or damaged."""
    try:
        return metadata.version(package) or "unknown"
    except Exception:
        return None


def environment() -> Section:
    """variable -> its value, "set" where that may be private, None where it is not set."""
    found = {name: os.environ.get(name) for name in SHOWN}
    return {**found, **{name: "set" if os.environ.get(name) else None for name in HIDDEN}}


def devices(torch: Any) -> Section:
    """The processor as torch sees it and a dict for each accelerator; memory in bytes."""
    if torch is None:
        return {"failed": "torch cannot be imported"}
    found: list[Section] = []
    for i in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(i)
        found.append(
            {
                "device": f"{'rocm' if torch.version.hip else 'cuda'}:{i}",
                "name": seen.name,
                "memory_bytes": seen.total_memory,
                "capability": getattr(seen, "gcnArchName", None) if torch.version.hip else f"{seen.major}.{seen.minor}",
                "bf16": torch.cuda.is_bf16_supported() if torch.version.hip else seen.major >= 8,
            }
        )
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.processor(), "note": "diffulm does not use it yet"})
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [
            {"device": f"xpu:{i}", "name": torch.xpu.get_device_name(i), "note": "diffulm does not use it yet"}
            for i in range(torch.xpu.device_count())
        ]
    return {
        "torch_built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else _hip(torch) or PROCESSORS,
        "nvidia_driver": _nvidia(),
        "accelerators": found,
        "threads": torch.get_num_threads(),
        "processor_kernels": torch.backends.cpu.get_cpu_capability(),
    }


def _hip(torch: Any) -> str | None:
    return f"ROCm {torch.version.hip}" if torch.version.hip else None


def _nvidia() -> str | None:
    """Version of the driver, also where torch cannot use it; None without one."""
    return first_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def first_output(*command: str) -> str | None:
    """The first line that a program prints, or its complaint; None where there is no such program."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), None)


def kernels(torch: Any) -> Section:
    """Which attention there is, with a mask of who sees whom and without, tried; and whether code can be compiled."""
    if torch is None:
        return {"failed": "torch cannot be imported"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}
    return {
        f"sdpa_with_mask_on_{device}": [name for name, kind in names.items() if _attends(torch, kind, device, True)],
        f"sdpa_without_mask_on_{device}": [
            name for name, kind in names.items() if _attends(torch, kind, device, False)
        ],
        "flash_attention_package": version("flash-attn"),
        "flex_attention": util.find_spec("torch.nn.attention.flex_attention") is not None,
        "triton": version("triton"),
        "compiler": compiler(),
    }


def _attends(torch: Any, kind: str, device: str, masked: bool) -> bool:
    attention = torch.nn.attention
    query = torch.zeros(1, 2, 16, 64, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool, device=device) if masked else None
    try:
        with warnings.catch_warnings(), attention.sdpa_kernel([getattr(attention.SDPBackend, kind)]):
            warnings.simplefilter("ignore")
            torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    except (RuntimeError, AttributeError):  # "No available kernel"; a backend that this torch does not know
        return False
    return True


def compiler() -> str:
    """What torch.compile would call, tried on a file that needs Python's headers."""
    name = os.environ.get("CXX") or next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if name is None:
        return "none found"
    with tempfile.TemporaryDirectory() as folder:
        include, out = sysconfig.get_paths()["include"], str(Path(folder) / "empty.so")
        command = [*name.split(), "-x", "c++", "-shared", "-fPIC", f"-I{include}", "-o", out, "-"]
        try:
            done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{name} does not run ({type(error).__name__})"
    if done.returncode == 0:
        return f"{name} {first_output(name.split()[0], '-dumpversion')} works"
    said = done.stderr.splitlines() or [""]
    return f"{name} fails ({next((line for line in said if 'error' in line), said[0]).strip()})"


def hub() -> Section:
    """Whether the hub answers; the token is not sent."""
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return {"hub": "not asked, HF_HUB_OFFLINE is set"}
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10) as answer:
            return {"hub": f"answers ({answer.status})"}
    except Exception as error:
        return {"hub": f"does not answer ({type(error).__name__})"}
