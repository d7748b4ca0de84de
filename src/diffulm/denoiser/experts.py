"""Mixture of experts: the load-balancing loss stays as the parent had it.

A parent whose config says `output_router_logits` was trained with that loss beside its own. transformers computes it in the
root forward from a 2-D attention mask, which ours is not; so there it is switched off, and computed here from the router
logits of the decoder below.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffulm.errors import BadInput

Routers = list[tuple[Tensor, ...]]


def balancing(model: Any) -> Callable[[tuple[Tensor, ...]], Tensor] | None:
    """Router logits, one (tokens, experts) a layer -> weighted load-balancing loss (0-d); None for parents without it.

    Raises BadInput when a parent has it and its class does not tell how.
    """
    if not getattr(model.config, "output_router_logits", False):
        return None
    # FSDP2 puts a class of its own before the family's
    kind = next((c for c in type(model).__mro__ if c.__module__.startswith("transformers.")), type(model))
    loss = getattr(sys.modules[kind.__module__], "load_balancing_loss_func", None)
    weight = getattr(model, "router_aux_loss_coef", None)
    sizes = [getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok")]
    if loss is None or weight is None or None in sizes:
        raise BadInput(
            f"{type(model).__name__}: its load-balancing loss cannot be kept; set output_router_logits to false in its config"
        )
    return lambda routers: weight * loss(routers, *sizes, None)


@contextmanager
def recording(model: Any) -> Iterator[Routers]:
    """What the routers of the decoder said in each of its forwards inside, each forward a tuple of (tokens, experts)."""
    found: Routers = []

    def ask(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return args, options | {"output_router_logits": True}

    handles = [
        model.base_model.register_forward_pre_hook(ask, with_kwargs=True),
        model.base_model.register_forward_hook(lambda _decoder, _args, output: found.append(output.router_logits)),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
