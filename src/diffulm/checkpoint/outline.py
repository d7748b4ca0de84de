"""A model without its weights: tensors by the headers of their files, modules on the meta device, and what they count.

So a folder of any size is checked against its architecture in a second, by the same loader that would read it.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch

from diffulm.checkpoint.files import INDEX, headers, read_object
from diffulm.checkpoint.opening import first_line
from diffulm.checkpoint.tensors import Stored, header
from diffulm.costs import Geometry
from diffulm.denoiser import layers
from diffulm.errors import BadInput

WHOLE = "model.safetensors"
# As safetensors spells them; what is not here (packed and quantised numbers) counts as bytes.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip
ACTIVE_EXPERTS = (
    "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k",
)  # fmt: skip
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
HEAD_WIDTH = ("qk_head_dim", "head_dim")  # the first where keys are made of two parts


@dataclass(frozen=True)
class Misfit:
    """Names of tensors that the architecture wants and the files lack, that it does not know, that have another shape."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def reason(self) -> str | None:
        """One line that names the first of each kind; None where everything fits."""
        parts = []
        for what, names in (
            ("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshapen)
        ):  # fmt: skip
            if names:
                rest = ", ..." if len(names) > 3 else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{rest})")
        return f"its tensors are not those of its architecture: {'; '.join(parts)}" if parts else None


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor that transformers would read, by its name, from the headers alone. Raises BadInput as `headers` does."""
    headers(folder)  # that each file is there, its header whole, and it as long as that says
    return {name: tensor for file in _weight_files(folder) for name, tensor in header(file)[1].items()}


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, else what the index names; a folder may hold the same weights in another layout besides."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder}: has neither {WHOLE} nor {INDEX}, so its weights cannot be found")
    return [folder / name for name in sorted(set(read_object(folder / INDEX)["weight_map"].values()))]


def size_on_disk(stored: dict[str, Stored]) -> int:
    """Bytes of the files in which the tensors lie."""
    return sum(file.stat().st_size for file in {item.file for item in stored.values()})


def skeleton(config: Any) -> Any:
    """The model of a config with its parameters on the meta device. BadInput when it cannot be made."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a foreign class says to its config
        raise BadInput(f"its architecture cannot be built ({first_line(error)})") from None


def outline(config: Any, stored: dict[str, Stored]) -> tuple[Any, Misfit]:
    """(model on the meta device, what does not fit), by loading tensors without data the way transformers loads files.

    BadInput for what it would not load at all.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    named = getattr(config, "architectures", None) or []
    kinds = known if isinstance(known, tuple) else (known,)
    kind: Any = next((each for each in kinds if each.__name__ in named), kinds[0])
    tensors = {
        name: torch.empty(item.shape, dtype=DTYPES.get(item.dtype, torch.uint8), device="meta")
        for name, item in stored.items()
    }
    try:
        model, found = kind.from_pretrained(
            None, config=config, state_dict=tensors, device_map={"": "meta"}, dtype="auto",
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # as in `opening.load_weights`; tensors that are stacked (experts) fail without a name
        misfit = odd_ones(stored)
        if misfit.reason is None:
            raise BadInput(f"its weights cannot be loaded ({first_line(error)})") from None
        return skeleton(config), misfit
    misshapen = sorted({str(each[0] if isinstance(each, tuple) else each) for each in found["mismatched_keys"]})
    return model, Misfit(sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), misshapen)


def odd_ones(stored: dict[str, Stored]) -> Misfit:
    """Gaps in the numbering of layers and experts, and tensors of another shape than their like: no architecture needed."""
    alike: dict[str, dict[tuple[str, ...], tuple[int, ...]]] = {}
    for name, item in stored.items():
        parts = re.split(r"(?<=\.)(\d+)(?=\.)", name)
        alike.setdefault("{}".join(parts[::2]), {})[tuple(parts[1::2])] = item.shape
    missing, misshapen = [], []
    for pattern, found in alike.items():
        if "{}" not in pattern:
            continue
        usual = Counter(found.values()).most_common(1)[0][0]
        missing += [pattern.format(*at) for at in product(*map(set, zip(*found, strict=True))) if at not in found]
        misshapen += [pattern.format(*at) for at, shape in found.items() if shape != usual]
    return Misfit(sorted(missing), [], sorted(misshapen))


def geometry(model: Any) -> Geometry:
    """The sizes of a transformers decoder, on the meta device or not; parameters are counted, the rest is its config's."""
    text = model.config.get_text_config(decoder=True)
    taken = model.get_input_embeddings().weight
    given = getattr(model.get_output_embeddings(), "weight", taken)
    numbers = {id(p): p.numel() for p in model.parameters()}
    embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings |= {id(taken): taken.numel(), id(given): given.numel()}
    total = sum(numbers.values())
    try:
        kinds = layers.kinds(text)
    except AttributeError:
        raise BadInput(f"the config of a {model.config.model_type} model does not say how many layers it has") from None
    width, heads = _said(text, "hidden_size") or taken.shape[1], _said(text, "num_attention_heads")
    idle = total - _active(model, text, total)
    intermediate = _said(text, *INTERMEDIATE) or 4 * width
    if idle:  # a token passes parts of several: what their parameters amount to as one
        attention = (m for m in model.modules() if "Attention" in type(m).__name__)
        others = embeddings | {id(p): p.numel() for m in attention for p in m.parameters()}
        intermediate = max(0, total - idle - sum(others.values())) // (3 * width * len(kinds))
    return Geometry(
        layers=len(kinds),
        attention_layers=sum(kind not in layers.UNMASKED for kind in kinds),
        width=width,
        heads=heads or 1,
        kv_heads=_said(text, "num_key_value_heads") or heads or 1,
        head_width=(heads and _said(text, *HEAD_WIDTH)) or width // (heads or 1),
        intermediate=intermediate,
        vocabulary=taken.shape[0],
        tied=taken is given,
        parameters=total,
        active_parameters=total - idle,
        embedding_parameters=sum(embeddings.values()),
        context=_said(text, "max_position_embeddings"),
    )


def _said(config: Any, *names: str) -> int | None:
    """The first of these settings that is a number; some configs keep one for each layer, and raise."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:
            continue
        if isinstance(value, int):
            return value
    return None


def _active(model: Any, text: Any, total: int) -> int:
    """Parameters that one token passes: of all that lie under a module called `experts`, the share that is chosen."""
    chosen = _said(text, *ACTIVE_EXPERTS)
    idle = 0
    for name, module in model.named_modules():
        if chosen is None or name.rpartition(".")[2] != "experts":
            continue
        size = sum(prod(p.shape) for p in module.parameters())
        count = len(module) if isinstance(module, torch.nn.ModuleList) else next(module.parameters()).shape[0]
        idle += size - size * min(chosen, count) // count
    return total - idle
