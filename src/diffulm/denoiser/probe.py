"""Who can look at whom, measured: change a token, see which outputs move, compare with the matrix that was asked for."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffulm import visibility
from diffulm.denoiser import layers
from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.denoiser.twin import twin_of
from diffulm.errors import BadInput
from diffulm.randomness import uniform
from diffulm.shapes import Bool

LENGTH = 12  # positions of the probe on the real weights: three forwards of a few rows, seconds even for 7B
BLOCK = 4  # positions a block, where the block-causal matrix is probed
LAYER_LENGTH = 6  # positions where each layer is looked at by itself
# How far our logits may be from the parent's, in standard deviations of the logits. Another kernel gives 4e-6 in float32
# and 2e-2 in bfloat16, 7e-2 with 8-bit layers; a wrong mask 0.05 and more with random weights, several units with trained ones.
IDENTITY_LIMIT, COARSE_LIMIT = 0.01, 0.15

# What a layer does with a matrix.
OBEYS = "both sides"  # looks where the matrix lets it
PARALLEL = "both sides, left always"  # looks right where the matrix lets it, and left whatever it says
LEFT = "left always"  # looks left whatever the matrix says: a recurrence
CAUSAL = "left"  # takes what the matrix hides, but never looks right
NOTHING = "nowhere"  # mixes no tokens
LEAKS = "hidden tokens"  # looks right where a causal matrix forbids it


@dataclass(frozen=True)
class Probe:
    """What was measured. identity: largest difference from the parent's own logits, in their standard deviations."""

    full: bool  # under full visibility an earlier output moves with a later token
    causal: bool  # under a causal matrix none does
    mirrored: bool  # under a mirrored causal matrix no later output moves with an earlier token
    block: bool  # under a block-causal matrix a later token moves its own block and none before it
    identity: float
    where: bool  # logits asked for at some positions are the rows of the whole
    window: bool | str | None  # identity and influence beyond window or chunk, on a tiny twin, or why it could not be
    # measured; None: every layer sees all
    backend: str
    limit: float = IDENTITY_LIMIT
    layers: tuple[tuple[str, str], ...] | None = None  # (kind, how it looks) of each; None: could not be told apart

    @property
    def reason(self) -> str | None:
        """Why the model is refused, or None."""
        if not math.isfinite(self.identity):
            return "its logits are NaN or infinite: weights of a run that diverged, or a damaged file"
        if not self.causal:
            return "an output moves with a token that a causal matrix hides: it does not obey the attention mask"
        if not self.full:
            return "no earlier output moves with a later token under full visibility: it can only look left"
        if self.identity > self.limit:
            return f"under a causal matrix its logits differ from its own forward by {self.identity:.1e} deviations"
        if fault := next((f for f in map(_fault, range(len(self.layers or ())), self.layers or ()) if f), None):
            return fault
        if not self.mirrored and not self.left_layers:
            return "an output moves with a token to its left that the matrix hides: not only attention mixes its tokens"
        if not self.block:
            return "under a block-causal matrix a block does not see itself and what is before it, and nothing else"
        if not self.where:
            return "logits asked for at some positions differ from those of the whole: its output embedding is special"
        if isinstance(self.window, str):
            return f"what it does beyond its window could not be measured: {self.window}"
        if self.window is False:
            return "beyond its sliding window or chunk it does not follow the matrix of that layer"
        return None

    @property
    def left_layers(self) -> list[int]:
        """The layers that look left whatever the matrix says: the recurrent ones of a hybrid."""
        return [i for i, (_, look) in enumerate(self.layers or ()) if look in (LEFT, PARALLEL)]


def _fault(index: int, layer: tuple[str, str]) -> str | None:
    """What is wrong with a layer, or None. Recurrent layers may look left always, if the config says that they are."""
    kind, look = layer
    declared = kind in layers.UNMASKED | layers.PARALLEL
    if look in (OBEYS, NOTHING) or (declared and look in (LEFT, PARALLEL)):
        return None
    what = {
        CAUSAL: "can only look left",
        LEAKS: "sees tokens that a causal matrix hides",
    }.get(look, "sees tokens to its left that the matrix hides: not only attention mixes its tokens")
    return f"layer {index} ({kind}) {what}"


