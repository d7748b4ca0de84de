"""The order gap: how much of what a diffusion model costs is the averaging over orders, and how much adaptation has lost.

The same tokens of the same texts, read by the AR parent, by the adapted weights under a causal matrix, from left to right
with the rest masked, from right to left, in a few random orders, and as the mean over all orders: the any-order bound.
"""

from collections.abc import Sequence

from diffulm import randomness, scoring
from diffulm.canvas import encode
from diffulm.evaluation.subject import Subject
from diffulm.scoring import Method, Request

AR = "autoregressive"
READINGS: dict[str, Method] = {
    AR: "autoregressive",
    "left to right": "left_to_right",
    "right to left": "right_to_left",
    "mean probability of a few orders": "multi_order",
    "any-order bound": "bound",
}
FEW = 4


def requests(subject: Subject, texts: Sequence[tuple[str, str]], length: int) -> list[Request]:
    """The first `length` positions of each (key, text), BOS among them and EOS behind a text that ends before; all but BOS
    free. Texts shorter than two tokens are left out."""
    eos = [] if subject.tokenizer.eos_token_id is None else [subject.tokenizer.eos_token_id]
    made = []
    for key, text in texts:
        ids = (*subject.bos, *encode(subject.tokenizer, text), *eos)[: min(length, subject.context)]
        if len(ids) > 2:
            made.append(Request(tuple(ids), max(1, len(subject.bos)), len(ids), randomness.key(key)))
    return made


def order_gap(
    subject: Subject, asked: Sequence[Request], draws: int = 32, orders: int = FEW, seed: int = 0
) -> dict[str, list[scoring.Scored]]:
    """What each request costs by each reading; an AR model has one.

    "mean probability of a few orders" is the multi-order bound: -log of the mean over `orders` random orders of the text's
    probability, between the any-order likelihood and the any-order bound in expectation. "best of a few orders": the least
    of left to right, right to left and those, + log of how many they are (the price of being chosen on the text itself). A
    block-causal model has neither of them: its orders are within a block.
    """
    whole = subject.lm.record.attention == "full"
    readings: dict[str, Method] = (
        READINGS if whole else {name: READINGS[name] for name in (AR, "left to right", "any-order bound")}
    )
    if subject.autoregressive:
        readings = {AR: READINGS[AR]}
    found = {
        name: scoring.scores(subject.denoiser, asked, method, draws, seed, orders) for name, method in readings.items()
    }
    if "right to left" in found:
        found["best of a few orders"] = [
            scoring.best_of([*few.values, left.nats, right.nats], few.tokens)
            for few, left, right in zip(
                found["mean probability of a few orders"], found["left to right"], found["right to left"], strict=True
            )
        ]
    return found
