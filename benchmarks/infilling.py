"""Holes whose length nobody knows, in held-out text: ways to choose it, against the AR parent and the true length.

    python benchmarks/infilling.py [--stories FOLDER] [--tasks 120] [--json]

`pocket` fills holes in functions of the modules of Python's standard library that it has not seen; --stories is a model
adapted from stories260k, on held-out stories of the folder named by DIFFULM_SHARED. Holes of 1 to 6 tokens, evenly, in texts
of at most 64; each way may choose 1 to 10. `broken words`: half as many holes that begin within a word.
Exact match and edit similarity (difflib's ratio) of the hole's text, its length in tokens against the true one, forwards a
hole, standard errors over holes.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from diffulm import canvas, filling, holes
from diffulm.canvas import Hole
from diffulm.checkpoint.opening import open_parent
from diffulm.constraints import token_texts
from diffulm.data import blocks, stdlib
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.tile import tiled
from diffulm.evaluation import infilling
from diffulm.holes import Gap, Scored, Search
from diffulm.lm import DiffusionLM, load
from diffulm.options import GenerateOptions

HIDDEN, LONGEST, FREE, BEST_OF, DRAWS = 6, 64, Hole(1, 10), 8, 8
Text = tuple[str, str, str]


@dataclass
class Remembered:
    """What `Gap` is to the methods, each length filled and scored once for all of them."""

    gap: Gap
    healed: bool
    known: dict[int, list[Scored]]
    asked: set[int] = field(default_factory=set)

    @property
    def lengths(self) -> range:
        return self.gap.lengths

    @property
    def hole(self) -> Hole:
        return self.gap.hole

    @property
    def index(self) -> int:
        return self.gap.index

    def ways(self, lengths: Iterable[int]) -> list[Scored]:
        lengths = list(lengths)
        self.asked.update(lengths)
        return [way for n in lengths for way in self.known[n] if self.healed or not way.made.spans[1].taken]

    @property
    def forwards(self) -> int:
        """Of all that was asked for: to fill, and to score the hole and the text after it."""
        ways = [way for n in self.asked for way in self.ways([n])]
        spans = [way.made.spans[self.index] for way in ways]
        since, right = min(span.start for span in spans), self.gap.start.made.ids[self.gap.start.made.spans[1].end :]
        return sum(
            size(way) + span.end - since + min(holes.WINDOW, len(right)) for way, span in zip(ways, spans, strict=True)
        )


def size(way: Scored) -> int:
    """Tokens of the hole."""
    return way.made.spans[1].end - way.made.spans[1].start


def text(way: Scored) -> str:
    """What is in the hole."""
    return canvas.fills(way.made, way.made.ids.tolist())[0]


class Table:
    """Rows of figures, one a method; each hole adds a value to each."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.rows: dict[str, list[tuple[float, float, float, float]]] = {}

    def add(self, method: str, fill: str, hidden: str, forwards: int) -> None:
        longer = tokens(self.tokenizer, fill) - tokens(self.tokenizer, hidden)
        values = float(fill == hidden), infilling.edit_similarity(fill, hidden), longer, forwards
        self.rows.setdefault(method, []).append(values)

    def figures(self) -> dict[str, dict[str, float]]:
        found = {}
        for method, values in self.rows.items():
            all_of = torch.tensor(values, dtype=torch.float64)
            named = {
                "exact": all_of[:, 0], "edit": all_of[:, 1], "longer": all_of[:, 2], "length error": all_of[:, 2].abs(),
                "forwards": all_of[:, 3],
            }  # fmt: skip
            found[method] = {"holes": len(values)}
            for name, column in named.items():
                found[method] |= {
                    name: float(column.mean()),
                    name + " +-": float(column.std()) / math.sqrt(len(column)),
                }
        return found


def tokens(tokenizer: Any, words: str) -> int:
    return len(canvas.encode(tokenizer, words, inside=True))


def fill_in(lm: DiffusionLM, texts: list[Text], table: Table, compare: bool = True) -> None:
    """Each hole by every method of ours; compare: also by some that are not offered."""
    denoiser, words = lm.denoiser.seeing_everything(), token_texts(lm.tokenizer)
    eos = lm.tokenizer.eos_token_id

    def fill(made: Any, constraint: Any = None) -> list[filling.Filled]:
        return filling.fill(denoiser, made, GenerateOptions(), [eos], constraint=constraint)

    for number, (before, hidden, after) in enumerate(texts):
        search = Search(tiled(denoiser), fill, lm.mask_token_id, lambda: words, eos, denoiser.context)
        made = canvas.template(lm.tokenizer, lm.record.bos_token_id, lm.mask_token_id, [before, FREE, after])
        gap = Gap(search, Scored(made, 0.0), 1, FREE)
        known: dict[int, list[Scored]] = {n: [] for n in gap.lengths}
        for way in gap.ways(gap.lengths):
            known[size(way)].append(way)
        for healed in (True, False):
            for method in holes.METHODS:
                seen = Remembered(gap, healed, known)
                best = holes.METHODS[method](seen)[0]  # pyright: ignore[reportArgumentType]
                table.add(method if healed else f"{method}, broken words left so", text(best), hidden, seen.forwards)
        if number % 10 == 0:
            print(f"{number} of {len(texts)}", file=sys.stderr, flush=True)
        if not compare:
            continue
        every = [way for ways in known.values() for way in ways]
        for stop in (0.05, 0.2, 0.5):
            prior = holes.geometric(stop)
            best = min(every, key=lambda way, prior=prior: way.nats + prior(size(way)))
            table.add(f"rank, geometric prior {stop}", text(best), hidden, search.forwards)
        true = min(tokens(lm.tokenizer, hidden), FREE.longest)
        table.add("true length", text(known[true][0]), hidden, true)
        best = holes.bound_per_token(search, [ways[0] for ways in known.values()], 1, DRAWS)
        table.add("bound per token", text(best), hidden, sum(n + DRAWS for n in known))


