"""Model cards: README.md with the metadata of the hub, made from facts, and the parent's licence carried along.

`text` is a pure function of `Facts`; `of_model` and `of_files` gather them. What a folder's own card says of licence and
parent outlives any chain of loading and saving, because each new card is made from that of the folder before.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import yaml

from diffulm.checkpoint.origin import CARD, flat, folder_of, front_matter, hub_name, last_part, place, shown
from diffulm.denoiser.adapter import attached
from diffulm.denoiser.record import Record

LEGAL = re.compile(r"(licen[cs]e|notice|copying|use_policy)([._-].*)?", re.IGNORECASE)
LEGAL_BYTES = 2**20
UNKNOWN = "unknown: ask the parent's authors"
# What a card hands on to the card of a model made from it, and what only to that of the same weights.
HANDED_ON = ("license", "license_name", "license_link", "language")
OF_THE_WEIGHTS = ("base_model", "datasets", "model-index")
SETTINGS = ("objective", "scratch", "length", "global_batch", "learning_rate", "lr_schedule", "precision", "seed")
ADAPTER_SETTINGS = ("adapter", "lora_rank", "lora_alpha", "train_embeddings", "quantise")
DIFFUSION_SETTINGS = ("noise", "noise_schedule", "annealing", "anneal_steps")
SCORES = {
    "bound": "any-order bound",
    "left_to_right": "left to right",
    "causal_view": "AR loss of its causal view",
    "ar_loss": "AR loss",
    "parent": "AR loss of the parent",
}


@dataclass(frozen=True)
class Facts:
    """What a card says. Only what is known is said.

    how: one sentence, where these weights come from. record: of a diffusion model; None: it is autoregressive. parent: as
    shown to people. metadata: the hub's, without what follows from the other facts. training: what `training_of` makes.
    about, remarks: Markdown of the caller's, behind `how` and after the figures. source: where licence files may lie. home:
    where the model will lie; a card that somebody has edited there stays.
    """

    name: str
    how: str
    architecture: str
    parameters: int
    vocabulary: int
    context: int | None
    dtype: str
    record: Record | None
    parent: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    remarks: tuple[str, ...] = ()
    source: Path | None = None
    home: Path | None = None
    adapter: int | None = None


def text(facts: Facts) -> str:
    """The card. Its last line is a comment by which `edited` knows it again."""
    parts = [
        f"# {flat(facts.name)}",
        facts.how,
        facts.about,
        _table(["", ""], _what(facts)),
        "## Licence\n\n" + _licence(facts),
        _training(facts.training),
        _scores(facts.training),
        "\n".join(f"- {remark}" for remark in facts.remarks),
        "## Use\n\n" + _use(facts),
    ]
    front = yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True)
    body = f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    body = body.encode("utf-8", "backslashreplace").decode()  # names of files need not be text
    return f"{body}\n<!-- written by diffulm {_version()}, {_seal(body)} -->\n"


def write(folder: Path, facts: Facts) -> None:
    """README.md and the licence files of where the weights come from, into a folder that is being made."""
    if facts.home is not None and edited(facts.home / CARD):
        shutil.copyfile(facts.home / CARD, folder / CARD)
    else:
        (folder / CARD).write_text(text(facts), "utf-8")
    for file in sorted(facts.source.iterdir()) if facts.source is not None else ():
        if LEGAL.fullmatch(file.name) and file.is_file() and file.stat().st_size <= LEGAL_BYTES:
            shutil.copyfile(file, folder / file.name)


def edited(card: Path) -> bool:
    """Whether a card is there and somebody else wrote in it."""
    if not card.is_file():
        return False
    body, _, seal = card.read_text("utf-8", errors="replace").rpartition("\n<!-- written by diffulm ")
    return not seal.endswith(f", {_seal(body)} -->\n")


def _seal(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _version() -> str:
    try:
        return version("diffulm")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


# --- facts ---


def of_model(
    model: Any, record: Record | None, home: Path, parent: str | None = None, training: dict[str, Any] | None = None
) -> Facts:
    """The facts of a model in memory. parent: the AR model that a run began with; None: the folder it was opened from is
    either its AR parent or holds the same weights, as the record says."""
    source = parent or getattr(model, "name_or_path", None) or None
    origin = parent or (record.parent if record is not None else None)
    same = source is not None and (origin is None or place(source) != place(origin))
    config = model.config.get_text_config(decoder=True)
    if attached(model):
        how = f"An adapter by which `{shown(origin)}` becomes a masked-diffusion language model, trained by DiffuLM."
    elif same:
        how = f"A masked-diffusion language model, saved from `{shown(source)}`."
    elif training is None:
        how = f"`{shown(origin)}`, set up as a masked-diffusion language model; no training of it is recorded."
    else:
        kind = "An autoregressive" if record is None else "A masked-diffusion"
        start = "from fresh weights of the architecture" if training["settings"].get("scratch") else "from the weights"
        how = f"{kind} language model, trained by DiffuLM {start} of `{shown(origin)}`."
    found = _facts(
        home, how, type(model).__name__, sum(weight.numel() for weight in model.parameters()),
        model.get_input_embeddings().weight.shape[0], config, str(model.dtype).removeprefix("torch."), record, origin,
        training or {}, source if same else None,
    )  # fmt: skip
    if attached(model):
        found = replace(found, adapter=sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
    return found


def of_files(found: Any, record: Record, home: Path, how: str, remarks: list[str]) -> Facts:
    """The facts of a folder that is converted: `found` is its `released.Plan`."""
    count = sum(prod(tensor.shape) for tensor in found.tensors.values())
    return _facts(
        home, how, found.config["architectures"][0], count, found.vocabulary, found.decoder, found.config["dtype"],
        record, record.parent, {}, str(found.place), remarks,
    )  # fmt: skip


def _facts(
    home: Path, how: str, architecture: str, parameters: int, vocabulary: int, config: Any, dtype: str,
    record: Record | None, parent: str | None, training: dict[str, Any], copied: str | None, remarks: Any = (),
) -> Facts:  # fmt: skip
    """copied: the folder that held the same weights; its card is believed, and only without one the parent's is read."""
    folder = folder_of(copied)
    if told := front_matter(folder):
        metadata = {key: told[key] for key in (*HANDED_ON, *OF_THE_WEIGHTS) if key in told}
        local = "base_model" not in told
    else:
        folder, base = folder_of(parent), hub_name(parent)
        metadata = {key: value for key, value in front_matter(folder).items() if key in HANDED_ON}
        metadata |= {"base_model": base} if base else {}
        local = base is None
    if record is not None and not training:
        training = dict(record.notes.get("training") or {})
    return Facts(
        home.resolve().name, how, architecture, parameters, vocabulary, getattr(config, "max_position_embeddings", None),
        dtype, record, last_part(parent) if parent and local else parent, metadata, training, "", tuple(remarks), folder, home,
    )  # fmt: skip