def probe_ids(denoiser: Denoiser, length: int, seed: int = 0) -> Tensor:
    """(1, length) ids drawn evenly from the vocabulary, never the mask token."""
    u = uniform(seed, torch.arange(length))
    ids = (u * (denoiser.vocabulary - 1)).long()
    return (ids + (ids >= denoiser.record.mask_token_id).long())[None].to(denoiser.device)


def influence(denoiser: Denoiser, length: int, visible: Tensor | None = None, seed: int = 0) -> Bool[Tensor, "l l"]:
    """[q, k] = output row q moves when input token k changes, by length + 1 rows of one forward.

    For a model that obeys: `expected_influence`.
    """
    ids = probe_ids(denoiser, length, seed).repeat(length + 1, 1)
    other = (ids + 1) % denoiser.vocabulary
    at = torch.arange(length, device=ids.device)
    ids[at + 1, at] = other[at + 1, at]
    with evaluating(denoiser.model):
        out = denoiser.rows(ids, visible).float()
    return moved(out[1:], out[0]).T.cpu()


def moved(out: Tensor, base: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., q) bool: largest change over the vocabulary, beyond what rounding could give.

    In float32 other rows of a batch may be rounded by another kernel, several times over; in 16 bits such a difference
    is seldom, and a wider margin would hide what is looked for.
    """
    unit = (64 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    return (out - base).abs().amax(-1) > unit * base.abs().max()


def probe(denoiser: Denoiser, own_logits: Tensor, ids: Tensor) -> Probe:
    """Attention probe and identity check on the real weights, and beyond the window on a tiny twin.

    ids (1, L); own_logits (1, L, V): what the parent itself says to them. One forward of eight rows: two texts, that differ
    at one end, under each of four matrices; two more that look at each layer by itself.
    """
    length, dtype = ids.shape[1], denoiser.model.get_input_embeddings().weight.dtype
    causal = visibility.causal(length, device=ids.device)
    blocks = visibility.block_causal(length, BLOCK, device=ids.device)
    matrices = torch.stack([m for m in (causal, torch.ones_like(causal), causal.T, blocks) for _ in range(2)])
    rows = ids.repeat(8, 1)
    for row, column in ((1, -1), (3, -1), (5, 0), (7, -1)):
        rows[row, column] = (rows[row, column] + 1) % denoiser.vocabulary
    # the parent has its window and every token, whatever the record makes of it
    plain = Denoiser(denoiser.model, replace(denoiser.record, window="keep", emit_mask=True), denoiser.additive)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, [1, length - 1]] = True
    with evaluating(denoiser.model):
        out = plain.rows(rows, matrices).float()
        some = plain(ids, causal, where).float()
    own, scale = own_logits[0].float(), own_logits.float().std().clamp_min(1e-12)
    coarse = dtype != torch.float32 or getattr(denoiser.model, "is_quantized", False)
    limit = COARSE_LIMIT if coarse else IDENTITY_LIMIT
    by_causal, by_full, by_mirrored, by_blocks = (moved(out[i + 1 : i + 2], out[i], dtype)[0] for i in (0, 2, 4, 6))
    last = (length - 1) // BLOCK * BLOCK  # where the last block begins
    return Probe(
        # a window hides the last token from the first rows: any earlier row will do
        full=bool(by_full[:-1].any()),
        causal=not bool(by_causal[:-1].any()),
        mirrored=not bool(by_mirrored[1:].any()),
        block=not bool(by_blocks[:last].any()) and (last == length - 1 or bool(by_blocks[last:-1].any())),
        identity=float((out[0] - own).abs().max() / scale),
        where=bool((some - out[0, [0, length - 2]]).abs().max() / scale <= limit),
        window=_beyond_window(denoiser),
        backend="eager, additive float mask" if denoiser.additive else "sdpa, boolean mask",
        limit=limit,
        layers=looks(denoiser),
    )


def _beyond_window(denoiser: Denoiser) -> bool | str | None:
    """On a tiny twin with a window of 4 and 12 positions: identity under causal, and the right influence under full."""
    special = denoiser.windows.keys() - {layers.FULL} - layers.UNMASKED - layers.PARALLEL
    if not special:
        return None
    try:
        model = twin_of(denoiser.model.config)
    except BadInput as error:
        return str(error)
    model.set_attn_implementation(denoiser.model.config._attn_implementation)
    twin = Denoiser(
        model, denoiser.record.with_vocabulary(model.get_input_embeddings().weight.shape[0]), denoiser.additive
    )
    kept = Denoiser(model, replace(twin.record, window="keep"), denoiser.additive)
    ids = probe_ids(twin, LENGTH)
    with evaluating(model):
        own = model(input_ids=ids).logits
        ours = kept.rows(ids, visibility.causal(LENGTH))
    if not float((own - ours).abs().max() / own.std().clamp_min(1e-12)) <= IDENTITY_LIMIT:
        return False
    if twin.windows.keys() & (layers.UNMASKED | layers.PARALLEL):
        return True  # how far a recurrence carries is not known in advance
    full = visibility.full(LENGTH)
    return torch.equal(influence(twin, LENGTH, full), expected_influence(twin, full))


def expected_influence(denoiser: Denoiser, visible: Bool[Tensor, "l l"]) -> Bool[Tensor, "l l"]:
    """What `influence` must be for a model whose layers all obey `visible` and the record's window, layer by layer."""
    reached = torch.eye(len(visible), dtype=torch.bool)
    positions = torch.arange(len(visible))
    for kind in layers.kinds(denoiser.config):
        size = None if denoiser.record.window == "lift" else denoiser.windows[kind]
        seen = visible if size is None else visible & layers.within(kind, size, positions, positions)
        # a residual stream carries what a row has already
        reached = ((seen | torch.eye(len(visible), dtype=torch.bool)).float() @ reached.float()) > 0
    return reached


