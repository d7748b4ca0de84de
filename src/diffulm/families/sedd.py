"""SEDD (arXiv 2310.16834) with absorbing noise, as on the hub: a diffusion transformer told how much is masked, without a
shift; see `denoiser.dit`.

It was trained to give ratios p(x with y at i) / p(x), its logs in place of logits. Where i is masked all these ratios are
p(y at i | what is visible) times one number (RADD, arXiv 2406.03736, theorem 1), so their softmax is the distribution of
the token, and logits are what they are read as. `scale_by_sigma` adds one number to all, which makes no difference.
"""

from typing import Any

from diffulm.families._foreign import Foreign, expect, whole

NAMES = (("vocab_embed.embedding", "vocab_embed.weight"),)
TOKENIZER = "it reads the tokens of its tokenizer (of the released ones: GPT-2's), whose files may not lie beside it"


def read(config: dict[str, Any]) -> Foreign | None:
    """None for another model: its config.json has no model_type. BadInput for another noise."""
    model, graph, noise = (config.get(part) for part in ("model", "graph", "noise"))
    if "tokens" not in config or not (isinstance(model, dict) and isinstance(graph, dict) and isinstance(noise, dict)):
        return None
    expect({"graph.type": graph.get("type")}, **{"graph.type": (None, "absorb")})
    expect({"noise.type": noise.get("type")}, **{"noise.type": (None, "loglinear")})
    mask = whole(config, "tokens")
    told = {
        "model_type": "diffulm_dit",
        "vocab_size": mask + 1,
        "hidden_size": whole(model, "hidden_size"),
        "condition_size": whole(model, "cond_dim"),
        "num_hidden_layers": whole(model, "n_blocks"),
        "num_attention_heads": whole(model, "n_heads"),
        "max_position_embeddings": whole(model, "length"),
        "noise_token_id": mask,
    }
    return Foreign("SEDD", told, NAMES, mask, notes=(TOKENIZER,))