def ask_parent(folder: str | Path, tokenizer: Any, tasks: list[infilling.Task], table: Table) -> None:
    """Each hole by the AR parent, which reads the left side, and ranks what it has drawn by its likelihood of the whole."""
    with quietly():
        parent, _, _ = open_parent(folder, None, None)
    rows = {
        "parent, greedy, true length": (infilling.continue_left(parent, tasks), 1),
        f"parent, best of {BEST_OF}, true length": (infilling.continue_left(parent, tasks, BEST_OF), BEST_OF),
        f"parent, best of {BEST_OF}": (infilling.continue_left_freely(parent, tasks, FREE.longest, BEST_OF), BEST_OF),
    }
    for name, (filled, draws) in rows.items():
        for task, ids in zip(tasks, filled.ids, strict=True):
            before, hidden, after = infilling.around(tokenizer, task)
            whole = tokenizer.decode(list(ids[1:]))
            fill = whole[len(before) : len(whole) - len(after)]
            table.add(name, fill, hidden, draws * (task.stop - task.start))


def measure(lm: DiffusionLM, parent: str | Path, tasks: list[infilling.Task]) -> dict[str, Any]:
    texts = [infilling.around(lm.tokenizer, task) for task in tasks]
    whole, broken = Table(lm.tokenizer), Table(lm.tokenizer)
    fill_in(lm, texts, whole)
    shown("between tokens", whole.figures(), sys.stderr)
    ask_parent(parent, lm.tokenizer, tasks, whole)
    shown("between tokens", whole.figures(), sys.stderr)
    fill_in(lm, infilling.broken_words(texts[::2]), broken, compare=False)
    return {"between tokens": whole.figures(), "broken words": broken.figures()}


def code_tasks(lm: DiffusionLM, count: int) -> list[infilling.Task]:
    sources = (source for _, source in stdlib.modules("heldout"))
    assert lm.record.bos_token_id is not None
    return infilling.shortened(
        infilling.tasks_from_code(lm.tokenizer, lm.record.bos_token_id, sources, HIDDEN, count, LONGEST)
    )


def story_tasks(lm: DiffusionLM, files: str, count: int) -> list[infilling.Task]:
    with tempfile.TemporaryDirectory() as folder:
        rows = blocks.build(
            files, lm.tokenizer, lm.record.bos_token_id, lm.tokenizer.eos_token_id, LONGEST, Path(folder) / "blocks"
        ).with_format("torch")
        chosen = [torch.as_tensor(rows[i * len(rows) // count]["ids"]).long() for i in range(count)]
    return infilling.shortened(infilling.tasks_from_blocks(torch.stack(chosen), HIDDEN))


def shown(name: str, figures: dict[str, dict[str, float]], out: TextIO = sys.stdout) -> None:
    print(f"\n{name}\n{'':38s}  holes   exact  +-     edit   +-     longer  error  +-    forwards", file=out)
    for method, row in figures.items():
        values = [
            row[key] for key in ("exact", "exact +-", "edit", "edit +-", "longer", "length error", "length error +-")
        ]
        numbers = "  ".join(f"{value:+.2f}" if n == 4 else f"{value:.3f}" for n, value in enumerate(values))
        print(f"{method:38s}  {row['holes']:5.0f}  {numbers}  {row['forwards']:6.0f}", file=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", help="a model adapted from stories260k")
    parser.add_argument("--parent", default=os.environ.get("DIFFULM_SHARED", "") + "/data/models/stories260k-hf")
    parser.add_argument(
        "--text", default=os.environ.get("DIFFULM_SHARED", "") + "/data/text/tinystories/valid.jsonl.gz"
    )
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.stories:
        lm, parent = load(asked.stories), asked.parent
        tasks = story_tasks(lm, asked.text, asked.tasks)
    else:
        lm, parent = load("pocket"), "pocket-ar"
        tasks = code_tasks(lm, asked.tasks)
    found = {"model": asked.stories or "pocket", "tables": measure(lm, parent, tasks)}
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        for name, figures in found["tables"].items():
            shown(name, figures)


if __name__ == "__main__":
    main()
