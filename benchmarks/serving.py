"""`diffulm serve` under load: throughput, two hundred clients, memory over ten thousand requests, short requests beside long.

    python benchmarks/serving.py --json                               # all parts, a quarter of an hour on two cores
    python benchmarks/serving.py --parts load,memory --seconds 120 --requests 10000 --json
    python benchmarks/serving.py --url http://127.0.0.1:8000 --workers 2 --threads 1 --pid 4711      # a server that runs

The server is started here, with its own defaults but for --workers and --threads, unless --url names one; --pid is the
front's, without it there is no memory and no processor time to tell. Clients are threads of this process and share the
machine with the server: `cores_front`, `cores_workers` and `cores_clients` say how much of it each took.

throughput: the same completions (prompts of Python source, 16 to 64 tokens, temperature 1) by 1, 2, 4, ... clients, in an
order that turns round, so that texts per second can be divided pair by pair. `limit` is what the forwards alone allow, if
workers do not slow each other down: rows per second with 16 rows at a time over those with one, measured in one process on
the same canvases while the server is idle, times the workers; `library_texts_per_second` is `lm.generate` in a loop,
without a server.
load: every reply is compared with what the same request says alone. memory: resident memory of all processes.
fairness: a short completion by itself, beside one long infill, and beside 32 of them.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clients import Crowd, Request, alone, asked, completions, differing, mixed, repeated
from pairs import alternated, conditions, median

CLIENTS = (1, 2, 4, 8, 16, 32)
ROWS = 16
"""Of a round, and the clients whose throughput is compared with that of one."""
STARTS = 120.0
"""Seconds that a server may take until its model is ready."""
STATS = 1.5
"""Seconds after which /metrics has what the worker counted: it tells the front once a second."""
MARKS = 10
"""Readings of memory."""
LEAK = 1024.0
"""Bytes a request: a reply that is kept takes more than this. The worker's memory comes and goes by 3 MB; over 10,000 requests
that is an error of 300 bytes a request."""
IN_FLIGHT = (0, 1, 32)
"""Long requests beside the short ones."""


@dataclass
class Server:
    url: str
    pid: int | None
    """Of the front; the workers are its children."""
    workers: int
    threads: int
    model: str

    @property
    def processes(self) -> dict[str, int]:
        """Of the server: name -> pid."""
        if self.pid is None or not Path("/proc/self/stat").exists():
            return {}
        children = [int(one) for task in Path(f"/proc/{self.pid}/task").iterdir() for one in _words(task / "children")]
        return {"front": self.pid} | {f"worker {number}": child for number, child in enumerate(sorted(children), 1)}

    def counted(self) -> dict[str, float]:
        """Totals from /metrics, once they stand still: forwards, rows."""
        time.sleep(STATS)
        with urllib.request.urlopen(f"{self.url}/metrics") as reply:
            text = reply.read().decode()
        found = {name: re.search(rf"^diffulm_{name}_total (\S+)$", text, re.M) for name in ("forwards", "rows")}
        return {name: float(one[1]) for name, one in found.items() if one}

    def spent(self) -> dict[str, float]:
        """Seconds of a processor so far: of the front, of all workers and of the clients."""
        ticks, found = os.sysconf("SC_CLK_TCK"), Counter(clients=time.process_time())
        for name, pid in self.processes.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found["front" if name == "front" else "workers"] += (int(fields[11]) + int(fields[12])) / ticks
        return dict(found)

    def resident(self) -> dict[str, int]:
        """Bytes of memory that each process has."""
        page = os.sysconf("SC_PAGE_SIZE")
        return {name: int(_words(Path(f"/proc/{pid}/statm"))[1]) * page for name, pid in self.processes.items()}


def _words(file: Path) -> list[str]:
    return file.read_text().split()


@contextlib.contextmanager
def served(model: str, **options: int | None) -> Iterator[Server]:
    """A server of its own on a port that the system picks, until the end."""
    command = [sys.executable, "-m", "diffulm", "serve", model, "--port", "0"]
    command += [f"--{name}={value}" for name, value in options.items() if value]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            end = time.monotonic() + STARTS
            while process.poll() is None and time.monotonic() < end:
                said = os.pread(log.fileno(), 2**16, 0).decode()
                if complete := re.search(r"workers: (\d+), threads of each: (\d+)", said):
                    url = re.findall(r"listening on (\S+)", said)[0]
                    yield Server(url, process.pid, int(complete[1]), int(complete[2]), model)
                    return
                time.sleep(0.1)
            raise SystemExit(f"the server is not there: {os.pread(log.fileno(), 2**16, 0).decode()}")
        finally:
            process.terminate()
            process.wait()


def limit(server: Server, requests: list[Request]) -> dict[str, Any]:
    """Rows per second of the forwards alone, so many rows at a time in each worker, on these requests' canvases half
    revealed."""
    import torch

    import diffulm
    from diffulm.canvas import Hole
    from diffulm.denoiser.tile import TILE, Wide, tiled

    torch.set_num_threads(server.threads)
    lm, draw = diffulm.load(server.model), torch.Generator().manual_seed(0)
    made = [lm.canvas([one.body["prompt"], Hole(one.body["max_tokens"])]) for one in requests]
    asked = [~one.fixed & (torch.rand(len(one.ids), generator=draw) < 0.5) for one in made]
    rows = [(one.ids, where, torch.ones_like(where)) for one, where in zip(made, asked, strict=True)]
    full = next(lm.denoiser.model.parameters()).element_size() == 4
    denoise = tiled(lm.denoiser, None if full else TILE, Wide())
    pad = torch.nn.utils.rnn.pad_sequence

    def run(size: int) -> Callable[[], None]:
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        parts = [[pad(kind, batch_first=True) for kind in zip(*part, strict=True)] for part in parts]

        def forwards() -> None:
            for part in parts:
                denoise(*part)

        return forwards

    seconds, _ = alternated({str(size): run(size) for size in (1, 2, 4, 8, ROWS)}, 5)
    rates = {size: len(rows) / statistics.median(took) for size, took in seconds.items()}
    ratios = [server.workers * a / b for a, b in zip(seconds["1"], seconds[str(ROWS)], strict=True)]
    began = time.perf_counter()
    for one in requests[:ROWS]:
        lm.generate(one.body["prompt"], length=one.body["max_tokens"], seed=one.body["seed"], temperature=1.0)
    alone = ROWS / (time.perf_counter() - began)
    return median(ratios) | {
        "rows_per_second_of_a_worker": rates,
        "library_texts_per_second": alone,
        "workers": server.workers,
        "threads_of_each": server.threads,
    }


def elsewhere(function: Callable[..., Any], *given: Any) -> Any:
    """The function's result, from a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def throughput(server: Server, pairs: int, texts: int, clients: tuple[int, ...]) -> dict[str, Any]:
    requests = completions(texts, server.model)
    bound = elsewhere(limit, server, requests[:64])
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in clients}
    asked(server.url, requests, ROWS)  # shapes that have not been seen cost more

    def side(count: int) -> Callable[[], None]:
        def run() -> None:
            before, spent = server.counted(), server.spent()
            crowd = asked(server.url, requests, count)
            cores = {name: (used - spent[name]) / crowd.seconds for name, used in server.spent().items()}
            assert len(crowd.good) == texts, "a reply is lost"
            now = {name: total - before[name] for name, total in server.counted().items()}
            runs[count].append({
                "seconds": crowd.seconds, "texts_per_second": texts / crowd.seconds,
                "tokens_per_second": sum(one.tokens for one in crowd.good) / crowd.seconds,
                "rows_per_second": now["rows"] / crowd.seconds, "rows_per_round": now["rows"] / now["forwards"],
                "p50": percentile([one.end for one in crowd.good], 50),
            } | {f"cores_{name}": used for name, used in cores.items()})  # fmt: skip

        return run

    alternated({str(count): side(count) for count in clients}, pairs, warm=False)
    middle = {
        count: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for count, found in runs.items()
    }
    found: dict[str, Any] = {"texts": texts, "limit": bound, "clients": middle}
    if {1, ROWS} <= set(clients):
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs[1], runs[ROWS], strict=True)]
        found |= {"ratio": median(ratios), "ratio_to_limit": statistics.median(ratios) / bound["ratio"]}
        of_forwards = server.workers * bound["rows_per_second_of_a_worker"][str(ROWS)]
        found["rows_per_second_to_that_of_forwards_alone"] = middle[ROWS]["rows_per_second"] / of_forwards
    return found


