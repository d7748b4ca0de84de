"""What a model costs: floating-point operations, memory and hours, from its geometry alone.

Estimates for planning, by counting: no measurement enters but the share of the peak that the caller states. Everything
here is for training and decoding with full visibility, in which a token looks at all others.
"""

from dataclasses import asdict, dataclass
from typing import Any

MASKED_SHARE = 0.5
"""Of the tokens of a step, on average: the noise level is drawn evenly from 0 to 1."""
LOGITS_AT_ONCE = 2**24
"""Elements of the logits that training holds at once, as `denoiser.CHUNK_ELEMENTS`."""
TILE_ROWS = 8
"""Rows of a forward of sampling on an accelerator, as `denoiser.tile`."""

ASSUMPTIONS = {
    "flops": (
        "6 FLOPs for each active parameter (embeddings left out) and token; "
        "12 x attention layers x attention width x length for each token; "
        "6 x width x vocabulary for each masked token, half of all. Recomputation, evaluation and saving come on top."
    ),
    "training": (
        "One canvas on one device, float32 weights, gradients and two AdamW moments; mixed: bfloat16 copies of the matrices "
        "and bfloat16 activations beside float32 norms, as many as a LLaMA block keeps (families with more norms keep up to "
        "half as many again). No checkpointing, no sharding."
    ),
    "inference": (
        "One text in a tile of 8 rows, as on an accelerator, every position masked; weights and activations in one dtype, "
        "logits also as two float32 copies."
    ),
    "cards": "Dense bfloat16 peak and memory by the vendors' data sheets, an even share on every device.",
}


@dataclass(frozen=True)
class Geometry:
    """The sizes that decide what a decoder costs.

    attention_layers: those that compare all positions with each other; recurrent ones and convolutions count by their
    parameters alone. head_width: of one head. intermediate: hidden units of the feed-forward part that one token passes,
    over all of its experts. parameters: tied ones once. active_parameters: those that one token passes (fewer with
    experts). embedding_parameters: token and position embeddings, and the output embedding where it is not tied.
    context None: the architecture sets no limit. attention_matrix: scores of all pairs are held (eager attention).
    """

    layers: int
    attention_layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    tied: bool
    parameters: int
    active_parameters: int
    embedding_parameters: int
    context: int | None = None
    attention_matrix: bool = False

    @property
    def matrix_parameters(self) -> int:
        """Those that are multiplied with activations: all but the embeddings, the output embedding included."""
        return self.parameters - self.embedding_parameters + self.width * self.vocabulary


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        return {"total": self.total, **asdict(self)}


@dataclass(frozen=True)
class Card:
    """peak: dense bfloat16 FLOP/s with float32 accumulation. memory: bytes."""

    peak: float
    memory: int


# The vendor's data sheets: dense figures, which are half of those "with sparsity"; gigabytes of 10**9.
CARDS = {
    "RTX 4090": Card(165e12, 24 * 10**9),
    "A100 80GB": Card(312e12, 80 * 10**9),
    "H100 SXM": Card(989e12, 80 * 10**9),
    "H200": Card(989e12, 141 * 10**9),
}


DEVICES = (1, 8, 64)


def flop_parts(geometry: Geometry, tokens: int, length: int) -> dict[str, int]:
    """FLOPs of training on `tokens` positions in canvases of `length`, forward and backward, by where they go."""
    g = geometry
    return {
        "weights": 6 * (g.active_parameters - g.embedding_parameters) * tokens,
        "attention": 12 * g.attention_layers * g.heads * g.head_width * length * tokens,
        "vocabulary": round(6 * g.width * g.vocabulary * tokens * MASKED_SHARE),
    }


def flops(geometry: Geometry, tokens: int, length: int) -> int:
    return sum(flop_parts(geometry, tokens, length).values())


def hours(flops: float, card: Card, devices: int = 1, utilisation: float = 0.4) -> float:
    """utilisation: the share of the peak that a run gets, 0 to 1."""
    return flops / (card.peak * utilisation * devices) / 3600


