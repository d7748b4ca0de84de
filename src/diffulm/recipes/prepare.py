"""`diffulm prepare`: text to packed, memory-mapped blocks, once, for every run that trains on it.

    diffulm prepare model=gpt2 data='corpus/*.jsonl' length=1024 out=runs/corpus
    diffulm adapt tiny model=gpt2 data=runs/corpus length=1024 out=runs/mine

Needed for much text, for a mixture of sources by weight, and where many processes should train on one copy. Little text
`adapt` packs by itself.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from diffulm.errors import BadInput
from diffulm.options import Count, Options, Seed, checked
from diffulm.recipes.config import Tokens, resolve
from diffulm.recipes.training import Name, Positive, Token

VERB = "prepare"
PLAIN_SECONDS = 15.0  # between two lines of progress where there is no terminal


class Mixed(Options):
    """One source of a mixture."""

    data: Name | list[Name]
    """As `data` itself: files, globs, folders, a hub data set."""
    weight: Positive | None = None
    """Its share of the tokens, in any unit: they are divided by their sum. All sources have one, or none."""
    column: Name = "text"
    """The field or column that holds the text."""


def _mixture(value: Any) -> Any:
    """A name, or a list of names and mappings, as a list of `Mixed`."""
    if not isinstance(value, list):
        value = [value]
    return [entry if isinstance(entry, Mixed) else checked(Mixed, **_entry(entry)) for entry in value]


def _entry(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    if isinstance(value, str):
        return {"data": value}
    raise ValueError("should be names, or a list of lines such as {data: corpus.jsonl, weight: 2}")


class PrepareConfig(Options):
    """Every setting of `prepare`."""

    model: Name
    """Whose tokenizer: a folder, a hub id or a shipped name; its weights are not read."""
    data: Annotated[list[Mixed], BeforeValidator(_mixture), Field(min_length=1)]
    """Text as `adapt` takes it, or a list of {data: ..., weight: ..., column: ...}."""
    out: Name
    """The folder to make."""
    tokens: Tokens | None = None
    """Canvas positions in all; None: as many as there are, of a mixture as many as its weights allow."""
    length: Annotated[int, Field(ge=2, le=2**24)] = 512
    """Positions of a block, BOS included."""
    packing: Literal["stream", "documents"] = "stream"
    """stream: EOS between documents, as in the paper; documents: each has its own BOS and sees only itself."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """A row of data that cannot be read: an error, or left out and counted."""
    mask_token: Token = "auto"
    """As the run will have it: a new one belongs to the tokenizer."""
    seed: Seed = 0
    """Which parts of a source are taken, where not all are."""
    workers: Count | None = None
    """Processes; None: one a core. They change nothing but the time."""

    @model_validator(mode="after")
    def _all_or_none(self) -> "PrepareConfig":
        if len({source.weight is None for source in self.data}) > 1:
            raise BadInput("data: some sources have a weight and some have none; give each one, or none")
        return self


def run(preset: str | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """Resolve the config (no preset: the settings alone) and carry it out."""
    return carry_out(resolve(VERB, PrepareConfig, preset, overrides))


def carry_out(config: PrepareConfig) -> dict[str, Any]:
    """Make the folder, go on with one that was begun, or find it done. Returns what the command says at its end.

    Raises BadInput for anything wrong with the settings, the tokenizer, the data or the folder.
    """
    from diffulm.data.parts import Source
    from diffulm.data.preparing import prepare
    from diffulm.denoiser.quiet import quietly

    with quietly():
        packer = _packer(config)
    mixture = [
        Source(tuple([source.data] if isinstance(source.data, str) else source.data), source.column, source.weight)
        for source in config.data
    ]
    line = ProgressLine()
    try:
        manifest = prepare(
            mixture, packer, Path(os.path.expanduser(config.out)), seed=config.seed, tokens=config.tokens,
            workers=config.workers or _cores(), about={"model": config.model, "mask_token": config.mask_token},
            progress=line.show,
        )  # fmt: skip
    finally:
        line.close()
    return _report(config, manifest)


def _packer(config: PrepareConfig) -> Any:
    """The tokenizer as `adopt` would leave it, with BOS and EOS as `adapt` takes them."""
    from diffulm.checkpoint.files import locate
    from diffulm.checkpoint.opening import decoder_config, open_tokenizer
    from diffulm.data.parts import Packer
    from diffulm.denoiser.adopt import choose
    from diffulm.denoiser.mask_token import NEW_TOKEN

    place = locate(config.model)
    text = decoder_config(place).get_text_config(decoder=True)
    tokenizer = open_tokenizer(place)
    if tokenizer is None:
        raise BadInput(f"{config.model}: has no tokenizer; copy its tokenizer's files into its folder")
    record, mask = choose(tokenizer, text, text.vocab_size, config.mask_token, "keep", config.model)
    if mask.new:
        tokenizer.add_special_tokens({"mask_token": NEW_TOKEN})
    bos = record.bos_token_id
    eos = bos if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    assert eos is not None  # choose refuses a parent with neither
    return Packer(tokenizer, bos, eos, config.length, config.packing, config.bad_rows)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(config: PrepareConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    names = ("blocks", "tokens", "documents", "cut_documents", "left_over_tokens", "skipped_rows", "sha256")
    report = {"out": config.out, "length": config.length, **{name: manifest[name] for name in names}}
    if manifest["skipped_rows"]:
        from diffulm.data.documents import Skips

        print(f"diffulm: {Skips(manifest['skipped_rows'], manifest['skipped_places'])}", file=sys.stderr)
    shares = {", ".join(source["data"]): f"{source['share']:.2%}" for source in manifest["sources"]}
    return report | {"sources": shares, "files": len(manifest["shards"])}


class ProgressLine:
    """A line on stderr: drawn in place on a terminal, now and then a new one elsewhere."""

    def __init__(self) -> None:
        self.begun, self.before, self.shown = time.monotonic(), -1.0, 0.0
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.live = sys.stderr.isatty() and not plain

    def show(self, made: int, share: float) -> None:
        """made: tokens since the command was given; share: how much of all the work is done."""
        now = time.monotonic()
        self.before = share if self.before < 0 else self.before  # what earlier commands have done
        if now - self.shown < (0.5 if self.live else PLAIN_SECONDS):
            return
        self.shown = now
        seconds, done = max(now - self.begun, 1e-9), share - self.before
        left = f", {_clock(seconds * (1 - share) / done)} left" if done > 0 else ""
        text = f"preparing: {share:.0%}, {made / 1e6:.1f}M tokens, {made / seconds:,.0f} tokens/s{left}"
        with suppress(OSError):  # nobody looks
            print(f"\r{text}\x1b[K" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live and self.shown:
            with suppress(OSError):
                print(file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
