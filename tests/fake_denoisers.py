"""Denoisers without a network, whose distributions are known, and what the tests of samplers share."""

import itertools

import torch

from diffulm import randomness
from diffulm.samplers import by_name, names, sample
from diffulm.samplers._state import takes

MASK = 9
VOCABULARY = 10

SAMPLERS = [name for name in names() if name != "verified"]  # that one has a loop of its own
OURS = ["confidence", "entropy", "left_to_right", "margin", "random"]  # those that go with every commit rule
COMMITS = {
    "linear": {"steps": 4},
    "cosine": {"steps": 4, "schedule": "cosine"},
    "threshold": {"threshold": 0.35},
    "entropy_bound": {"entropy_bound": 2.5},
    "factor": {"factor": 2.2},
    "remask": {"steps": 14, "remask": 0.3},
}
CASES = [
    (sampler, commit) for sampler, commit in itertools.product(SAMPLERS, COMMITS) if takes(by_name(sampler), commit)
]


class Hashed:
    """A denoiser whose logits are a pseudo-random function of the row's visible tokens and the position.

    Every call is recorded: `rows` the rows it ran, `asked` the positions, `most` of one row in one forward.
    """

    def __init__(self, scale: float = 3.0) -> None:
        self.scale = scale
        self.rows = self.asked = self.most = 0
        self.batches = set()

    def __call__(self, ids, where, present=None):
        self.rows += int(where.any(1).sum())
        self.asked += int(where.sum())
        self.most = max(self.most, int(where.sum(1).max()))
        self.batches.add(len(ids))
        seen = ids if present is None else torch.where(present, ids, 0)
        position = torch.arange(ids.shape[1])
        # What is not present adds 0: padding cannot change the state of a row.
        state = ((seen + 1) * (position * position + 7) * (1 if present is None else present)).sum(1)
        row, column = where.nonzero(as_tuple=True)
        uniform = randomness.uniform(state[row][:, None], column[:, None], torch.arange(VOCABULARY))
        return self.scale * uniform.float()


class Table:
    """Conditionals p(x_i | the revealed tokens) out of a table: three tokens, three symbols, mask 3; no joint fits."""

    def __init__(self, peaked: float = 1.5) -> None:
        # (canvas state, position, symbol); a state is the canvas read as a number in base 4
        self.logits = peaked * torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(0))
        self.p = self.logits[..., :3].double().softmax(-1).tolist()

    def __call__(self, ids, where, present=None):
        row, column = where.nonzero(as_tuple=True)
        state = (ids * torch.tensor([16, 4, 1])).sum(1)
        return self.logits[state[row], column]

    def conditional(self, canvas, position):
        """p(symbol) in float64, the mask left out."""
        return self.p[sum(symbol * base for symbol, base in zip(canvas, (16, 4, 1), strict=True))][position]

    def order_law(self, order):
        """{outcome: probability} of filling one token at a time in this order."""
        law = {}
        for outcome in itertools.product(range(3), repeat=3):
            canvas, p = [3, 3, 3], 1.0
            for position in order:
                p *= self.conditional(canvas, position)[outcome[position]]
                canvas[position] = outcome[position]
            law[outcome] = p
        return law

    def independent(self):
        """{outcome: probability} of drawing all from the blank canvas."""
        blank = [self.conditional([3, 3, 3], position) for position in range(3)]
        return {o: blank[0][o[0]] * blank[1][o[1]] * blank[2][o[2]] for o in itertools.product(range(3), repeat=3)}

    def draw(self, sampler, rows, seed=0, **options):
        """(rows, 3) outcomes and (rows,) forwards of a sampler on blank canvases."""
        ids, fixed = torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, 3, dtype=torch.bool)
        seeds = [(seed, i) for i in range(rows)]
        return sample(
            self, ids, fixed, mask_token_id=3, sampler=sampler, seeds=seeds, **{"temperature": 1.0, **options}
        )


def start(rows: int, length: int, prompt: int = 1):
    """Canvases of `length` with the first `prompt` positions and the last fixed, contents different in every row."""
    ids = torch.arange(rows * length).view(rows, length) % (VOCABULARY - 2)
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    fixed[:, :prompt] = fixed[:, -1] = True
    return ids, fixed


def run(sampler, ids, fixed, present=None, seeds=None, denoise=None, **options):
    seeds = [(5, row) for row in range(len(ids))] if seeds is None else seeds
    return sample(
        denoise or Hashed(),
        ids,
        fixed,
        present,
        mask_token_id=MASK,
        sampler=sampler,
        seeds=seeds,
        **{"steps": 4, "temperature": 1.0, "top_p": 0.9, **options},
    )


def followed(sampler, ids, fixed, present=None, eos=None, **options):
    """`run`, with everything checked that can be seen from outside."""
    denoise, frames = Hashed(), []
    out, forwards = run(
        sampler, ids, fixed, present, denoise=denoise, callback=frames.append, eos_token_id=eos, **options
    )
    free = ~fixed if present is None else ~fixed & present
    assert torch.equal(out[~free], ids[~free]), "what is fixed stays"
    assert not (out[free] == MASK).any(), "no mask survives"
    assert forwards.sum() == denoise.rows, "forwards is what was run"
    assert denoise.batches <= {len(ids)}, "the denoiser always gets the whole batch"
    assert len(frames) == forwards.max() + 1
    assert torch.equal(frames[0].masked, free)
    assert torch.equal(frames[-1].ids, out)
    run_in = torch.zeros_like(forwards)
    number = torch.arange(ids.shape[1]) // options.get("block", ids.shape[1])
    for before, after in itertools.pairwise(frames):
        shown, hidden = before.masked & ~after.masked, after.masked & ~before.masked
        unfinished = before.masked.any(1)
        # A row is run as long as it has a mask, and every forward of it reveals something; then never again.
        assert torch.equal(shown.any(1), unfinished)
        run_in += unfinished
        assert torch.equal(after.step > before.step, unfinished)
        assert (after.ids[after.masked] == MASK).all()
        kept = ~before.masked & ~hidden
        if eos is None:
            assert torch.equal(after.ids[kept], before.ids[kept]), "what is revealed stays, or is hidden again"
        if "remask" not in options:
            assert not hidden.any()
        current = torch.where(before.masked, number, len(number)).amin(1, keepdim=True)
        assert not (shown & (eos is None) & (number != current)).any(), "block after block"
        assert torch.equal(after.revealed < 0, after.masked | ~free)
    assert torch.equal(run_in, forwards)
    return out, forwards, frames


def chi_squared(outcomes: torch.Tensor, law: dict) -> tuple[float, int]:
    """Pearson's statistic of rows of outcomes against {outcome: probability}, cells expecting < 5 put together."""
    counts = dict.fromkeys(law, 0)
    for outcome in map(tuple, outcomes.tolist()):
        counts[outcome] += 1
    cells, rest = [], [0.0, 0.0]
    for outcome, p in law.items():
        seen, expected = counts[outcome], p * len(outcomes)
        if expected < 5:
            rest = [rest[0] + seen, rest[1] + expected]
        else:
            cells.append((seen, expected))
    if rest[1] > 0:
        cells.append(tuple(rest))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


def limit(freedom: int) -> float:
    """The 99.9% quantile of chi-squared (Wilson and Hilferty, within 1%). Seeds are fixed: no failing by chance."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + 3.09 * a**0.5) ** 3