def training_memory(
    geometry: Geometry, length: int, micro_batch: int = 1, mixed: bool = True, shards: int = 1
) -> Memory:
    """Bytes on each device: float32 state under AdamW, activations of `micro_batch` canvases, in bfloat16 if `mixed`.

    shards: devices over which weights, gradients and moments are split; each then holds two layers whole at a time.
    """
    g, size = geometry, 2 if mixed else 4
    whole = g.matrix_parameters if shards == 1 else 2 * g.matrix_parameters // g.layers
    copies = whole * size if mixed or shards > 1 else 0  # the matrices as the products take them
    masked = max(1, round(micro_batch * length * MASKED_SHARE))
    return Memory(
        weights=4 * g.parameters // shards + copies,
        gradients=4 * g.parameters // shards,
        moments=8 * g.parameters // shards,
        activations=micro_batch * length * g.layers * _kept_for_backward(g, length, size),
        # the logits, their float32 copy and its gradient
        logits=min(masked * g.vocabulary, max(LOGITS_AT_ONCE, g.vocabulary)) * (size + 4 + 4),
    )


def _kept_for_backward(g: Geometry, length: int, size: int) -> int:
    """Bytes that a layer keeps of a token: what PyTorch saves of a LLaMA block, counted.

    In float32 at any precision: input and normalised input of two norms. In the products' dtype: the inputs of attention and
    feed-forward part; queries, keys, values, result; gate, its activation, up, their product; a row of the mask. A matrix
    of scores comes as a float32 softmax and what the product takes.
    """
    attention = 2 * g.heads * g.head_width + 2 * g.kv_heads * g.head_width
    scores = g.heads * length * (4 + size) if g.attention_matrix else 0
    return 16 * g.width + size * (2 * g.width + attention + 4 * g.intermediate + length) + scores


def inference_memory(geometry: Geometry, length: int, size: int = 2, rows: int = TILE_ROWS) -> Memory:
    """Bytes of filling one text of `length` masked positions in a tile of `rows`; size: bytes of a number, 2 or 4."""
    g = geometry
    attention = 2 * g.heads * g.head_width + 2 * g.kv_heads * g.head_width
    # one layer at a time: stream, normalised stream, result, and the larger of its two parts; a float32 copy for the norm
    working = size * (3 * g.width + max(attention, 3 * g.intermediate)) + 4 * g.width
    scores = g.heads * length * (4 + size) if g.attention_matrix else 0
    return Memory(
        weights=size * g.parameters,
        gradients=0,
        moments=0,
        activations=rows * length * (working + scores),
        logits=length * g.vocabulary * (size + 4 + 4),
    )


def estimates(geometry: Geometry, tokens: int, length: int, utilisation: float = 0.4) -> dict[str, Any]:
    """{"memory": ..., "cost": ...} of training on `tokens` in canvases of `length` and of filling one, with the assumptions:
    a document for programs and people."""
    training = {kind: training_memory(geometry, length, mixed=kind == "mixed") for kind in ("mixed", "float32")}
    inference = {kind: inference_memory(geometry, length, size) for kind, size in (("bfloat16", 2), ("float32", 4))}
    total = flops(geometry, tokens, length)
    memory = {
        "length": length,
        "training": {kind: found.as_dict() for kind, found in training.items()},
        "inference": {kind: found.as_dict() for kind, found in inference.items()},
        "assumptions": {key: ASSUMPTIONS[key] for key in ("training", "inference")},
    }
    cards = [
        {
            "card": name,
            "peak_flops": card.peak,
            "memory_bytes": card.memory,
            "hours": {str(devices): hours(total, card, devices, utilisation) for devices in DEVICES},
            "training_fits": training["mixed"].total <= card.memory,
            "inference_fits": inference["bfloat16"].total <= card.memory,
        }
        for name, card in CARDS.items()
    ]
    cost = {
        "tokens": tokens,
        "length": length,
        "flops": total,
        "flops_by_part": flop_parts(geometry, tokens, length),
        "training_state_bytes": 16 * geometry.parameters,  # float32 weights, gradients and two AdamW moments
        "utilisation": utilisation,
        "cards": cards,
        "assumptions": {key: ASSUMPTIONS[key] for key in ("flops", "cards")},
    }
    return {"memory": memory, "cost": cost}
