"""The job of `diffulm sft`: conversations become rows, an adapted model or a parent is opened, answers are measured."""

import math
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from diffulm import canvas, scoring
from diffulm.chat import Template, template_of
from diffulm.checkpoint import disk
from diffulm.checkpoint.files import read_config
from diffulm.checkpoint.load import folder_of, is_plain, load
from diffulm.data import conversations
from diffulm.data.blocks import fingerprint
from diffulm.data.conversations import REPLY, Shape
from diffulm.data.documents import Skips
from diffulm.denoiser.adapter import attached, merge
from diffulm.denoiser.denoiser import Denoiser
from diffulm.errors import BadInput
from diffulm.evaluation.subject import Subject
from diffulm.lm import DiffusionLM
from diffulm.recipes.measure import precision
from diffulm.recipes.pretraining import adopted, begin_adapter, check_fits, shared
from diffulm.recipes.train import Job, Material, placed
from diffulm.recipes.training import schedule_steps
from diffulm.scoring import Request
from diffulm.training import processes
from diffulm.training.curriculum import Curriculum
from diffulm.training.run_folder import RESUMES, RunFolder

if TYPE_CHECKING:
    from diffulm.recipes.sft import SftConfig

DRAWS, FINAL_DRAWS = 8, 64
COUNTED_ROWS = 512  # of the training rows, for the frequencies of tokens
NOTE = "sft"  # in the record


def opened(config: "SftConfig") -> tuple[Denoiser, Any]:
    """The model to be tuned and its tokenizer, which carries the chat template from now on. BadInput where that cannot be."""
    if from_parent(config):
        denoiser, tokenizer = adopted(config)
    else:
        denoiser, tokenizer = _adapted(config)
    tokenizer.chat_template = template_of(tokenizer, config.template).source
    if config.adapter != "none":
        begin_adapter(denoiser, config, None if from_parent(config) else config.model)
    placed(denoiser, config)
    return denoiser, tokenizer


def from_parent(config: "SftConfig") -> bool:
    """Whether the model is an AR parent, which is adapted while it is tuned."""
    place = folder_of(config.model)
    about = read_config(place)
    if config.scratch and "diffulm" not in about:  # then it needs no weights to tell it by
        return True
    return is_plain(place, about, config.model)


def _adapted(config: "SftConfig") -> tuple[Denoiser, Any]:
    settings = {"scratch": False, "mask_token": "auto", "window": "keep"}
    for key, usual in settings.items():
        if getattr(config, key) != usual:
            raise BadInput(
                f"{key}={getattr(config, key)}: is for AR parents, and {config.model} is adapted; leave it out"
            )
    if config.objective == "autoregressive":
        raise BadInput(f"objective=autoregressive: {config.model} is a diffusion model; give its AR parent")
    if config.keep_adapter and "diffulm" not in read_config(folder_of(config.model)):
        raise BadInput(f"keep_adapter=true: {config.model} is in a released layout; `diffulm import` it first")
    denoiser, tokenizer = load(config.model, quantise=config.quantise)
    if not config.shift and denoiser.record.shift:
        raise BadInput(f"shift=false: {config.model} was adapted with the shift; leave it out")
    check_fits(config, denoiser, tokenizer)
    if attached(denoiser.model):
        if config.keep_adapter:
            raise BadInput(f"keep_adapter=true: {config.model} is an adapter itself; `diffulm merge` it first")
        merge(denoiser.model, denoiser.record)
    return denoiser, tokenizer


