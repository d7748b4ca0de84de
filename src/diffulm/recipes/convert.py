"""`diffulm import` and `diffulm export`: released checkpoints to our folders and back, bit for bit.

    diffulm import diffugpt-s/ models/diffugpt-s
    diffulm export runs/mine released/mine --layout diffugpt
    diffulm export runs/mine released/mine --layout dream

Both copy bytes from file to file: no weight is opened as a number, so 7B parameters need no memory, and no dtype changes.
"""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

from diffulm import families
from diffulm.checkpoint import adapter, card, disk, released, tensors
from diffulm.checkpoint.files import check_sums, read_config
from diffulm.checkpoint.load import checked, folder_of, refuse_plain
from diffulm.checkpoint.opening import open_tokenizer
from diffulm.checkpoint.origin import shown
from diffulm.checkpoint.save import TOKENIZER_FILES, appearing, finish, write_config
from diffulm.denoiser.quiet import quietly
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput, unknown

# The class that reads any tokenizer.json: its name in transformers 5, and in 4.44, on which the published code runs.
NEW_GENERIC, GENERIC = "TokenizersBackend", "PreTrainedTokenizerFast"
PUBLISHED_CLASS = "DiscreteDiffusionModel"


def import_checkpoint(
    source: str, out: str | Path, mask_token_id: int | None = None, bos_token_id: int | None = None,
    block_size: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A released checkpoint (folder or hub id) as a folder of ours, at `out`; returns what was done.

    The ids override what tokenizer, vocabulary and family say, block_size what its layout says of blocks. Raises
    `released.Misfit` with every tensor that does not belong, and BadInput for what else `load` refuses, for an `out` that
    is not empty, and for a full disk.
    """
    with quietly(), appearing(out) as (partial, target):
        place = folder_of(source)
        config = read_config(place)
        released.decoder_of(place, config)
        refuse_plain(place, config, mask_token_id, source)
        found = released.plan(place, config)
        check_sums(place)
        tokenizer, foreign = released.open_released_tokenizer(place, config)
        record, why = released.make_record(place, config, found.vocabulary, tokenizer, mask_token_id, bos_token_id)
        record = checked(record, mask_token_id, found.vocabulary, source)
        if block_size is not None:
            record = replace(record, attention="block", block_size=block_size)
        partial.mkdir(parents=True)
        with disk.writing(target, disk.stored(place)):
            files = tensors.write(found.tensors, partial, {"format": "pt"}, tensors.SHARD_BYTES)
        if foreign:
            tokenizer.save_pretrained(partial)
        else:
            _copy(place, partial, TOKENIZER_FILES)
        _copy(place, partial, ("generation_config.json",))
        write_config(partial, found.config, record.to_dict())
        how = f"A masked-diffusion language model, imported from the released checkpoint `{shown(source)}`."
        finish(partial, card.of_files(found, record, target, how, []))
    notes = []
    for reason in dict.fromkeys(found.dropped.values()):
        first, *more = [name for name, its in found.dropped.items() if its == reason]
        notes.append(f"{first}{f' and {len(more)} more were' if more else ' was'} left out: {reason}")
    if foreign:
        notes.append(f"the tokenizer's class is not known to transformers; it was read as a {type(tokenizer).__name__}")
    if tokenizer is None:
        notes.append("there is no tokenizer: only token ids can be given to this model")
    theirs = released.foreign(place, config)
    notes += theirs.notes if theirs is not None and block_size is None else ()
    return {**_report(source, out, found, record, files, notes), "mask_token_from": why}


def export(source: str, out: str | Path, layout: str | None = None) -> dict[str, Any]:
    """A diffusion model of ours (folder, shipped name, hub id) in a released layout, at `out`; returns what was done.

    layout: a name of `families.layouts()`; None: the family's first. Raises BadInput where the published code, or an engine
    of that layout, would silently do something else with the model than DiffuLM does, and for what cannot be read or
    written.
    """
    with quietly(), appearing(out) as (partial, target):
        place = folder_of(source)
        config = read_config(place)
        if "diffulm" not in config:
            raise BadInput(f"{source}: holds no record of DiffuLM; `diffulm adapt` or `diffulm import` makes one")
        record = Record.from_dict(config["diffulm"], str(place / "config.json"))
        name, names = _layout(source, config, layout)
        engine = families.engines().get(name)
        _check(source, name, record)
        found = released.plan(place, config)
        check_sums(place)
        record = checked(record, None, found.vocabulary, source)
        record = replace(record, parent=record.parent and shown(record.parent))  # it is made to be given away
        tokenizer = open_tokenizer(place)
        if engine is None:
            notes, told = _objections(source, names, record, tokenizer, found), _released_config(found, names, record)
        else:
            told = _engine_config(source, engine, found, record, tokenizer)
            record = replace(record, window=None)
            notes = []
        notes += _remarks(record, tokenizer)
        partial.mkdir(parents=True)
        with disk.writing(target, disk.stored(place)):
            files = _write_weights(found, names, partial, engine)
        _copy(place, partial, TOKENIZER_FILES if engine else (*TOKENIZER_FILES, "generation_config.json"))
        if engine is not None:  # the ids alone: an AR parent's sampling is not this model's
            ids = {key: value for key, value in told.items() if key.endswith("_token_id")}
            (partial / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", "utf-8")
        if tokenizer is not None:
            _mend_tokenizer(partial, tokenizer, record)
        write_config(partial, told, record.to_dict())
        how = f"A masked-diffusion language model, exported from `{shown(source)}` in the layout `{name}`."
        finish(partial, card.of_files(found, record, target, how, notes))
    return {**_report(source, out, found, record, files, notes), "layout": name}


def _layout(source: str, config: dict[str, Any], layout: str | None) -> tuple[str, released.Names]:
    """(name, name table) of the layout asked for, or of the family's first."""
    if layout is not None and layout not in families.layouts():
        raise unknown("layout", layout, families.layouts())
    kind = config.get("model_type")
    engines = {name: module.NAMES for name, module in families.engines().items() if kind in module.HOLDS}
    known = {**released.family_of(Path(source), config).LAYOUTS, **engines}
    if layout is not None and layout not in known:
        raise BadInput(f"{source}: is a {kind} model, which has no layout {layout!r}; it can be {' or '.join(known)}")
    name = layout or next(iter(known))
    return name, known[name]


def _check(source: str, layout: str, record: Record) -> None:
    """BadInput for a model that computes otherwise than the code that reads this layout."""
    engines = families.engines()
    if record.notes.get(adapter.ROWS):
        raise BadInput(f"{source}: its adapter acts on masks alone; no layout says that, and it cannot be merged")
    if record.attention != "full":
        raise BadInput(
            f"{source}: fills block by block; in {layout} every position sees every other, so it cannot be said"
        )
    if layout in engines and record.window == "keep":
        raise BadInput(f"{source}: some of its layers see a sliding window; in {layout} every layer sees everything")
    shifts = engines[layout].SHIFT if layout in engines else True
    if record.shift != shifts:
        fits = " or ".join(name for name, module in engines.items() if record.shift == module.SHIFT)
        has, does = ("a", "never shifts") if record.shift else ("no", "always shifts by one")
        raise BadInput(
            f"{source}: has {has} shift; the published code {does}, so {layout} cannot say it; for Qwen2 and LLaMA there is "
            f"--layout {fits}"
        )


def _objections(source: str, names: released.Names, record: Record, tokenizer: Any, found: released.Plan) -> list[str]:
    """What a user of the published code of DiffuGPT and DiffuLLaMA should know; that code takes the mask token from the
    tokenizer. BadInput where it would quietly do something else."""
    mask, rows = record.mask_token_id, found.vocabulary
    if tokenizer is None:
        return [f"there is no tokenizer: the published code asks one for the mask token, id {mask}"]
    if tokenizer.convert_ids_to_tokens([mask])[0] is None or mask >= len(tokenizer):
        raise BadInput(
            f"{source}: its tokenizer has no token with id {mask}; the published code takes the mask from the tokenizer"
        )
    if names and rows not in (len(tokenizer), len(tokenizer) + len(tokenizer) % 2):
        raise BadInput(
            f"{source}: {rows} rows of the embedding for {len(tokenizer)} tokens; the published code makes as many rows as "
            f"there are tokens and could not load them; use another --layout"
        )
    if names and rows % 2 and mask == rows - 1:
        return [f"the published script rounds a grown vocabulary up to an even number, and will not take {rows} rows"]
    return []


def _remarks(record: Record, tokenizer: Any) -> list[str]:
    """What a user of anybody's code should know."""
    mask, notes = record.mask_token_id, []
    if tokenizer is not None and tokenizer.mask_token_id != mask and _mask_token(tokenizer, record) is not None:
        token = _mask_token(tokenizer, record)
        notes.append(f"the tokenizer gets {token!r} as its mask token, and so cuts it out of any text that has it")
    if not record.emit_mask:
        notes.append(
            f"the published samplers do not forbid the mask token, id {mask}, as DiffuLM does: they may draw it"
        )
    if tokenizer is not None and record.bos_token_id not in (None, tokenizer.bos_token_id):
        notes.append(f"texts begin with id {record.bos_token_id}, which is not the tokenizer's BOS")
    return notes


def _mask_token(tokenizer: Any, record: Record) -> str | None:
    """The mask token's text; None where the tokenizer has none with this id."""
    return tokenizer.convert_ids_to_tokens([record.mask_token_id])[0] if record.mask_token_id < len(tokenizer) else None


def _engine_config(
    source: str, engine: ModuleType, found: released.Plan, record: Record, tokenizer: Any
) -> dict[str, Any]:
    """config.json of an engine's layout."""
    whole = found.decoder.to_dict()
    try:
        told = engine.write(whole)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    eos = whole.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    eos = getattr(tokenizer, "eos_token_id", None) if eos is None else eos
    ids = {"bos_token_id": record.bos_token_id, "eos_token_id": eos, "pad_token_id": whole.get("pad_token_id")}
    if ids["pad_token_id"] is None:  # where there is none their code takes an id of its own vocabulary
        ids["pad_token_id"] = record.bos_token_id if eos is None else eos
    parent = {"_name_or_path": record.parent} if record.parent else {}
    return told | ids | parent | {"mask_token_id": record.mask_token_id, "torch_dtype": found.config["dtype"]}


def _write_weights(found: released.Plan, names: released.Names, folder: Path, engine: ModuleType | None) -> list[str]:
    back = {released.renamed(name, names, back=True): tensor for name, tensor in found.tensors.items()}
    for name, weight in list(back.items()):
        bias = name.removesuffix("weight") + "bias"
        if engine is not None and bias not in back and bias.endswith(engine.BIASED):
            back[bias] = tensors.zero_bias(weight)
    if not names or engine is not None:
        return tensors.write(back, folder, {"format": "pt"}, tensors.SHARD_BYTES)
    # the published class reads model.safetensors and nothing else; its writer notes there what is tied
    told = {name: released.renamed(whose, names, back=True) for name, whose in found.tied.items()}
    return tensors.write(back, folder, told or {"format": "pt"}, None)


def _released_config(found: released.Plan, names: released.Names, record: Record) -> dict[str, Any]:
    """config.json as transformers 4.44 reads it, which the published code asks for."""
    config = dict(found.config)
    config["torch_dtype"] = config.pop("dtype")
    if isinstance(rope := config.pop("rope_parameters", None), dict):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_theta"] = rope.get("rope_theta", 10000.0)
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if names:
        config["architectures"] = [PUBLISHED_CLASS]
        if record.mask_token_id == found.vocabulary - 1:  # the mask's own row: the config keeps the parent's size
            config["vocab_size"] = found.vocabulary - 1
    if record.parent:
        config["_name_or_path"] = record.parent
    return config


def _mend_tokenizer(folder: Path, tokenizer: Any, record: Record) -> None:
    """The tokenizer with the mask token in it, as transformers 4.44 reads one too."""
    file = folder / "tokenizer_config.json"
    told: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    mended = dict(told)
    named = told.get("tokenizer_class", GENERIC)
    if (folder / "tokenizer.json").is_file() and (named == NEW_GENERIC or not hasattr(transformers, named)):
        mended["tokenizer_class"] = GENERIC
    token = _mask_token(tokenizer, record)
    if token is not None and tokenizer.mask_token_id != record.mask_token_id:
        mended["mask_token"] = token
        (folder / "special_tokens_map.json").unlink(missing_ok=True)  # older files that repeat it
    if mended != told:
        file.write_text(json.dumps(mended, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if (folder / "tokenizer.json").is_file():
        _old_merges(folder / "tokenizer.json")
    if token is not None and open_tokenizer(folder).mask_token_id != record.mask_token_id:
        raise BadInput(f"{folder}: its tokenizer cannot be told that id {record.mask_token_id} is the mask token")


def _old_merges(file: Path) -> None:
    """tokenizer.json with its merges as "a b", not ["a", "b"]: the only form that the tokenizers of that time read."""
    told: dict[str, Any] = json.loads(file.read_text("utf-8"))
    merges = told.get("model", {}).get("merges") or []
    pairs = [pair for pair in merges if isinstance(pair, list)]
    if pairs and not any(" " in part for pair in pairs for part in pair):
        told["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
        file.write_text(json.dumps(told, indent=2, ensure_ascii=False), "utf-8")


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _report(
    source: str, out: str | Path, found: released.Plan, record: Record, files: list[str], notes: list[str]
) -> dict[str, Any]:
    sizes = Counter(tensor.dtype for tensor in found.tensors.values())
    return {
        "source": str(source),
        "out": str(out),
        "layout": found.layout,
        "architecture": found.config["architectures"][0],
        "tensors": len(found.tensors),
        "bytes": sum(tensor.size for tensor in found.tensors.values()),
        "dtypes": dict(sizes),
        "vocabulary": found.vocabulary,
        "mask_token_id": record.mask_token_id,
        "bos_token_id": record.bos_token_id,
        "attention": record.attention if record.block_size is None else f"blocks of {record.block_size}",
        "shift": record.shift,
        "files": files,
        "dropped": sorted(found.dropped),
        "notes": notes,
    }
