"""Who can look at whom, measured: change a token, see which outputs move, compare with the matrix that was asked for."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.denoiser.denoiser import Denoiser, evaluating
from diffulm.randomness import uniform
from diffulm.shapes import Bool

LENGTH = 12  # positions of the probe on the real weights: three forwards of a few rows, seconds even for 7B
# How far our logits may be from the parent's, in standard deviations of the logits. Another kernel gives 4e-6 in float32
# and 2e-2 in bfloat16; a wrong mask 0.05 and more with random weights, several units with trained ones.
IDENTITY_LIMIT, COARSE_LIMIT = 0.01, 0.15


@dataclass(frozen=True)
class Probe:
    """What was measured. identity: largest difference from the parent's own logits, in their standard deviations."""

    full: bool  # under full visibility an earlier output moves with a later token
    causal: bool  # under a causal matrix none does
    mirrored: bool  # under a mirrored causal matrix no later output moves with an earlier token
    identity: float
    where: bool  # logits asked for at some positions are the rows of the whole
    window: bool | None  # identity and influence beyond the sliding window, on a tiny twin; None: no window
    backend: str
    limit: float = IDENTITY_LIMIT

    @property
    def reason(self) -> str | None:
        """Why the model is refused, or None."""
        if not self.causal:
            return "an output moves with a token that a causal matrix hides: it does not obey the attention mask"
        if not self.full:
            return "no earlier output moves with a later token under full visibility: it can only look left"
        if not self.mirrored:
            return "an output moves with a token to its left that the matrix hides: not only attention mixes its tokens"
        if not self.identity <= self.limit:  # NaN is refused, too
            return f"under a causal matrix its logits differ from its own forward by {self.identity:.1e} deviations"
        if not self.where:
            return "logits asked for at some positions differ from those of the whole: its output embedding is special"
        if self.window is False:
            return "beyond its sliding window it does not follow the windowed mask"
        return None


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
    return _moved(out[1:], out[0]).T.cpu()


def _moved(out: Tensor, base: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(k, q): largest change over the vocabulary, beyond what rounding could give.

    In float32 other rows of a batch may be rounded by another kernel, several times over; in 16 bits such a difference
    is seldom, and a wider margin would hide what is looked for.
    """
    unit = (64 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    return (out - base).abs().amax(-1) > unit * base.abs().max()


def probe(denoiser: Denoiser, own_logits: Tensor, ids: Tensor) -> Probe:
    """Attention probe and identity check on the real weights, and beyond the window on a tiny twin.

    ids (1, L); own_logits (1, L, V): what the parent itself says to them. One forward of six rows: two texts, that differ
    at one end, under each of three matrices.
    """
    length, dtype = ids.shape[1], denoiser.model.get_input_embeddings().weight.dtype
    causal = visibility.causal(length, device=ids.device)
    matrices = torch.stack([causal, causal, torch.ones_like(causal), torch.ones_like(causal), causal.T, causal.T])
    rows = ids.repeat(6, 1)
    for row, column in ((1, -1), (3, -1), (5, 0)):
        rows[row, column] = (rows[row, column] + 1) % denoiser.vocabulary
    # the parent has its window and every token, whatever the record makes of it
    plain = Denoiser(denoiser.model, replace(denoiser.record, window="keep", emit_mask=True), denoiser.additive)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, [1, length - 1]] = True
    with evaluating(denoiser.model):
        out = plain.rows(rows, matrices).float()
        some = plain(ids, causal, where).float()
    own, scale = own_logits[0].float(), own_logits.float().std().clamp_min(1e-12)
    limit = IDENTITY_LIMIT if dtype == torch.float32 else COARSE_LIMIT
    by_causal, by_full, by_mirrored = (_moved(out[i + 1 : i + 2], out[i], dtype)[0] for i in (0, 2, 4))
    return Probe(
        # a window hides the last token from the first rows: any earlier row will do
        full=bool(by_full[:-1].any()),
        causal=not bool(by_causal[:-1].any()),
        mirrored=not bool(by_mirrored[1:].any()),
        identity=float((out[0] - own).abs().max() / scale),
        where=bool((some - out[0, [0, length - 2]]).abs().max() / scale <= limit),
        window=_window_holds(denoiser),
        backend="eager, additive float mask" if denoiser.additive else "sdpa, boolean mask",
        limit=limit,
    )


def _window_holds(denoiser: Denoiser) -> bool | None:
    """On a tiny twin with a window of 4 and 12 positions: identity under causal, and the right influence under full."""
    if all(size is None for size in denoiser.windows.values()):
        return None
    model = tiny_twin(denoiser.model, window=4)
    record = denoiser.record.with_vocabulary(model.config.get_text_config(decoder=True).vocab_size)
    twin = Denoiser(model, record, denoiser.additive)
    kept = Denoiser(model, replace(record, window="keep"), denoiser.additive)
    ids = probe_ids(twin, LENGTH)
    with evaluating(model):
        own = model(input_ids=ids).logits
        ours = kept.rows(ids, visibility.causal(LENGTH))
    if not float((own - ours).abs().max() / own.std().clamp_min(1e-12)) <= IDENTITY_LIMIT:
        return False
    full = visibility.full(LENGTH)
    return torch.equal(influence(twin, LENGTH, full), expected_influence(twin, full))


def expected_influence(denoiser: Denoiser, visible: Bool[Tensor, "l l"]) -> Bool[Tensor, "l l"]:
    """What `influence` must be for a model that obeys `visible` and the record's window, layer by layer."""
    kinds = getattr(denoiser.config, "layer_types", None) or [next(iter(denoiser.windows))]
    if len(kinds) == 1:
        kinds = kinds * denoiser.config.num_hidden_layers
    reached = torch.eye(len(visible), dtype=torch.bool)
    for kind in kinds:
        size = None if denoiser.record.window == "lift" else denoiser.windows[kind]
        seen = visible if size is None else visible & visibility.window(len(visible), size)
        # a residual stream carries what a row has already
        reached = ((seen | torch.eye(len(visible), dtype=torch.bool)).float() @ reached.float()) > 0
    return reached


TWIN = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def tiny_twin(model: Any, window: int) -> Any:
    """The same class and wiring with random weights: a few layers (every layer type kept), width 32, the given window."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    for name, value in TWIN.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, 0)
    if kinds:
        text.layer_types = list(dict.fromkeys(kinds))
    text.num_hidden_layers = len(text.layer_types) if kinds else 2
    text.sliding_window = window
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = type(model)(config).float().eval()
    twin.set_attn_implementation(model.config._attn_implementation)
    return twin
