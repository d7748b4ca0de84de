"""Who can look at whom, measured: change a token, see which outputs move, compare with the matrix that was asked for."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffulm import visibility
from diffulm.denoiser.denoiser import Denoiser, layer_windows
from diffulm.randomness import uniform
from diffulm.shapes import Bool

LENGTH = 12  # positions of the probe on the real weights: two forwards of a few rows, seconds even for 7B


@dataclass(frozen=True)
class Probe:
    """What was measured. identity: largest difference from the parent's own logits, as a multiple of their deviation."""

    full: bool
    causal: bool
    identity: float
    window: bool | None  # identity and symmetry beyond the sliding window, on a tiny twin; None: no window
    backend: str

    @property
    def reason(self) -> str | None:
        """Why the model is refused, or None."""
        if not self.causal:
            return "an output moves with a token that a causal matrix hides: it does not obey the attention mask it is given"
        if not self.full:
            return "no earlier output moves with a later token under full visibility: it can only look left"
        if self.identity > IDENTITY_LIMIT:
            return f"under a causal matrix its logits differ from its own forward by {self.identity:.1e} deviations"
        if self.window is False:
            return "beyond its sliding window it does not follow the windowed mask"
        return None


# In units of the logits' standard deviation. Other kernels give 4e-6 in float32 and 2e-2 in bfloat16; a wrong mask gives
# 0.05 and more (random weights) up to several units (trained ones).
IDENTITY_LIMIT = 0.03


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off (GPT-2 has 0.1 by default) and no gradients, then everything as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def probe_ids(denoiser: Denoiser, length: int, seed: int = 0) -> Tensor:
    """(1, length) ids drawn evenly from the vocabulary, never the mask token."""
    u = uniform(seed, torch.arange(length))
    ids = (u * (denoiser.vocabulary - 1)).long()
    return (ids + (ids >= denoiser.record.mask_token_id).long())[None].to(denoiser.device)


def influence(denoiser: Denoiser, length: int, visible: Tensor | None = None, seed: int = 0) -> Bool[Tensor, "l l"]:
    """[q, k] = output row q moves when input token k changes, by length + 1 rows of one forward.

    Through n layers that is the n-th boolean power of `visible | diagonal`: see `reach`.
    """
    ids = probe_ids(denoiser, length, seed).repeat(length + 1, 1)
    other = (ids + 1) % denoiser.vocabulary
    at = torch.arange(length, device=ids.device)
    ids[at + 1, at] = other[at + 1, at]
    with evaluating(denoiser.model):
        out = denoiser.rows(ids, visible).float()
    return _moved(out[1:], out[0]).T.cpu()


def reach(visible: Bool[Tensor, "l l"], layers: int) -> Bool[Tensor, "l l"]:
    """What an influence matrix must be for a model of `layers` layers that obeys `visible`."""
    step = (visible | torch.eye(len(visible), dtype=torch.bool)).float()
    return torch.linalg.matrix_power(step, layers) > 0


def _moved(out: Tensor, base: Tensor) -> Tensor:
    """(k, q): largest change over the vocabulary, beyond what another kernel's rounding could give."""
    return (out - base).abs().amax(-1) > 64 * torch.finfo(torch.float32).eps * base.abs().max()


def probe(denoiser: Denoiser, own_logits: Tensor, ids: Tensor) -> Probe:
    """Attention probe and identity check on the real weights, and beyond the window on a tiny twin.

    own_logits (1, L, V): what the parent itself said for `ids` before anything was changed. Under bfloat16 the comparison
    with its own forward is as coarse as that format.
    """
    length = ids.shape[1]
    columns = [i for i in range(own_logits.shape[-1]) if i != denoiser.record.mask_token_id]
    with evaluating(denoiser.model):
        ours = denoiser.rows(ids, visibility.causal(length, device=ids.device))[..., columns].float()
    theirs = own_logits[..., columns].float()
    sees_future, obeys_causal = _looks(denoiser, ids)
    identity = float((ours - theirs).abs().max() / theirs.std().clamp_min(1e-12))
    backend = "eager, additive float mask" if denoiser.additive else "sdpa, boolean mask"
    return Probe(sees_future, obeys_causal, identity, _window_holds(denoiser), backend)


def _looks(denoiser: Denoiser, ids: Tensor) -> tuple[bool, bool]:
    """(under full, an earlier output moves with the last token; under causal, none does)."""
    length = ids.shape[1]
    pair = ids.repeat(2, 1)
    pair[1, -1] = (pair[1, -1] + 1) % denoiser.vocabulary
    with evaluating(denoiser.model):
        full = denoiser.rows(pair, visibility.full(length, device=ids.device)).float()[:, :-1]
        causal = denoiser.rows(pair, visibility.causal(length, device=ids.device)).float()[:, :-1]
    # a window hides the last token from the first rows, and one layer need not carry it everywhere: any earlier row will do
    return bool(_moved(full[1:], full[0]).any()), not bool(_moved(causal[1:], causal[0]).any())


def _window_holds(denoiser: Denoiser) -> bool | None:
    """On a tiny twin with a window of 4 and 12 positions: identity under causal, and the right influence under full."""
    if all(size is None for size in layer_windows(denoiser.config).values()):
        return None
    model = tiny_twin(denoiser.model, window=4)
    twin = Denoiser(model, denoiser.record.with_vocabulary(model.config.vocab_size), denoiser.additive)
    ids = probe_ids(twin, LENGTH)
    with evaluating(model):
        own = model(input_ids=ids).logits
        ours = twin.rows(ids, visibility.causal(LENGTH))
    if float((own - ours).abs().max() / own.std().clamp_min(1e-12)) > IDENTITY_LIMIT:
        return False
    layers = model.config.num_hidden_layers
    sliding = [layer_windows(model.config).get(kind) for kind in getattr(model.config, "layer_types", None) or ()]
    one = visibility.full(LENGTH)
    expected = torch.eye(LENGTH, dtype=torch.bool)
    for size in sliding or [4] * layers:
        seen = one if size is None or denoiser.record.window == "lift" else visibility.window(LENGTH, size)
        expected = (seen.float() @ expected.float()) > 0
    return torch.equal(influence(twin, LENGTH, one), expected)


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
