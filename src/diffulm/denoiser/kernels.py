"""The same arithmetic in faster kernels, for decoding in bfloat16 on a CPU: a model's modules get other forwards, its weights
stay as they are. `generate` of transformers on the same model is faster for it too.

A product with few rows spends much of its time on laying the weights out as oneDNN wants them, the same way at every call:
that layout is made once and kept, a second copy of the weights. GPT-2's GELU, written in five steps, is one.
"""

from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

LIMIT = 4 * 2**30  # bytes of weights beyond which a second copy is not worth its memory


def hasten(model: Any) -> bool:
    """Give a bfloat16 model on a CPU its faster forwards, once; False where nothing was done. They are used only without
    gradients and only while the weights are those that they were made of."""
    if getattr(model, "_diffulm_hastened", None) is None:
        layers = [m for m in model.modules() if type(m) is nn.Linear or type(m).__name__ == "Conv1D"]
        layers = [m for m in layers if m.weight.dtype == torch.bfloat16 and m.weight.device.type == "cpu"]
        heavy = sum(m.weight.nbytes for m in layers) > LIMIT
        model._diffulm_hastened = bool(layers) and not heavy and all(_prepack(m) for m in layers)
        for module in model.modules() if model._diffulm_hastened else ():
            if type(module).__name__ == "NewGELUActivation":
                module.__dict__["forward"] = partial(functional.gelu, approximate="tanh")
    return model._diffulm_hastened


def _prepack(layer: Any) -> bool:
    if "forward" in layer.__dict__:  # somebody else's
        return False
    weight = layer.weight.detach()
    by_rows = weight if type(layer) is nn.Linear else weight.t().contiguous()
    probe = torch.randn(3, by_rows.shape[1], dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(by_rows, 32)
        _layouts[layer] = layer.weight, layer.weight._version, packed
        with torch.no_grad():
            quick, ordinary = _forward(layer, probe), layer(probe)
    except (RuntimeError, AttributeError):  # a torch without oneDNN, or a CPU without bfloat16
        return False
    # products of bfloat16 summed in another order: a few units in the last of its 8 bits
    same = torch.allclose(quick.float(), ordinary.float(), rtol=0.02, atol=0.02)
    if same:
        layer.forward = MethodType(
            _forward, layer
        )  # so that a deep copy gets one of its own, for which there is no layout
    return same


def _forward(layer: Any, x: Tensor) -> Tensor:
    weight, version, packed = _layouts.get(layer, (None, 0, x))
    usable = layer.weight is weight and weight._version == version and x.dtype == weight.dtype
    if not usable or torch.is_grad_enabled():
        return type(layer).forward(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")


_layouts: WeakKeyDictionary[Any, tuple[Any, int, Tensor]] = WeakKeyDictionary()
