"""MDLM (arXiv 2406.07524) as on the hub: a diffusion transformer told no time, without a shift; see `denoiser.dit`."""

from typing import Any

from diffulm.families._foreign import Foreign, expect, whole

NAMES = (("backbone.vocab_embed.embedding", "vocab_embed.weight"), ("backbone.", ""))
TOKENIZER = "it reads the tokens of its tokenizer (of the released ones: GPT-2's), whose files may not lie beside it"


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model. BadInput for one that is told the time: no such weights were released."""
    if config.get("model_type") != "mdlm":
        return None
    expect(config, time_conditioning=(False, False))
    rows = whole(config, "vocab_size")
    told = {
        "model_type": "diffulm_dit",
        "vocab_size": rows,
        "hidden_size": whole(config, "hidden_dim"),
        "condition_size": whole(config, "cond_dim"),
        "num_hidden_layers": whole(config, "n_blocks"),
        "num_attention_heads": whole(config, "n_heads"),
        "max_position_embeddings": whole(config, "model_length"),
    }
    return Foreign("MDLM", told, NAMES, rows - 1, begins=True, notes=(TOKENIZER,))
