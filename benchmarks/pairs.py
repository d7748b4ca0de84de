"""What the benchmarks share: two sides measured in alternation, the median of the paired ratios and its interval."""

import platform
import statistics
import time
from collections.abc import Callable
from math import comb
from typing import Any

import torch
import transformers


def now(device: str = "cpu") -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interval(n: int, wanted: float = 0.95) -> tuple[int, int, float]:
    """Order statistics that enclose the median of n values with at least the wanted probability, and that probability."""
    for low in range(n // 2, -1, -1):
        coverage = 1 - 2 * sum(comb(n, i) for i in range(low + 1)) / 2**n
        if coverage >= wanted or low == 0:
            return low, n - 1 - low, coverage
    raise AssertionError


def median(ratios: list[float]) -> dict[str, Any]:
    """The median with its distribution-free interval."""
    ratios = sorted(ratios)
    low, high, coverage = interval(len(ratios))
    return {
        "ratio": statistics.median(ratios),
        "interval": [ratios[low], ratios[high]],
        "coverage": coverage,
        "pairs": len(ratios),
    }


def alternated(
    sides: dict[str, Callable[[], Any]], pairs: int, device: str = "cpu", warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(seconds of each side, what it gave last); run one after another `pairs` times, in an order that turns round; warm:
    each once before."""
    for run in sides.values() if warm else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for number in range(pairs):
        for name, run in list(sides.items())[:: 1 if number % 2 else -1]:
            begun = now(device)
            results[name] = run()
            seconds[name].append(now(device) - begun)
    return seconds, results


def conditions(threads: int) -> dict[str, Any]:
    """When and on what."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
