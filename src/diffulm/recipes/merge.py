"""`diffulm merge`: an adapter folded into its parent, as a plain Hugging Face checkpoint.

diffulm merge runs/mine models/mine
"""

from pathlib import Path
from typing import Any

from diffulm.checkpoint import adapter
from diffulm.checkpoint.load import folder_of, load
from diffulm.checkpoint.save import save
from diffulm.denoiser.adapter import merge as fold
from diffulm.errors import BadInput


def merge(source: str, out: str | Path) -> dict[str, Any]:
    """The adapter in `source` and its parent as one model, in float32, at `out`; returns what was done.

    BadInput for a folder without an adapter, for what `load` refuses, and for an `out` that is not empty.
    """
    if not adapter.is_adapter(folder_of(source)):
        raise BadInput(f"{source}: holds no adapter; only a run with keep_adapter=true leaves one")
    denoiser, tokenizer = load(source)
    if denoiser.record.notes.get(adapter.ROWS):
        raise BadInput(
            f"{source}: its adapter acts on masks alone and so cannot be folded into weights; use it as it is"
        )
    fold(denoiser.model, denoiser.record)
    save(denoiser, tokenizer, out)
    return {
        "source": source,
        "out": str(out),
        "parent": denoiser.record.parent,
        "architecture": type(denoiser.model).__name__,
        "parameters": sum(weight.numel() for weight in denoiser.model.parameters()),
        "vocabulary": denoiser.vocabulary,
        "mask_token_id": denoiser.record.mask_token_id,
    }