def load(server: Server, clients: int, seconds: float, distinct: int) -> dict[str, Any]:
    requests = mixed(distinct, server.model)
    wanted = alone(server.url, requests)
    crowd = asked(server.url, repeated(requests), clients, seconds)
    wrong, busy = differing(crowd, requests, wanted), [one for one in crowd.replies if one.status == 429]
    lost = [one for one in crowd.replies if one.status not in (200, 429)]
    first = [one.first for one in crowd.good if one.first is not None]
    return {
        "clients": clients, "seconds": crowd.seconds, "distinct_requests": distinct, "requests": len(crowd.replies),
        "kinds": dict(Counter(one.request.kind for one in crowd.replies)), "lost": len(lost), "mixed_up": len(wrong),
        "too_many_requests": len(busy), "replies_per_second": len(crowd.good) / crowd.seconds,
        "tokens_per_second": sum(one.tokens for one in crowd.good) / crowd.seconds,
        "first_text": percentiles(first), "end": percentiles([one.end for one in crowd.good]),
        "examples": [f"{one.request.kind}: {one.status} {one.problem} {one.said}" for one in [*lost, *wrong][:3]],
    }  # fmt: skip


def memory(server: Server, requests: int, clients: int = ROWS) -> dict[str, Any]:
    """Resident memory at ten moments when nothing is asked, and what a request adds after the first, by least squares."""
    short, every = mixed(128, server.model, 2, 8), requests // MARKS
    following, marks, lost, began = repeated(short), list[dict[str, float]](), 0, time.perf_counter()
    for number in range(1, MARKS + 1):
        crowd = asked(server.url, itertools.islice(following, every), clients)
        lost += every - len(crowd.good)
        marks.append({name: n / 2**20 for name, n in server.resident().items()} | {"requests": number * every})
    numbers = [one["requests"] for one in marks[1:]]
    slopes = {
        name: statistics.linear_regression(numbers, [one[name] for one in marks[1:]]).slope * 2**20
        for name in server.processes
    }
    return {
        "requests": MARKS * every, "lost": lost, "seconds": time.perf_counter() - began, "megabytes": marks,
        "bytes_a_request": slopes, "flat": all(slope < LEAK for slope in slopes.values()),
    }  # fmt: skip


