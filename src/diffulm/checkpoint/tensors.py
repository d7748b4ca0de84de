"""The tensors of a checkpoint folder as they lie on disk: found from the headers, copied byte for byte.

Nothing here decodes a number: a conversion needs no memory to speak of and cannot change a bit, whatever the dtype.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from diffulm.checkpoint.files import INDEX, headers, read_object
from diffulm.errors import BadInput

SHARD_BYTES = 5 * 10**9  # a file of this size is what transformers 4 made and every hub tool takes
CHUNK = 2**24


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. dtype as safetensors spells it ("F32", "BF16"); start and size in bytes, start from the
    beginning of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a few MiB at a time. BadInput when the file has become shorter."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.size
            while left:
                part = stream.read(min(left, CHUNK))
                if not part:
                    raise BadInput(f"{self.file}: ends before its tensor {self.name} does; copy or download it again")
                left -= len(part)
                yield part


class _Zeros(Stored):
    """A tensor that lies in no file; file and start say beside which other it belongs."""

    def chunks(self) -> Iterator[bytes]:
        yield bytes(self.size)


def zero_bias(weight: Stored) -> Stored:
    """The bias of a linear layer that has none."""
    rows = weight.shape[0]
    size = rows * weight.size // prod(weight.shape)
    return _Zeros(weight.file, weight.name, weight.dtype, (rows,), weight.start, size)


def is_zero(tensor: Stored) -> bool:
    return not any(any(part) for part in tensor.chunks())


def same_bits(a: Stored, b: Stored) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and all(x == y for x, y in zip(a.chunks(), b.chunks(), strict=True))


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its name, of one file or of shards.

    Raises BadInput, naming all that is meant, for a file that is no whole safetensors file, a tensor that lies in two
    files, and an index that disagrees with the files.
    """
    headers(folder)  # every file is whole, and its header sound
    listed = _index(folder)
    found: dict[str, Stored] = {}
    twice: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in header(file)[1].items():
            if name in found:
                twice.append(f"{name} ({found[name].file.name}, {file.name})")
            found[name] = tensor
    if twice:
        raise BadInput(f"{folder}: tensors that lie in two files: {', '.join(twice)}; remove the file that is too many")
    if listed is not None:
        _agree(folder, listed, found)
    return found


def metadata(folder: Path) -> dict[str, str]:
    """What the files of a folder say beside their tensors."""
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in header(file)[0].items()}


def header(file: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    """(metadata, tensors) of one file that is known to be whole."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entries: dict[str, Any] = json.loads(stream.read(length))
    told = entries.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        tensors[name] = Stored(file, name, entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first)
    return told, tensors


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor -> file of a sharded folder; None where there is no index."""
    if not (folder / INDEX).is_file():
        return None
    listed = read_object(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        raise BadInput(f"{folder / INDEX}: has no weight_map of tensors to files; copy or download it again")
    return listed


def _agree(folder: Path, listed: dict[str, str], found: dict[str, Stored]) -> None:
    elsewhere = [name for name, file in listed.items() if name not in found or found[name].file.name != file]
    unlisted = [f"{name} ({tensor.file.name})" for name, tensor in found.items() if name not in listed]
    wrong = [
        f"{what}: {', '.join(names)}"
        for what, names in (("not in the file it names", elsewhere), ("in the files, not in the index", unlisted))
        if names
    ]
    if wrong:
        raise BadInput(
            f"{folder / INDEX}: does not fit the files; tensors {'; '.join(wrong)}; download the folder again"
        )


def write(tensors: dict[str, Stored], folder: Path, told: dict[str, str], shard_bytes: int | None) -> list[str]:
    """Copy `tensors` under the names that are their keys into `folder`: one file, or shards of at most `shard_bytes`
    with an index. told: the metadata of every file. Returns the names of the files."""
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], told)
        return ["model.safetensors"]
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, told)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in sorted(shard)}
    index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors.values())}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return [*names, INDEX]


def _split(tensors: dict[str, Stored], limit: int | None) -> list[dict[str, Stored]]:
    """In the order of the source, so that a layer stays together; a tensor above the limit has a shard to itself."""
    shards: list[dict[str, Stored]] = [{}]
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].file.name, item[1].start)):
        used = sum(one.size for one in shards[-1].values())
        if limit is not None and used and used + tensor.size > limit:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def _write_file(file: Path, tensors: dict[str, Stored], told: dict[str, str]) -> None:
    """One safetensors file, laid out as the library itself does it: wide dtypes first (so each is aligned), then names."""
    order = sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[0]))
    entries: dict[str, Any] = {"__metadata__": told}
    end = 0
    for name, tensor in order:
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for _, tensor in order:
            stream.writelines(tensor.chunks())


def _width(tensor: Stored) -> int:
    """Bytes an element, rounded down; 0 for an empty tensor."""
    count = prod(tensor.shape)
    return tensor.size // count if count else 0
