"""What `diffulm prepare` leaves: a folder with a manifest, opened as one memory-mapped data set.

The manifest says what is in the folder, from where, and by which settings it was packed; its `sha256` is that of all blocks
and settings together, so that nobody need read a terabyte to know what a run was trained on.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo, Features, List, Value, concatenate_datasets

from diffulm.data.blocks import read_manifest
from diffulm.data.documents import Skips
from diffulm.data.parts import Packer, Source
from diffulm.errors import BadInput

NAME = "manifest.json"
LAYOUT = ("length", "packing", "bos_token_id", "eos_token_id", "tokenizer")  # what a run has to agree with


def manifest_of(data: str | Path | list[str] | None) -> dict[str, Any] | None:
    """The manifest of prepared data; None for anything else. BadInput where it is one of several names."""
    names = [str(name) for name in data] if isinstance(data, list) else [str(data)]
    found = [] if data is None else [read_manifest(prepared_folder(name)) for name in names if "\0" not in name]
    prepared = [manifest for manifest in found if manifest is not None and "shards" in manifest]
    if prepared and len(names) > 1:
        raise BadInput(f"data={', '.join(names)}: prepared data stands alone; mix text with `diffulm prepare`")
    return prepared[0] if prepared else None


def prepared_folder(data: str | Path | list[str]) -> Path:
    """Where the data lies of which there is a `manifest_of`."""
    return Path(str(data[0] if isinstance(data, list) else data)).expanduser()


def open_prepared(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any]) -> Dataset:
    """The blocks of a prepared folder, in place. wanted: the layout of the run, see `LAYOUT`.

    Raises:
        BadInput: a layout that is not the run's; a file that is missing or of another size than it was written with.
    """
    settings = manifest["settings"]
    for name in LAYOUT:
        if settings[name] != wanted[name]:
            raise _disagrees(folder, manifest, name, settings[name], wanted[name])
    for shard in manifest["shards"]:
        file = folder / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            what = "is missing" if size is None else f"has {size:,} bytes, and had {shard['bytes']:,}"
            raise BadInput(f"{file}: {what}; copy the folder again, or prepare the data again")
    try:
        return Dataset.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # pyarrow and datasets have a kind for every way of being damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{folder}: its blocks cannot be opened ({reason}); copy the folder again") from None


def split(rows: Dataset, manifest: dict[str, Any] | None, count: int) -> tuple[Dataset, Dataset]:
    """(the others, `count` rows at the end): of a mixture some at the end of each source, by its size. In place."""
    sources = [source["blocks"] for source in manifest["sources"]] if manifest and _weighted(manifest) else [len(rows)]
    kept: list[Dataset] = []
    held: list[Dataset] = []
    start = 0
    for size in sources:
        end, total = start + size, len(rows)
        out = round(count * end / total) - round(count * start / total)
        kept.append(rows.select(range(start, end - out)))
        held.append(rows.select(range(end - out, end)))
        start = end
    return _joined(kept), _joined(held)


def write_manifest(
    folder: Path, settings: dict[str, Any], records: list[dict[str, Any]], mixture: list[Source], packer: Packer,
    about: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Make the parts that lie in `folder` one data set, and say what is in it. about: what else the manifest should say."""
    shards = [shard | {"source": record["source"]} for record in records for shard in record["shards"]]
    content = [settings[name] for name in LAYOUT] + [[shard["rows"], shard["sha256"]] for shard in shards]
    blocks = sum(record["rows"] for record in records)
    manifest = {
        "layout": 1,
        "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        **about,
        "settings": settings,
        **_counts(records, packer.length),
        "sources": [
            {"data": list(source.data), "column": source.column, "weight": source.weight}
            | _counts(mine := [record for record in records if record["source"] == number], packer.length)
            | {"share": round(sum(record["rows"] for record in mine) / blocks, 6)}
            for number, source in enumerate(mixture)
        ],
        "shards": shards,
    }
    kinds = {"ids": "uint16" if packer.small else "int32"}
    if packer.packing == "documents":
        kinds["document"] = "int16" if packer.length < 2**15 else "int32"
    features = Features({name: List(Value(kind), length=packer.length) for name, kind in kinds.items()})
    DatasetInfo(features=features).write_to_directory(str(folder))
    state = {"_data_files": [{"filename": shard["file"]} for shard in shards], "_fingerprint": manifest["sha256"][:16]}
    state |= {"_format_type": None, "_format_kwargs": {}, "_format_columns": None, "_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state | {"_split": None}), "utf-8")
    (folder / NAME).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return manifest


def _counts(records: list[dict[str, Any]], length: int) -> dict[str, Any]:
    def of(name: str) -> int:
        return sum(record[name] for record in records)

    skips = Skips()
    for record in records:
        skips.add(record["skipped"], record["places"])
    documents = of("documents")
    return {
        "blocks": of("rows"),
        "tokens": of("rows") * length,
        "documents": documents,
        "cut_documents": round(of("cut") / max(1, documents), 6),
        "left_over_tokens": of("left_over"),
        "skipped_rows": skips.count,
        "skipped_places": skips.places,
    }


def _disagrees(folder: Path, manifest: dict[str, Any], name: str, there: Any, here: Any) -> BadInput:
    if name == "tokenizer":
        return BadInput(
            f"{folder}: was prepared with the tokenizer of {manifest['model']} and mask_token={manifest['mask_token']}, which "
            "is not this run's; take that model and mask_token, or prepare the data again with this one"
        )
    do = f"set {name}={there}" if name in ("length", "packing") else f"take {manifest['model']}"
    return BadInput(
        f"{folder}: was prepared with {name}={there}, and this run has {here}; {do}, or prepare the data again"
    )


def _weighted(manifest: dict[str, Any]) -> bool:
    return manifest["sources"][0]["weight"] is not None


def _joined(parts: list[Dataset]) -> Dataset:
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