def fairness(server: Server, count: int) -> dict[str, Any]:
    """Seconds of short completions, one at a time, beside so many long infills that do not end; rounds: forwards of the engine
    meanwhile, which are those that the text needs where it is in each."""
    short = completions(count, server.model, 8, 8)
    hole = {"parts": ["def main():\n", {"length": 200}], "model": server.model, "temperature": 1.0}
    found = {}
    for beside in IN_FLIGHT:
        ended = threading.Event()

        def long(ended: threading.Event = ended) -> Iterator[Request]:
            seed = 0
            while not ended.is_set():
                yield Request("infill", "/v1/infill", hole | {"seed": (seed := seed + 1)})

        crowds: list[Crowd] = []
        others = threading.Thread(target=lambda: crowds.append(asked(server.url, long(), beside)), daemon=True)  # noqa: B023
        others.start()
        time.sleep(STATS if beside else 0.0)
        before, began = server.counted()["forwards"], time.perf_counter()
        crowd = asked(server.url, short, 1)
        rounds = (server.counted()["forwards"] - before) / (time.perf_counter() - began)
        ended.set()
        others.join()
        times = [one.end for one in crowd.good]
        found[f"beside_{beside}"] = percentiles(times) | {
            "requests": len(crowd.replies), "lost": len(crowd.replies) - len(crowd.good),
            "rounds": rounds * statistics.mean(times) if beside else statistics.mean(one.tokens for one in crowd.good),
            "long": percentiles([one.end for one in crowds[0].good]),
        }  # fmt: skip
    return found


def percentile(values: list[float], wanted: float) -> float:
    """By nearest rank; NaN of nothing."""
    return sorted(values)[max(0, math.ceil(len(values) * wanted / 100) - 1)] if values else math.nan


def percentiles(values: list[float]) -> dict[str, float]:
    """Seconds."""
    return {f"p{wanted}": round(percentile(values, wanted), 4) for wanted in (50, 90, 99, 100)} if values else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="throughput,load,memory,fairness")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--url")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--workers", type=int, help="the server's own choice, if not given")
    parser.add_argument("--threads", type=int, help="of a forward; the same")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=128, help="of one run of the throughput")
    parser.add_argument("--clients", type=int, default=200, help="of the load")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the load")
    parser.add_argument("--distinct", type=int, default=96, help="requests of the load, each asked again and again")
    parser.add_argument("--requests", type=int, default=10_000, help="over which memory is watched")
    parser.add_argument("--short", type=int, default=100, help="short requests beside the long ones")
    parser.add_argument("--side", type=int, action="append", help=f"instead of {CLIENTS}: clients of the throughput")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = conditions(given.threads or 0) | {
        "cores": os.cpu_count(), "python": platform.python_version(), "clients_share_the_machine": not given.url
    }  # fmt: skip
    parts: dict[str, Callable[[Server], dict[str, Any]]] = {
        "throughput": lambda server: throughput(server, given.pairs, given.texts, tuple(given.side or CLIENTS)),
        "load": lambda server: load(server, given.clients, given.seconds, given.distinct),
        "memory": lambda server: memory(server, given.requests),
        "fairness": lambda server: fairness(server, given.short),
    }
    own = {"workers": given.workers, "threads": given.threads}
    if given.url and not (given.workers and given.threads):
        parser.error("--url: give --workers and --threads of that server, too; it says them when it starts")
    there = Server(given.url, given.pid, given.workers, given.threads, given.model) if given.url else None
    with contextlib.nullcontext(there) if there else served(given.model, **own) as server:
        report |= {"workers": server.workers, "threads": server.threads}
        for name in given.parts.split(","):
            report[name] = parts[name](server)
    print(json.dumps(report, indent=2) if given.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
