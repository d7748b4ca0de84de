"""A loss or a gradient that is not finite ends a run before the weights take it in, and the line says where it came from."""

import pytest
import torch
from datasets import Dataset

from diffulm.data.blocks import row as row_of
from diffulm.training import finite
from forks import Forks
from runs import short, timeless, weights

# Of step 5 (the one after checkpoint-4) the row 2 is spoilt: its loss, or nothing but its gradient.
SPOIL = """
from diffulm.training import trainer
def spoilt(denoiser, curriculum, inputs, micro_batches, loss_of=trainer.loss_of):
    loss = loss_of(denoiser, curriculum, inputs, micro_batches)
    if not bool(((inputs["row"] == 2) & (inputs["step"] == 4)).any()):
        return loss
    return {act}
trainer.loss_of = spoilt
"""
ACTS = {"loss": "loss * float('nan')", "gradient": "loss + (loss - loss.detach()).abs().sqrt()"}
EVAL_BLOCKS = 2


@pytest.mark.parametrize(
    ("what", "count", "sharding"),
    [
        ("loss", 1, "none"),
        ("gradient", 1, "none"),
        ("loss", 2, "none"),
        pytest.param("gradient", 2, "none", marks=pytest.mark.slow),
        pytest.param("loss", 2, "full", marks=pytest.mark.slow),
        pytest.param("gradient", 2, "full", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_finite_ends_the_run(forks: Forks, home, tmp_path, what, count, sharding):
    out = tmp_path / "run"
    command = short(home, out, sharding=sharding)
    spoil = SPOIL.format(act=ACTS[what])
    children = forks.launched(count, *command, first=spoil) if count > 1 else [forks.diffulm(*command, first=spoil)]
    assert [child.wait() for child in children] == [2] * count, children[0].err
    blocks = Dataset.from_file(str(out / "data" / "train" / "blocks.arrow"))
    block = row_of(range(len(blocks) - EVAL_BLOCKS), 0, 4 * 4 + 2)
    place = f" in row 2 (block {block} of the data)"
    if sharding == "full" and what == "gradient":
        place = ", though the loss of each row is"
    says = (
        f"diffulm: error: step 5: the {what} is not finite{place}; nothing of that step was saved, {out}/checkpoint-4 "
    )
    assert children[0].err.splitlines()[-1].startswith(says), children[0].err
    assert children[0].err.count("error") == 1 and "Traceback" not in children[0].err
    assert not children[1:] or children[1].err == ""
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]
    assert not list(out.glob("*.tmp"))
    if count == 1:  # the checkpoint is as good as ever
        assert forks.diffulm(*command).wait() == 0
        assert weights(out) == weights(forks.whole) and timeless(out) == timeless(forks.whole)


@pytest.mark.parametrize(
    ("what", "rows", "sharded", "says"),
    [
        ("loss", [3], False, "step 7: the loss is not finite in row 3 (block 30 of the data)"),
        ("loss", range(12), False, "step 7: the loss is not finite in any of the 12 rows"),
        ("loss", range(10), False, "row 7 (block 70 of the data) and 2 more"),
        ("gradient", [], False, "step 7: the gradient is not finite, though that of each row is"),
        ("gradient", [], True, "step 7: the gradient is not finite, though the loss of each row is"),
    ],
)
def test_where_it_was_in_words(what, rows, sharded, says):
    assert finite.told(7, what, {row: row * 10 for row in rows}, 12, sharded).endswith(says)


def test_rows_are_looked_at_one_by_one():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    taken = [
        {"row": torch.tensor([4, 6]), "x": torch.tensor([1.0, 2.0])},
        {"row": torch.tensor([0, 2]), "x": torch.tensor([0.0, float("inf")])},
    ]

    def loss_of(inputs):
        return model(inputs["x"][:, None]).sum()

    assert finite.spoilt(model, taken, loss_of) == [2]
    taken[1]["x"][1] = 3.0
    assert finite.spoilt(model, taken, lambda inputs: loss_of(inputs).sqrt()) == [0], "the slope of a root at zero"
    assert model.weight.grad is None, "DDP hears of no backward pass"
