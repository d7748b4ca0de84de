"""Forms: how many of 200 prompts give JSON of the kinds that were asked for, and what a form costs.

    python benchmarks/forms.py [MODEL] [--limit 200] [--temperature 1] [--steps 8] --json

The model answers the questions of `diffulm.data.simple` that were held out, in its chat template, in a form with a hole of
every kind. `parses`: by Python's json; `kinds`: every value is of its field's kind, checked by pydantic.
"""

import argparse
import json
import time
from typing import Any, Literal

import torch
from pairs import conditions
from pydantic import TypeAdapter, ValidationError

import diffulm
from diffulm.data import simple

FORM: dict[str, Any] = {
    "answer": str, "words": list[str], "sure": bool, "kind": Literal["word", "number", "list"], "length": int, "share": float,
}  # fmt: skip


def kinds(value: dict[str, Any]) -> bool:
    """Whether every field is there and of its kind."""
    try:
        for name, kind in FORM.items():
            TypeAdapter(kind).validate_json(json.dumps(value[name]), strict=True)
    except (ValidationError, KeyError):
        return False
    return list(value) == list(FORM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = diffulm.load(asked.model)
    prompts = [row["messages"][:-1] for row in simple.rows("test", asked.limit)]
    began, spent = time.perf_counter(), time.process_time()
    made = lm.fill(FORM, prompt=prompts, temperature=asked.temperature, steps=asked.steps)
    found = {
        "model": asked.model, "temperature": asked.temperature, "steps": asked.steps, "forms": len(made),
        "parses": sum(json.loads(one.text) == one.value for one in made), "kinds": sum(kinds(one.value) for one in made),
        "forwards": sum(one.forwards for one in made) / len(made), "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - spent, **conditions(1),
    }  # fmt: skip
    print(json.dumps(found, indent=2) if asked.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
