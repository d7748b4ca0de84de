"""Bad input for the command line: a place to lay it out, and the check that a command ends in one line of error."""

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diffulm.checkpoint.files import write_checksums
from diffulm.checkpoint.save import save
from diffulm.cli import main
from diffulm.denoiser.adopt import adopt as adopt_model
from diffulm.denoiser.quiet import quietly
from models import T5, build, tokenizer

SECONDS = 20.0  # what any bad input may take; of the processor, as the machine may have other work
TEXT = " ".join(f"w{i % 60 + 3}" for i in range(400))
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def make_kinds(root: Path) -> Path:
    """Models as folders in `root`: ours (adopted), plain (AR), shards (the same in several files), bert, t5, vit."""
    with quietly():
        save(*adopt_model(build("llama"), tokenizer()), root / "ours")
        for name in ("plain", "shards"):
            build("llama").save_pretrained(root / name, max_shard_size="20KB" if name == "shards" else "1GB")
            tokenizer().save_pretrained(root / name)
        build("bert").save_pretrained(root / "bert")
        transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).save_pretrained(root / "t5")
        transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).save_pretrained(root / "vit")
    return root


class Place:
    """Where a case lays out its bad input."""

    def __init__(self, here: Path, kinds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.kinds, self.monkeypatch = here, kinds, monkeypatch

    def file(self, name: str, content: bytes | str = b"") -> str:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def model(self, kind: str = "ours", without: str = "", **files: Any) -> Path:
        """A copy of one of `kinds` as `model`. files: name, with __ for a dot, and its content; a dict is laid over the
        JSON there, a function is given the bytes and returns others."""
        folder = self.here / "model"
        shutil.copytree(self.kinds / kind, folder)
        for path in folder.glob(without) if without else ():
            path.unlink()
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            if isinstance(content, dict):
                content = json.dumps(json.loads(path.read_text()) | content).encode()
            path.write_bytes(content(path.read_bytes()) if callable(content) else content)
        return folder

    def tensors(self, kind: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
        """The same with other tensors, and checksums that agree with them."""
        file = self.model(kind) / "model.safetensors"
        tensors = load_file(file)
        save_file(change(tensors) or tensors, file, metadata={"format": "pt"})
        if kind == "ours":
            write_checksums(file.parent)
        return file.parent

    def generate(self, model: object = "pocket", *flags: str) -> list[str]:
        return ["generate", str(model), "--prompt", "w5", "--length", "2", *flags]

    def infill(self, text: str) -> list[str]:
        return ["infill", "pocket", "--text", text]

    def adapt(self, *settings: str, model: object = None, data: object = None, preset: str = "tiny") -> list[str]:
        given = {"model": model or self.model("plain"), "data": data or self.file("data.txt", TEXT), "out": "out"}
        small = "length=16 global_batch=2 tokens=64 eval_blocks=1".split()
        return ["adapt", preset, *(f"{key}={value}" for key, value in given.items()), *small, *settings]

    def data(self, name: str, content: bytes | str) -> list[str]:
        return self.adapt(data=self.file(name, content))

    def yaml(self, content: bytes | str) -> list[str]:
        """A run whose settings are in a file."""
        return ["adapt", self.file("mine.yaml", content), "model=pocket-ar", "data=data.txt", "out=out"]

    def stdin(self, content: bytes) -> str:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return "-"


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf


def pickled(at: Place, kind: str) -> Path:
    folder = at.model(kind, without="model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def of_size(at: Place, kind: str, size: int) -> Path:
    tokenizer(size).save_pretrained(folder := at.model(kind))
    return folder


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def record(at: Place, **changes: Any) -> list[str]:
    good = {"mask_token_id": 64, "bos_token_id": 1}
    return at.generate(at.model(config__json={"diffulm": good | changes}))


def folder(at: Place, name: str) -> str:
    (at.here / name).mkdir()
    return str(at.here / name)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of the files."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()  # what making the input said
    began = time.process_time()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert time.process_time() - began < SECONDS
    return end.value.code, *capsys.readouterr()


def one_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends in, after checks that it is one and that there is nothing else."""
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("diffulm: error: ") and err.endswith("\n")
    assert err.count("\n") == 1, err
    # what was given is shown, cut short, and no terminal is told anything
    assert len(err) < 1000 and err[:-1].isprintable()
    assert "Traceback" not in err and "site-packages" not in err
    return err


def refused(case: tuple[Any, ...], kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The command of a case ends in one line with all its words, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    make, *words = case
    with quietly():
        arguments = make(Place(tmp_path, kinds, monkeypatch))
    before = tree(tmp_path)
    line = one_error(arguments, capsys)
    for word in words:
        assert word in line
    assert tree(tmp_path) == before
