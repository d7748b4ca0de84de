"""An adapter on disk, as peft lays it out: what was trained, and the name and checksum of the parent it belongs to.

peft itself opens such a folder as a LoRA on the parent; the mask token's vector, which it does not know, it leaves out.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from diffulm.checkpoint.files import CHECKSUMS, SHIPPED, check_sums, digest, headers, read_config, read_object
from diffulm.checkpoint.opening import load_weights
from diffulm.denoiser.adapter import add_lora, give_mask_vector, masks_only
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.mask_token import give_row
from diffulm.denoiser.record import Record
from diffulm.errors import BadInput, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"  # where CONFIG names the parent
PARENT = "parent_sha256"  # in the record
ROWS = "lora_rows"  # in the record


def begin(
    denoiser: Denoiser, home: Path, rank: int, alpha: float, seed: int, embeddings: bool, base: str | None = None
) -> None:
    """Give an adopted model fresh low-rank matrices, and its record the checksum of the parent that they are for.

    home: where that lies; base: its name, where it is not the AR parent but a model that was adapted from one.
    What is trained and what is refused: see `denoiser.adapter.add_lora`.
    """
    name = denoiser.record.parent if base is None else base
    if name not in SHIPPED and name and os.path.isdir(os.path.expanduser(name)):
        name = str(home.absolute())  # it has to be found from anywhere
    add_lora(denoiser.model, name, rank, alpha, seed, embeddings)
    parent = name if base is None else denoiser.record.parent
    notes = denoiser.record.notes | {PARENT: fingerprint(home)}
    denoiser.record = replace(denoiser.record, parent=parent, notes=notes)
    denoiser.model.config.diffulm = denoiser.record.to_dict()


def only_masks(denoiser: Denoiser) -> None:
    """The adapter acts on the rows of masks alone, and the record says so. BadInput where text may hold the mask token."""
    if denoiser.record.emit_mask:
        raise BadInput("lora_rows=masked: the mask token is one of the text's, too; take mask_token=new")
    masks_only(denoiser.model)
    denoiser.record = replace(denoiser.record, notes=denoiser.record.notes | {ROWS: "masked"})
    denoiser.model.config.diffulm = denoiser.record.to_dict()


def fingerprint(home: Path) -> str:
    """One sha256 for all the weights of a folder: that of the checksums of its files."""
    headers(home)
    check_sums(home)
    told = read_object(home / CHECKSUMS) if (home / CHECKSUMS).is_file() else {}
    sums = sorted(str(told.get(file.name) or digest(file)) for file in home.glob("*.safetensors"))
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def trained(model: nn.Module) -> dict[str, str]:
    """Name in a file, as peft spells it -> name of the parameter, for all that is not the frozen parent's."""
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    return {"base_model.model." + name.replace(".default.", "."): name for name in names}


def write(model: Any, folder: Path, state: Any = None) -> None:
    """The adapter, its config and that of the parent into `folder`. state: the model's tensors where they were gathered."""
    state = model.state_dict() if state is None else state
    tensors = {key: state[name].detach().cpu().contiguous() for key, name in trained(model).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    model.peft_config["default"].save_pretrained(folder)
    model.config.save_pretrained(folder)


def fill(model: Any, folder: Path) -> None:
    """The tensors of `folder` into a model that has an adapter like it.

    BadInput when they do not fit, or were trained beside other weights than those the model has.
    """
    headers(folder)
    check_sums(folder)
    parent = (getattr(model.config, "diffulm", None) or {}).get(PARENT)
    if (read_config(folder).get("diffulm") or {}).get(PARENT, parent) != parent:
        raise BadInput(f"{folder}: was trained on a parent with other weights; put those back that it began with")
    found, wanted, own = load_file(folder / WEIGHTS), trained(model), dict(model.named_parameters())
    odd = sorted(found.keys() ^ wanted.keys()) or sorted(
        key for key, name in wanted.items() if found[key].shape != own[name].shape
    )
    if odd:
        raise BadInput(f"{folder / WEIGHTS}: does not fit its parent ({odd[0]}, ...); are they of one model?")
    with torch.no_grad():
        for key, name in wanted.items():
            mine = own[name]
            parts = isinstance(mine, DTensor)
            mine.copy_(distribute_tensor(found[key], mine.device_mesh, mine.placements) if parts else found[key])


def parent_name(folder: Path) -> str:
    """The parent that an adapter names. BadInput where it names none."""
    name = read_object(folder / CONFIG).get(BASE)
    if not isinstance(name, str) or not name:
        raise BadInput(f"{folder / CONFIG}: names no parent; write where that is as {BASE}")
    return name


def opened(folder: Path, home: Path, record: Record, dtype: torch.dtype | None) -> Any:
    """The model of an adapter on its parent, which lies in `home`. BadInput when that is not the one it was trained on."""
    told = read_object(folder / CONFIG)
    if fingerprint(home) != record.notes.get(PARENT):
        raise BadInput(
            f"{home}: is not the parent that the adapter {folder} was trained on: its weights have another sha256; put "
            f"that one back, or write where it is as {BASE} into {folder / CONFIG}"
        )
    rank, alpha = told.get("r"), told.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise BadInput(f"{folder / CONFIG}: r = {shown(str(rank))}, lora_alpha = {shown(str(alpha))}: not of a LoRA")
    model, mask = load_weights(home, dtype), record.mask_token_id
    new = mask >= len(model.get_input_embeddings().weight)
    vector = any(name.endswith(".mask_vector") for name in headers(folder))
    embeddings = any("lora_" not in name and not name.endswith(".mask_vector") for name in headers(folder))
    if vector:
        give_mask_vector(model, mask, new)
    elif new:
        give_row(model, mask)
    add_lora(model, str(told[BASE]), rank, alpha, 0, embeddings)
    model.config.diffulm = record.to_dict()
    fill(model, folder)
    if record.notes.get(ROWS) == "masked":
        masks_only(model)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model