def looks(denoiser: Denoiser) -> tuple[tuple[str, str], ...] | None:
    """(kind, how it looks) of each layer: what it makes of a row when its own input moves at one end of it.

    One forward for all layers, in float32: four rows under four matrices as they are, and the same four once more for each
    layer, disturbed at its input. None where the layers cannot be told apart or do not run once each.
    """
    modules = layers.decoder_layers(denoiser.model)
    kinds = layers.kinds(denoiser.config)
    if modules is None or len(modules) != len(kinds) or denoiser.model.dtype != torch.float32:
        return None
    causal = visibility.causal(LAYER_LENGTH, device=denoiser.device)
    ends = (-1, 0, 0, -1)  # where a row is disturbed
    matrices = torch.stack([torch.ones_like(causal), causal.T, causal, causal]).repeat(len(modules) + 1, 1, 1)
    ids = probe_ids(denoiser, LAYER_LENGTH).repeat(len(matrices), 1)
    with evaluating(denoiser.model), _disturbing(modules, ends) as outputs:
        denoiser(ids, matrices, where=torch.zeros_like(ids, dtype=torch.bool))  # nothing of the vocabulary
    if not all(len(output) == 1 for output in outputs):
        return None
    found = []
    for kind, [(before, after)] in zip(kinds, outputs, strict=True):
        # kernels round rows of a batch differently, experts meet them in groups of any size
        moves = (after - before).abs().amax(-1) > 64 * torch.finfo(torch.float32).eps * before.abs().amax(-1)
        right, always, left, leaks = (
            bool(m[1 + at : LAYER_LENGTH + at].any()) for m, at in zip(moves, ends, strict=True)
        )
        found.append((kind, _look(right, always, left, leaks)))
    return tuple(found)


def _look(right: bool, always: bool, left: bool, leaks: bool) -> str:
    if leaks:
        return LEAKS
    if right:
        return PARALLEL if always else OBEYS
    return LEFT if always else CAUSAL if left else NOTHING


@contextmanager
def _disturbing(modules: list[nn.Module], ends: tuple[int, ...]) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """For each layer and call of it: what comes out (groups, L, d) of the first rows, and of those disturbed at its input,
    which are the next after those of the layers before it."""
    groups = len(ends)
    outputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in modules]

    def own(index: int) -> slice:
        return slice((index + 1) * groups, (index + 2) * groups)

    def before(index: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = args[0] if args else options["hidden_states"]
        changed = given.clone()
        noise = 2 * uniform(index, torch.arange(given.shape[-1], device=given.device)) - 1
        changed[own(index)][range(groups), ends] += 3 * given.std() * noise.to(given.dtype)
        return ((changed, *args[1:]), options) if args else (args, options | {"hidden_states": changed})

    def after(index: int, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        outputs[index].append((hidden[:groups].clone(), hidden[own(index)].clone()))

    handles = []
    for i, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(lambda _m, a, k, i=i: before(i, a, k), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _m, _a, output, i=i: after(i, output)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