def material(config: "SftConfig", denoiser: Denoiser, tokenizer: Any, folder: RunFolder) -> Material:
    template, record = template_of(tokenizer), denoiser.record
    autoregressive = config.objective == "autoregressive"
    shape = shape_of(config, denoiser, autoregressive)
    with disk.writing(folder.path / "data", advice=RESUMES):
        rows, held_out, manifest = processes.first_then_all(
            lambda: _data(config, template, record.bos_token_id, shape, folder)
        )
    folder.data = {name: fingerprint(folder.path / "data" / name) for name in ("train", "eval")}
    steps = steps_of(config, len(rows))
    if not autoregressive:
        about = {"template": config.template, "length": config.length, "padding": config.padding}
        note = {NOTE: {**about, "answer_tokens": manifest["longest_reply"]}}
        denoiser.record = replace(record, notes=record.notes | note)
        denoiser.model.config.diffulm = denoiser.record.to_dict()
    curriculum = Curriculum(
        mask_token_id=record.mask_token_id, stages=((0, record.block_size),), documents=manifest["documents"],
        full_share=record.notes.get("full_share") or 0.0, clean_causal=record.clean_causal,
        padding_weight=config.padding_weight,
        **shared(config, schedule_steps(config, steps)["anneal"] if from_parent(config) else 0),
    )  # fmt: skip
    if manifest["documents"] == 1:  # each row is one example, whole: there is nobody that it must not see
        rows = rows.remove_columns("document")
    told = {
        key: manifest[key] for key in ("conversations", "examples", "dropped", "cut", "skipped") if manifest.get(key)
    }
    gauge = AnswerGauge(denoiser, config, held_out, template, manifest["longest_reply"], told)
    return Material(rows.with_format("torch"), curriculum, cast(Any, gauge), steps)


def shape_of(config: "SftConfig", denoiser: Denoiser, autoregressive: bool) -> Shape:
    """How rows are laid out. An AR model stops reading at the end of a reply, so nothing stands behind that."""
    align = denoiser.record.block_size or 1
    if config.padding == "block" and align == 1:
        raise BadInput(f"padding=block: {config.model} does not fill blocks; take random or full")
    plain = {"padding": "none", "truncation": 0.0} if autoregressive else {}
    keys = ("length", "turns", "too_long", "padding", "padding_tokens", "truncation", "packing", "seed")
    return Shape(align=align, **{key: getattr(config, key) for key in keys} | plain)


def _data(
    config: "SftConfig", template: Template, bos: int | None, shape: Shape, folder: RunFolder
) -> tuple[Any, list[Request], dict[str, Any]]:
    """(training rows, held-out replies, the manifest of the former). What was left out is said on standard error."""
    made = partial(conversations.build, template=template, bos_token_id=bos, fields=(config.prompt, config.response))
    data, skips = folder.path / "data", Skips() if config.bad_rows == "skip" else None
    hold_out, held = config.eval_rows if config.eval_data is None else 0, None
    if config.eval_data is not None:  # the small one first: a broken row in it should not be found after hours
        alone = replace(shape, padding="none", truncation=0.0, packing=False, align=1)
        held, _, _ = made(
            config.eval_data, shape=alone, folder=data / "eval", skips=skips and Skips(), called="eval_data"
        )
    rows, last, manifest = made(config.data, shape=shape, folder=data / "train", skips=skips, hold_out=hold_out)
    counts = conversations.Counts(**{key: manifest[key] for key in vars(conversations.Counts())})
    for said in (str(skips) if skips is not None and skips.count else "", str(counts)):
        if said and processes.index() == 0:
            print(f"diffulm: {said}", file=sys.stderr)
    held = (last if held is None else held).with_format("torch")
    return rows, [_request(held[i], i) for i in range(min(len(held), config.eval_rows))], manifest


def _request(row: dict[str, torch.Tensor], number: int) -> Request:
    places = (row["kind"] == REPLY).nonzero()[:, 0].tolist()
    return Request(tuple(row["ids"][: places[-1] + 1].tolist()), places[0], places[-1] + 1, number)


def steps_of(config: "SftConfig", rows: int) -> int:
    if config.tokens is not None:
        return -(-config.tokens // (config.length * config.global_batch))
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * rows / config.global_batch))