def training_of(config: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """What a finished run tells about its model, from its config and report: it goes into the record and so lasts."""
    data = [config["data"]] if isinstance(config["data"], str) else list(config["data"])
    keys = SETTINGS + (ADAPTER_SETTINGS if config.get("adapter", "none") != "none" else ())
    keys += DIFFUSION_SETTINGS if config["objective"] != "autoregressive" else ()
    scores = {key: report[key] for key in (*SCORES, "bound_stderr") if report.get(key) is not None}
    if "bound" not in report:
        scores = {"ar_loss": report["causal_view"]}
    return {
        "data": [shown(name) for name in data],
        "datasets": [name.partition(":")[0] for name in data if hub_name(name.partition(":")[0]) and "." not in name],
        "tokens": report["tokens"],
        "steps": report["steps"],
        "settings": {key: config[key] for key in keys if key in config},
        "scores": scores,
        **{key: report[key] for key in ("held_out_blocks", "held_out_examples") if key in report},
    }


# --- text ---


def _front(facts: Facts) -> dict[str, Any]:
    kind = ["masked-diffusion", "infilling"] if facts.record is not None else []
    given = facts.metadata
    front: dict[str, Any] = {"license": given.get("license", "unknown")}
    front |= {key: given[key] for key in (*HANDED_ON[1:], "base_model") if key in given}
    if facts.adapter:
        kind = [*kind, "lora"]
        front |= {"base_model_relation": "adapter"} if "base_model" in front else {}
    front |= {
        "library_name": "transformers" if facts.record is None else "diffulm",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["diffulm", *kind, *given.get("tags", [])])),
    }
    datasets = given.get("datasets") or facts.training.get("datasets")
    front |= {"datasets": datasets} if datasets else {}
    index = _index(facts) or given.get("model-index")
    return front | ({"model-index": index} if index else {})


