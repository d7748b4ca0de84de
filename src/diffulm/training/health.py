"""Is my loss normal? A verdict on a run from the rows of its metrics.jsonl, one rule a function.

Every threshold is a reference that the run itself has measured at step 0: the unigram entropy of the text (what knowing the
frequencies of tokens and nothing else costs), the parent's AR loss (what knowing the left side costs), the first evaluation,
the share of EOS in the text. A rule returns what looks wrong and what usually causes it, or None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SAME = 1e-4
"""Nats: two evaluations of the same weights differ by float error, some 1e-6; one step of a real run by more than this."""
TENTH = 1.1
"""Held-out text has other frequencies than the text they were counted on; a tenth more than their entropy is another matter."""
LEARNT = 0.05
"""Of the way from the unigram entropy to the parent's loss: a model that has not gone so far has learnt frequencies alone."""
MOSTLY = 2 / 3
"""Of the same way, with little masked: such a model uses what it sees, from whatever side. All of the way, and more, is where
it should come; the 260K parent was half way after 200K tokens, and its right side still disturbed it."""
DRAWN = 8
"""Samples of an evaluation."""


@dataclass(frozen=True)
class Run:
    """steps: rows with a training loss. looks: rows with a held-out loss, the first at step 0. config: the run's settings."""

    steps: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    config: dict[str, Any]

    @property
    def autoregressive(self) -> bool:
        return self.config.get("objective") == "autoregressive"

    @property
    def tuning(self) -> bool:
        """Whether it is a run of `diffulm sft`, whose held-out losses and frequencies are those of replies alone."""
        return "eval_rows" in self.config

    @property
    def held_out(self) -> str:
        return "eval_ar" if self.autoregressive else "eval_bound"

    @property
    def in_nats(self) -> bool:
        """Whether the training loss is in nats a token, to be compared with held-out losses."""
        return self.config.get("objective") in ("bound", "row_mean", "autoregressive") and not self.config.get(
            "ar_weight"
        )

    @property
    def unigram(self) -> float:
        return self.looks[0].get("eval_unigram", math.inf)

    @property
    def parent(self) -> float | None:
        """The parent's AR loss; None where there is no trained parent."""
        return None if self.config.get("scratch") else self.looks[0].get("eval_parent")

    @property
    def open(self) -> bool:
        """Whether the learning rate has risen and the attention is what the model ends with, so that held-out figures count:
        they are measured under that attention."""
        rates = [row["learning_rate"] for row in self.steps if "learning_rate" in row]
        risen = len(rates) > 1 and rates[-1] <= max(rates[:-1])
        last = [row for row in self.steps if row.get("stages_left", 0) == 0]
        opened = [row["step"] for row in last if row.get("anneal_ratio", 1) >= 1 or self.autoregressive]
        return risen and bool(opened) and self.looks[-1]["step"] >= opened[0]

    @property
    def loss(self) -> float:
        """Training loss now: the mean of the last tenth of the rows, three at least, since one is noisy."""
        last = [row["loss"] for row in self.steps][-max(3, len(self.steps) // 10) :]
        return sum(last) / len(last)

    @property
    def untaught(self) -> float:
        """A loss above this knows no more than how frequent tokens are."""
        best = 0.0 if self.parent is None else self.parent
        return self.unigram - LEARNT * max(self.unigram - best, 0.0)


@dataclass(frozen=True)
class Verdict:
    line: str
    warnings: dict[str, str]
    """By the name of the rule that found it."""


def examine(rows: list[dict[str, Any]], config: dict[str, Any]) -> Verdict:
    """The verdict on a run, finished or not, by its log and its settings as plain values."""
    key = "eval_ar" if config.get("objective") == "autoregressive" else "eval_bound"
    run = Run([row for row in rows if "loss" in row], [row for row in rows if key in row], config)
    if not run.looks:
        return Verdict("too early to say: nothing has been measured yet", {})
    found = {rule.__name__: said for rule in RULES if (said := rule(run)) is not None}
    if found:
        rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return Verdict(f"something looks wrong: {next(iter(found.values()))}{rest}", found)
    return Verdict(_well(run), {})


def _well(run: Run) -> str:
    """What can be said of a run in which no rule finds anything wrong."""
    now, start = run.looks[-1], run.looks[0]
    loss = now[run.held_out]
    if not run.steps or not run.open or len(run.looks) < 3:
        return "too early to say: too few steps under the final learning rate and attention, with two evaluations"
    if run.autoregressive:
        found = "healthy" if loss <= start[run.held_out] else "no better than it was"
        return f"{found}: held-out loss {start[run.held_out]:.2f} -> {loss:.2f}"
    if loss >= run.unigram:
        return f"too early to say: the bound, {loss:.2f}, has not come below the unigram entropy {run.unigram:.2f} yet"
    # below the parent's AR loss where little is masked, for both sides help; near the unigram entropy where nothing helps
    least, most = (_level(now, levels) for levels in (LEAST, MOST))
    at_most = "" if most is None else f"; with nearly all masked {most:.2f}, unigram entropy {run.unigram:.2f}"
    if run.parent is None or least is None:
        said = (
            f"; {now['eval_empty']:.0%} of its replies are empty, {now['eval_ended']:.0%} end"
            if "eval_empty" in now
            else ""
        )
        return f"healthy: bound {start[run.held_out]:.2f} -> {loss:.2f}{at_most}{said}"
    beside = (
        f"with 5% of the text masked a token costs {least:.2f}, the parent reading left to right pays {run.parent:.2f}"
    )
    if least >= run.parent:
        return f"nothing looks wrong, and there is more to gain: {beside}; more tokens should bring it below"
    return f"healthy: {beside}{at_most}"


LEAST: tuple[str, ...] = ("eval_noise_05", "eval_noise_15")
MOST: tuple[str, ...] = ("eval_noise_95",)


def _level(look: dict[str, Any], names: tuple[str, ...]) -> float | None:
    """The held-out loss at the first of these noise levels that was drawn."""
    return next((look[name] for name in names if name in look), None)


# --- the rules ---


def labels(run: Run) -> str | None:
    """Labels not shifted. A trained parent that is read rightly is better than the frequencies of tokens at once, by nats;
    one that is read a row off is worse. Of replies it knows no frequencies: those may be of a few words, and new to it."""
    if run.tuning or run.parent is None or run.parent <= run.unigram:
        return None
    return (
        f"the parent's AR loss on held-out text is {run.parent:.2f}, above the unigram entropy {run.unigram:.2f}: its outputs "
        "are not read as it was trained; usually labels that are not shifted by one, another tokenizer, or a parent that was "
        "never trained"
    )


def masking(run: Run) -> str | None:
    """Nothing masked: then there is no loss at all; or the answers stand in the input, which makes training easy, and a
    text that is nearly all masks stays what the model has never seen: worse than the frequencies of tokens."""
    if run.steps and all(row["loss"] == 0 for row in run.steps):
        return (
            "the training loss is exactly 0: no token is masked; usually noise levels of 0, or text that is all fixed"
        )
    now, most = run.looks[-1], _level(run.looks[-1], MOST)
    # a text that is mostly EOS is cheap by itself
    comparable = run.open and run.in_nats and not run.autoregressive and len(run.looks) > 2 and eos(run) is None
    if not comparable or most is None or run.config.get("noise_ceiling", 1) < 1:
        return None
    easy = run.loss < now["eval_bound"] - 3 * now.get("eval_bound_stderr", math.inf)  # one in a thousand by chance
    if easy and most > TENTH * run.unigram:
        return (
            f"training costs {run.loss:.2f} and held-out text {now['eval_bound']:.2f}, which with nearly all of it masked is "
            f"dearer than its unigram entropy ({most:.2f} against {run.unigram:.2f}): the model is shown the answers; usually "
            "tokens that carry loss but are not replaced by the mask, or a text so short that it was learnt by heart"
        )
    return None


def future(run: Run) -> str | None:
    """Attention left causal: the matrix does not reach the layers (then the future changes nothing, exactly), or training
    never opened it (then it goes on doing harm, which training under open attention undoes from one look to the next). Early
    in a run it does harm in any case: a model must use what it sees on the left before more of it helps."""
    now = run.looks[-1]
    if "eval_future" not in now:
        return None
    gain, error = now["eval_future"], now.get("eval_future_stderr", math.inf)
    if abs(gain) < 1e-6:  # other shapes of the same sums; a model that looks right at all is orders above
        return (
            "what stands to the right of a mask changes nothing: attention is causal; usually an attention implementation "
            "that ignores the matrix it is given (`diffulm inspect` says which positions move)"
        )
    least = _level(now, LEAST)
    if run.parent is None or least is None or least > run.unigram - MOSTLY * (run.unigram - run.parent):
        return None
    taught = run.open and len(run.looks) > 2 and not _stuck(run) and eos(run) is None  # on text like the held-out text
    better = gain > run.looks[-2].get("eval_future", gain) + error if taught else False
    if taught and not better and gain < -3 * error:  # one in a thousand by chance
        return (
            f"seeing the right side costs {-gain:.2f} nats a token instead of helping, though attention is open: it was "
            "trained under a causal matrix; usually an annealing that never reached the model"
        )
    return None


def learning_rate(run: Run) -> str | None:
    """Learning rate too high: the model forgets what the parent knew, down to the frequencies of tokens or worse, and does
    not come back. Frozen weights do not learn either, but they stay where they were."""
    if any(not math.isfinite(row["loss"]) for row in run.steps):
        return "the training loss is not a number; usually a learning rate that is too high, or an overflow in low precision"
    if not run.open or len(run.looks) < 3 or _stuck(run):
        return None
    before, now = (look[run.held_out] for look in run.looks[-2:])
    falling = now < before - (run.unigram - run.untaught)
    if run.tuning:  # few tokens, at a low rate: slow, but nothing is forgotten
        falling = now < min(look[run.held_out] for look in run.looks[:-1]) - SAME
    lost = (run.loss if run.in_nats else now) > run.untaught
    if lost and now > run.untaught and not falling:
        return (
            f"held-out loss {now:.2f}, no better than the unigram entropy {run.unigram:.2f}, and not falling: the parent's "
            "knowledge is gone; usually a learning rate that is too high (try a tenth), or a warm-up that is too short"
        )
    return None


def eos(run: Run) -> str | None:
    """EOS collapse: samples that are mostly end of text. The tokens of a sample hang together, so its share is known no
    better than from one draw a sample: four standard errors of that above the share in the text."""
    now, first = run.looks[-1], run.looks[0]
    if "eval_eos" not in now or "eval_data_eos" not in first or not run.open:
        return None
    text = max(first["eval_data_eos"], 0.01)
    if now["eval_eos"] > text + 4 * math.sqrt(text * (1 - text) / DRAWN):
        return (
            f"{now['eval_eos']:.0%} of the tokens of samples are EOS, {first['eval_data_eos']:.1%} in the text: EOS collapse; "
            "usually padding with EOS that carries loss, or documents that are much shorter than the blocks"
        )
    return None


def replies(run: Run) -> str | None:
    """EOS collapse of a fine-tuned model: ends and padding are the easiest tokens to learn, and most of its replies to
    held-out prompts are nothing else; or it was never shown enough of them, and most replies do not end. No reply of the
    data is empty, and as many positions are offered as the longest one takes."""
    now = run.looks[-1]
    learnt = now[run.held_out] < run.untaught  # before that nothing can be expected
    if "eval_empty" not in now or not run.open or len(run.looks) < 3 or not learnt:
        return None
    why = few = "too few tokens of training"
    if now["eval_empty"] > 1 / 2:
        if not run.autoregressive:
            why = "padding that outweighs the replies: take padding=random, fewer padding_tokens, a lower padding_weight, or "
            why += "truncation=0.2"
        return f"{now['eval_empty']:.0%} of the replies to held-out prompts are empty: EOS collapse; usually {why}"
    if now["eval_ended"] < 1 / 2 and run.config.get("too_long") != "cut":
        if not run.autoregressive:
            why = f"padding=none (take random), much truncation, or {few}"
        return f"{1 - now['eval_ended']:.0%} of the replies to held-out prompts do not end; usually {why}"
    return None


def frozen(run: Run) -> str | None:
    """Frozen weights: held-out losses are drawn alike each time, so that only other weights can change them."""
    if len(run.looks) < 2 or not _stuck(run) or all(row["loss"] == 0 for row in run.steps):
        return None
    if not any(row.get("learning_rate", 1) > 0 for row in run.steps):
        return None
    return (
        f"the held-out loss is what it was at step 0 ({run.looks[0][run.held_out]:.4f}): the weights do not change; usually "
        "parameters that ask for no gradient, or an optimizer that holds others than the model's"
    )


def _stuck(run: Run) -> bool:
    first = run.looks[0][run.held_out]
    return all(abs(look[run.held_out] - first) < SAME for look in run.looks[1:])


RULES: tuple[Callable[[Run], str | None], ...] = (masking, labels, future, frozen, learning_rate, eos, replies)