@dataclass(frozen=True)
class AnswerGauge:
    """What a run is measured by: the cost of held-out replies, and what the model itself replies. longest: of a reply."""

    denoiser: Denoiser
    config: "SftConfig"
    held_out: Sequence[Request]
    template: Template
    longest: int
    told: dict[str, int]

    @property
    def held_back(self) -> dict[str, int]:
        return {**self.told, "held_out_examples": len(self.held_out)}

    def before(self, rows: Any) -> dict[str, float]:
        """What the parent pays for the replies as it stands, what knowing how frequent tokens are would cost, `evaluate`."""
        tokens: Counter[int] = Counter()
        for i in range(min(COUNTED_ROWS, len(rows))):
            row = rows[i * len(rows) // min(COUNTED_ROWS, len(rows))]
            tokens.update(row["ids"][row["kind"] == REPLY].tolist())
        total = sum(tokens.values())
        unigram = -sum(n / total * math.log(n / total) for n in tokens.values())
        parent = {"eval_parent": self._nats("autoregressive")[0]} if from_parent(self.config) else {}
        return {**parent, "eval_unigram": unigram, **self.evaluate()}

    def evaluate(self) -> dict[str, float]:
        found = self.answers(self.config.eval_answers)
        if self.config.objective == "autoregressive":
            found["ar"] = self._nats("autoregressive")[0]
        else:
            found["bound"], found["bound_stderr"] = self._nats("bound", DRAWS)
        return {f"eval_{name}": value for name, value in found.items() if math.isfinite(value)}

    def after(self) -> dict[str, Any]:
        """The figures of a finished run, from more draws and all held-out examples."""
        found: dict[str, Any] = {"causal_view": self._nats("autoregressive")[0], **self.answers(len(self.held_out))}
        if self.config.objective == "autoregressive":
            return found
        bound, error = self._nats("bound", FINAL_DRAWS)
        return {**found, "bound": bound, "bound_stderr": error, "left_to_right": self._nats("left_to_right")[0]}

    def answers(self, count: int) -> dict[str, float]:
        """Of greedy replies to the first `count` held-out examples: shares that are exactly right, empty, and ended; how far
        their lengths are off, in tokens."""
        asked, tokenizer = self.held_out[:count], self.template.tokenizer
        if not asked:
            return {}
        subject = Subject("", DiffusionLM(self.denoiser, tokenizer), self.config.objective == "autoregressive")
        room = [min(self.longest, subject.context - one.start) for one in asked]
        bos = len(subject.bos)
        with precision(self.config, self.denoiser):
            said = subject.complete(
                [list(one.ids[bos : one.start]) for one in asked],
                room,
                keys=[one.key for one in asked],
                steps=self.config.eval_steps,
                closing=(self.template.end, self.template.pad),
            )
        replies = [one[0] for one in said]
        right = [self._text(one) for one in asked]
        lengths = [len(self.template.part(one.text.strip())) for one in replies]
        wanted = [len(self.template.part(one)) for one in right]
        return {
            "exact": statistics.fmean(one.text.strip() == text for one, text in zip(replies, right, strict=True)),
            "empty": statistics.fmean(not one.text.strip() for one in replies),
            "ended": statistics.fmean(one.ended for one in replies),
            "length_error": statistics.fmean(abs(a - b) for a, b in zip(lengths, wanted, strict=True)),
        }

    def _text(self, one: Request) -> str:
        ids = [token for token in one.ids[one.start : one.stop] if token != self.template.end]
        return canvas.continuation(self.template.tokenizer, one.ids[: one.start], ids).strip()

    def _nats(self, method: Any, draws: int = 1) -> tuple[float, float]:
        """(nats a token of the held-out replies, standard error)."""
        with precision(self.config, self.denoiser):
            found = scoring.scores(self.denoiser, self.held_out, method, draws, self.config.seed)
        tokens = sum(one.tokens for one in found)
        error = math.sqrt(sum(one.stderr**2 for one in found))
        return sum(one.nats for one in found) / tokens, error / tokens


def next_command(config: "SftConfig") -> str:
    out = shlex.quote(config.out)
    return f"diffulm chat {out}" if config.objective != "autoregressive" else f"diffulm eval ... --parent {out}"


JOB = Job(opened, material, lambda config: "fine-tuning", next_command)
