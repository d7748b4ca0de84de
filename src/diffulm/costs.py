"""What a model costs: floating-point operations, memory and hours, from its geometry alone.

Estimates for planning, by counting: no measurement enters but the share of the peak that the caller states. Where not
told otherwise (`Method`) they are for training all weights with full visibility, in which a token looks at all others.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MASKED_SHARE = 0.5
"""Of the tokens of a step, on average: the noise level is drawn evenly from 0 to 1."""
LOGITS_AT_ONCE = 2**24
"""Elements of float32 that a chunk of logits may take, as `denoiser.head.CHUNK_ELEMENTS`."""
SLICE = 2**13
"""Rows of the output embedding that are multiplied at once, as `denoiser.head.SLICE`."""
TILE_ROWS = 8
"""Rows of a forward of sampling on an accelerator, as `denoiser.tile`."""

ROOM = 0.9
"""Share of a card's memory that a run may plan with: CUDA, the network's buffers and gaps between tensors take the rest."""

ASSUMPTIONS = {
    "flops": (
        "6 FLOPs for each active parameter (embeddings left out) and token, 4 where it is frozen; "
        "12 x attention layers x attention width x length for each token; "
        "6 x width x vocabulary for each token that is predicted: half of all, of an AR loss each. A clean copy beside the "
        "canvas doubles the rows, an AR term adds a second pass. Evaluation and saving come on top."
    ),
    "training": (
        "The fullest moment of a step. Float32 weights, gradients and two AdamW moments; mixed: bfloat16 copies of the "
        "matrices and bfloat16 activations beside float32 norms, as many as a LLaMA block keeps (families with more norms "
        "keep up to half as many again); logits in chunks. Where a step has several micro-batches, the gradients of the "
        "earlier ones are there already."
    ),
    "inference": (
        "One text in a tile of 8 rows, as on an accelerator, every position masked; weights and activations in one dtype, "
        "logits also as two float32 copies."
    ),
    "cards": (
        "Dense bfloat16 peak and memory by the vendors' data sheets, an even share on every device; what takes at most "
        f"{ROOM:.0%} of a card's memory fits on it."
    ),
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
class Method:
    """How a run trains, as far as that changes its cost.

    mixed: bfloat16 products over float32 weights. checkpointing: activations are computed a second time instead of kept.
    adapter: parameters of low-rank matrices beside a frozen parent; None: all weights train. embeddings: with an adapter
    they train as well. frozen_bytes: of a parameter of its linear layers. shards: devices over which weights, gradients and
    moments are split; each then holds two layers and the embeddings whole. buckets: gradients lie a second time in buckets
    to be exchanged (DDP). accumulates: gradients of earlier micro-batches are there when the next one begins.
    predicted: share of the positions that are projected onto the vocabulary. clean_share: of the steps that see a clean
    copy beside the canvas, two rows for each token. ar_term: an AR loss on the same text, a pass of its own.
    """

    mixed: bool = True
    checkpointing: bool = False
    adapter: int | None = None
    embeddings: bool = False
    frozen_bytes: float = 4
    shards: int = 1
    buckets: bool = False
    accumulates: bool = True
    predicted: float = MASKED_SHARE
    clean_share: float = 0.0
    ar_term: bool = False

    def trained(self, geometry: Geometry) -> int:
        """Parameters that have a gradient."""
        if self.adapter is None:
            return geometry.parameters
        return self.adapter + (geometry.embedding_parameters if self.embeddings else 0)


PLAIN = Method()


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


def flop_parts(geometry: Geometry, tokens: int, length: int, method: Method = PLAIN) -> dict[str, int]:
    """FLOPs of training on `tokens` positions in canvases of `length`, forward and backward, by where they go.

    Pairs of positions are counted as a dense product takes them, whatever of it the visibility leaves.
    """
    g, m, low_rank = geometry, method, method.adapter or 0
    rows = tokens * (1 + m.clean_share + m.ar_term)
    weights = g.active_parameters - g.embedding_parameters
    # a matrix of scores of twice the side has four times the pairs
    pairs = 4 * g.attention_layers * g.heads * g.head_width * length * tokens * (1 + 3 * m.clean_share + m.ar_term)
    head = 6 if m.adapter is None or m.embeddings else 4
    parts = {
        "weights": round(((6 if m.adapter is None else 4) * weights + 6 * low_rank) * rows),
        "attention": round(3 * pairs),
        "vocabulary": round(head * g.width * g.vocabulary * tokens * (m.predicted + m.ar_term)),
    }
    if m.checkpointing:
        parts["recomputation"] = round(2 * (weights + low_rank) * rows + pairs)
    return parts


def flops(geometry: Geometry, tokens: int, length: int, method: Method = PLAIN) -> int:
    return sum(flop_parts(geometry, tokens, length, method).values())


def hours(flops: float, card: Card, devices: int = 1, utilisation: float = 0.4) -> float:
    """utilisation: the share of the peak that a run gets, 0 to 1."""
    return flops / (card.peak * utilisation * devices) / 3600


def low_rank_parameters(geometry: Geometry, rank: int) -> int:
    """Of matrices of this rank beside every linear layer; experts, and matrices that a family has fused, count otherwise."""
    g, queries, keys = geometry, geometry.heads * geometry.head_width, geometry.kv_heads * geometry.head_width
    attention = 2 * g.width * (queries + keys)
    other = (g.active_parameters - g.embedding_parameters) // g.layers - attention
    feed_forward = max(1, round(other / (g.width * g.intermediate)))  # 3 matrices with a gate, 2 without
    sides = 2 * (2 * g.width + queries + keys) + feed_forward * (g.width + g.intermediate)
    return rank * sides * g.layers


def training_memory(geometry: Geometry, length: int, micro_batch: int = 1, method: Method = PLAIN) -> Memory:
    """Bytes on each device at the fullest moment of a step: as its forward ends, or as its backward begins or ends."""
    g, m, size, once = geometry, method, 2 if method.mixed else 4, 2 if method.clean_share else 1
    trained, positions = m.trained(g), micro_batch * length * (once + m.ar_term)
    layer, head = (g.parameters - g.embedding_parameters) // g.layers, g.width * g.vocabulary
    streamed = m.shards > 1 or m.frozen_bytes < size  # gathered, or unpacked, when their turn comes
    copies = size * (2 * layer + head * (1 if g.tied else 2) if streamed else g.matrix_parameters)
    outside = g.parameters if m.adapter is None else g.embedding_parameters + m.adapter  # never quantised
    weights = round(4 * outside + m.frozen_bytes * (g.parameters + (m.adapter or 0) - outside)) // m.shards
    gradients, buckets = 4 * trained // m.shards, 4 * trained * m.buckets
    # of the output embedding, by itself before it is added to what is there; an AR term has one of its own
    whole = 4 * head * (m.adapter is None or m.embeddings)
    before = gradients * m.accumulates + buckets + whole * (1 + m.ar_term)
    kept = positions * _kept_for_backward(g, length * once, size)
    stored = positions * g.layers * 4 * g.width if m.checkpointing else g.layers * kept
    wanted = max(1, round(micro_batch * length * max(m.predicted, m.ar_term))) * g.vocabulary
    # a chunk of logits; of a part of it the logarithms of probability in float32; of the matrix and its gradient a slice
    logits = (
        min(size * wanted, 4 * LOGITS_AT_ONCE) + min(4 * wanted, LOGITS_AT_ONCE) + 2 * size * min(head, SLICE * g.width)
    )

    def moment(activations: int, gradients: int, copies: int = 0, logits: int = 0) -> Memory:
        return Memory(weights + copies * (m.mixed or streamed), gradients, 8 * trained // m.shards, activations, logits)

    moments = (
        moment(stored, before, copies, logits),
        # a layer computed again, and the gradients that pass it
        moment(stored + kept * (1 + m.checkpointing), before, copies * (streamed or not m.checkpointing)),
        # the last layer's; then the gradient of the embedding, by itself as well
        moment(2 * kept, gradients + buckets + whole * m.accumulates, copies * streamed),
        moment(0, gradients + buckets + whole * (g.tied + m.accumulates)),
    )
    return max(moments, key=lambda each: each.total)


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


def card_rows(total: int, utilisation: float, devices: Iterable[int] = DEVICES) -> list[dict[str, Any]]:
    """What each card is, and the hours that `total` FLOPs take on so many of them."""
    return [
        {
            "card": name,
            "peak_flops": card.peak,
            "memory_bytes": card.memory,
            "hours": {str(count): hours(total, card, count, utilisation) for count in devices},
        }
        for name, card in CARDS.items()
    ]


def fits(memory: Memory, card: str) -> bool:
    return memory.total <= ROOM * CARDS[card].memory


def estimates(geometry: Geometry, tokens: int, length: int, utilisation: float = 0.4) -> dict[str, Any]:
    """{"memory": ..., "cost": ...} of training on `tokens` in canvases of `length` and of filling one, with the assumptions:
    a document for programs and people."""
    training = {
        kind: training_memory(geometry, length, method=Method(mixed=kind == "mixed")) for kind in ("mixed", "float32")
    }
    inference = {kind: inference_memory(geometry, length, size) for kind, size in (("bfloat16", 2), ("float32", 4))}
    total = flops(geometry, tokens, length)
    memory = {
        "length": length,
        "training": {kind: found.as_dict() for kind, found in training.items()},
        "inference": {kind: found.as_dict() for kind, found in inference.items()},
        "assumptions": {key: ASSUMPTIONS[key] for key in ("training", "inference")},
    }
    cards = card_rows(total, utilisation)
    for row in cards:
        row["training_fits"] = fits(training["mixed"], row["card"])
        row["inference_fits"] = fits(inference["bfloat16"], row["card"])
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