def _index(facts: Facts) -> list[dict[str, Any]]:
    scores = facts.training.get("scores", {})
    metrics = [
        {"type": "nats_per_token", "name": title, "value": round(scores[key], 4)}
        for key, title in SCORES.items()
        if key in scores and key != "parent"
    ]
    if not metrics:
        return []
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"name": f"held-out text of {', '.join(facts.training['data'])}", "type": "held-out"},
        "metrics": metrics,
    }
    return [{"name": facts.name, "results": [result]}]


def _what(facts: Facts) -> list[tuple[str, str]]:
    rows = [
        ("parent", f"`{facts.parent}`" if facts.parent else None),
        ("architecture", f"{facts.architecture}, {facts.parameters:,} parameters, {facts.dtype}"),
        (
            "adapter",
            f"{facts.adapter:,} of the parameters; the rest is the parent's, not here" if facts.adapter else None,
        ),
        ("vocabulary", f"{facts.vocabulary:,} rows"),
        ("context", f"{facts.context:,} positions" if facts.context else None),
    ]
    record = facts.record
    if record is not None:
        emit = ", which the model may also predict" if record.emit_mask else ""
        block = f", blocks of {record.block_size}" if record.attention == "block" else ""
        window = {"keep": "sliding, symmetric", "lift": "lifted: every layer sees everything"}
        rows += [
            ("mask token", f"id {record.mask_token_id}{emit}"),
            ("BOS", f"id {record.bos_token_id}, fixed at position 0" if record.bos_token_id is not None else "none"),
            ("attention", record.attention + block),
            ("window", window.get(record.window or "")),
            ("shift", "the output at position i is for token i + 1" if record.shift else "none"),
        ]
    return [(key, value) for key, value in rows if value is not None]


def _licence(facts: Facts) -> str:
    if "license" not in facts.metadata:
        return f"{UNKNOWN[0].upper()}{UNKNOWN[1:]}{f' (`{facts.parent}`)' if facts.parent else ''}."
    found = facts.metadata
    name = found.get("license_name") or found["license"]
    link = f" ({found['license_link']})" if "license_link" in found else ""
    whose = f", that of its parent `{facts.parent}`" if facts.parent else ""
    return f"`{flat(name)}`{flat(link)}{whose}."


def _training(training: dict[str, Any]) -> str:
    if not training:
        return ""
    settings = " ".join(f"{key}={value}" for key, value in training["settings"].items())
    return (
        "## Training\n\n"
        f"- Data: {', '.join(f'`{name}`' for name in training['data'])}\n"
        f"- {training['tokens']:,} tokens in {training['steps']:,} steps\n"
        f"- Settings: `{settings}`"
    )


def _scores(training: dict[str, Any]) -> str:
    scores, rows = training.get("scores", {}), []
    for key, title in SCORES.items():
        if key in scores:
            error = f" ± {scores['bound_stderr']:.3f}" if key == "bound" and "bound_stderr" in scores else ""
            rows.append((title, f"{scores[key]:.3f}{error}"))
    if not rows:
        return ""
    told = f"{training.get('held_out_blocks', '')} held-out blocks"
    if "held_out_examples" in training:
        told = f"the replies of {training['held_out_examples']} held-out examples"
    blocks = f"On {told}, at the end of training, nats a token:"
    return f"## Losses\n\n{blocks}\n\n{_table(['', 'nats'], rows)}"


def _use(facts: Facts) -> str:
    name = json.dumps(flat(facts.name), ensure_ascii=False)
    if facts.record is None:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model, tokenizer = (kind.from_pretrained({name}) for kind in (AutoModelForCausalLM, AutoTokenizer))",
        ]
    else:
        lines = ["import diffulm", "", f"lm = diffulm.load({name})"]
        call = (
            'lm.generate("", length=32).text'
            if facts.record.attention == "block"
            else 'lm.infill("A <hole:3> b.").text'
        )
        lines.append(f"print({call})")
    return "\n".join(["```python", *lines, "```"])


def _table(head: list[str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(flat(cell).replace('|', '/') for cell in line)} |" for line in lines)
