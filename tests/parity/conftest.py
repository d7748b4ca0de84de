"""Parity with the code published with the paper (arXiv 2410.17891): its numbers on tiny models, case by case.

A test with an argument named like a group below runs once for every case of that group and every adapted checkpoint.
Sizes, ids and the cases themselves come from the files. Without the files there is one skip a test; with them none.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("DIFFULM_SHARED", Path(__file__).parents[2].parent / "shared")) / "fixtures"

GROUPS = {
    "family": "",
    "logits": "/logits/[^/]+",
    "annealed": "/logits/[^/]+/anneal[^/]+",
    "train": "/train/[^/]+",
    "trace": "/sample/[^/]+",
    "exact": "/derived/exact_[^/]+",
    "topp": "/topp/p[^/]+",
    "choice": "/choice/[^/]+",
}
"""Argument of a test -> the keys of its cases, behind the name of the family."""


@cache
def tensors():
    return {key: t for name in ("fixtures", "derived") for key, t in load_file(FOLDER / f"{name}.safetensors").items()}


@cache
def families():
    return json.loads((FOLDER / "fixtures.json").read_text("utf-8"))["families"]


@cache
def opened(checkpoint: str):
    """The released checkpoint; its mask id is given only where the files cannot tell it (an ordinary token)."""
    import diffulm

    facts = families()[checkpoint.split("_")[0]]
    own_row = facts["vocab_tensor"] > facts["config_vocab_size"]
    return diffulm.load(FOLDER / checkpoint, None if own_row else facts["mask_id"]).denoiser


@cache
def adopted(family: str):
    """The AR parent, adopted; it gets a new row where the adapted model has one."""
    import diffulm

    facts = families()[family]
    new_row = facts["mask_id"] >= facts["vocab_ar"]
    return diffulm.adopt(FOLDER / f"{family}_ar", mask_token="new" if new_row else facts["mask_id"]).denoiser


@dataclass(frozen=True)
class Case:
    """path: gpt2/train/sft_full, or gpt2 for the family. checkpoint: folder of the adapted model to run it on."""

    path: str
    checkpoint: str

    def __getitem__(self, name):
        """The tensor `name` of this case, else of what the case lies in (an annealed matrix has no canvas of its own)."""
        path = self.path
        while f"{path}/{name}" not in tensors():
            path = path.rpartition("/")[0]
            if not path:
                raise KeyError(f"{self.path}/{name} is not in {FOLDER}")
        return tensors()[f"{path}/{name}"]

    @property
    def name(self):
        return self.path.rpartition("/")[2]

    @property
    def family(self):
        """What fixtures.json says of the family."""
        return families()[self.path.split("/")[0]]

    @property
    def facts(self):
        """What fixtures.json says of the case."""
        _, group, name = self.path.split("/")
        cases = self.family[group]
        return cases[int(name)] if isinstance(cases, list) else cases[name]

    @property
    def denoiser(self):
        return opened(self.checkpoint)

    @property
    def parent(self):
        return adopted(self.path.split("/")[0])

    def beside(self, path):
        """Another case of the same family."""
        return Case(f"{self.path.split('/')[0]}/{path}", self.checkpoint)

    def cases(self, group):
        """All cases of a group of this family, 2 before 10."""
        family = self.path.split("/")[0]
        found = {match[0] for key in tensors() if (match := re.match(f"{family}{GROUPS[group]}(?=/)", key))}
        return [Case(path, self.checkpoint) for path in sorted(found, key=lambda path: (len(path), path))]


def cases(group):
    """Every case of the group as a parameter; an error if the files have none, since then nothing would be tested."""
    if not (FOLDER / "fixtures.json").is_file():
        reason = f"no fixtures at {FOLDER} (DIFFULM_SHARED names the folder that holds `fixtures`)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    found = []
    for family in families():
        checkpoints = sorted(folder.name for folder in FOLDER.glob(f"{family}_*released"))
        mine = [case for checkpoint in checkpoints for case in Case(family, checkpoint).cases(group)]
        if not mine:
            raise ValueError(f"{FOLDER} has no case of {group!r} for {family}")
        found += mine
    return [pytest.param(c, id="-".join([c.checkpoint, *c.path.split("/")[2:]])) for c in found]


def pytest_generate_tests(metafunc):
    for group in GROUPS:
        if group in metafunc.fixturenames:
            metafunc.parametrize(group, cases(group))
