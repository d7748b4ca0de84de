"""`diffulm sft`: the loss of packed conversations, runs from adapted models and AR parents, adapters, several processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import diffulm
from diffulm.checkpoint import adapter, load
from diffulm.checkpoint.save import save
from diffulm.data import conversations
from diffulm.data.conversations import PADDING, REPLY, Example, Shape, laid
from diffulm.denoiser.adopt import adopt
from diffulm.recipes.adapt import run as adapt
from diffulm.recipes.merge import merge
from diffulm.recipes.sft import run
from diffulm.training import trainer
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.progress import held_out
from diffulm.training.report import remade
from diffulm.training.run_folder import read_metrics
from diffulm.training.step import loss_of, prepared
from models import bad, build
from runs import WORDS, settings, short, timeless, weights

MASK, PAD, SEED, BATCH, LENGTH = 31, 2, 3, 4, 24
FULL = Curriculum(MASK, SEED, BATCH, noise="count", padding_weight=0.3)


@pytest.fixture(scope="module")
def denoiser():
    return adopt(build("llama"), mask_token=str(MASK))[0]


def rows_of(align: int = 1) -> list[dict[str, Any]]:
    """Rows of examples of several lengths, as `Samples` takes them."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 30, (9,), generator=generator).tolist() for _ in range(16)]
    found = [Example([1, *ids[: 1 + n % 3]], [*ids[4 : 5 + n % 4], PAD]) for n, ids in enumerate(drawn)]
    shape = Shape(LENGTH, padding_tokens=3, align=align)
    made = conversations.rows((laid(one, n, shape, PAD) for n, one in enumerate(found)), shape, PAD)
    return [dict(zip(("ids", "document", "kind"), row, strict=True)) for row in made]


def batch_of(rows: list[dict[str, Any]], step: int = 5) -> dict[str, torch.Tensor]:
    """One step's samples; row n of the batch is one of `rows`."""
    samples = Samples(rows, True, SEED, BATCH, steps=20)  # pyright: ignore[reportArgumentType]
    found = [samples[step * BATCH + n] for n in range(BATCH)]
    return {key: torch.stack([one[key] for one in found]) for key in found[0]}


def of(curriculum: Curriculum, rows: list[dict[str, Any]], **more: Any) -> Curriculum:
    return replace(curriculum, documents=max(row["document"][-1] + 1 for row in rows), **more)


def summed(denoiser, curriculum: Curriculum, batches: list[dict[str, torch.Tensor]]) -> float:
    inputs = prepared(curriculum, batches, 1, lambda total: total)
    with torch.no_grad():
        return sum(float(loss_of(denoiser, curriculum, one, len(inputs))) for one in inputs)


# -- the loss

KINDS = {
    "full": (FULL, 1),
    "bernoulli": (replace(FULL, noise="bernoulli"), 1),
    "annealing": (replace(FULL, anneal_steps=10, annealing="near"), 1),
    "causal": (replace(FULL, objective="autoregressive"), 1),
    "blocks": (replace(FULL, stages=((0, 4),)), 4),
}


@pytest.mark.parametrize("name", [name for name in KINDS if name != "annealing"])  # which knows how long a row is
def test_a_packed_row_costs_what_its_examples_cost_alone(denoiser, name):
    curriculum, align = KINDS[name]
    rows = rows_of(align)
    curriculum, batch = of(curriculum, rows), batch_of(rows)
    (inputs,) = prepared(curriculum, [batch], 1, lambda total: total)
    alone, seen = 0.0, 0
    with torch.no_grad():
        whole = float(loss_of(denoiser, curriculum, inputs, 1))
        for n in range(BATCH):
            for number in range(int(batch["document"][n].max()) + 1):
                own = batch["document"][n] == number
                one = {key: inputs[key][n : n + 1, own] for key in ("ids", "canvas", "where", "weight")}
                if one["where"].any():
                    alone += float(
                        loss_of(denoiser, curriculum, one | {"step": inputs["step"], "row": inputs["row"]}, 1)
                    )
                    seen += 1
    assert seen >= 8 and whole > 1
    # sums of float32 in another order, on a loss of about 4 nats
    assert alone == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_nobody_sees_another_example(denoiser, name):
    """The second document's loss is what it was when all of the first has changed, but for nothing."""
    curriculum, align = KINDS[name]
    rows = rows_of(align)
    (inputs,) = prepared(of(curriculum, rows), [batch_of(rows)], 1, lambda total: total)
    first = inputs["document"] == 0
    changed = inputs | {key: inputs[key].masked_fill(first, 7) for key in ("ids", "canvas")}
    where = inputs["where"] & ~first & (inputs["weight"] > 0)
    assert where.any() and (changed["canvas"] != inputs["canvas"]).sum() > 8
    with torch.no_grad():
        found = [
            float(loss_of(denoiser, curriculum, one | {"where": where, "weight": inputs["weight"] * where}, 1))
            for one in (inputs, changed)
        ]
    assert found[0] == found[1] > 0


def test_of_each_example_any_number_of_tokens_is_hidden_but_never_none():
    """`count`: k uniform in 1..N of each example, whatever stands beside it, and each token as often as another."""
    rows = rows_of()
    curriculum = of(FULL, rows, padding_weight=1.0)
    batch = batch_of(rows)
    free = ~batch["fixed"]
    owners = [
        (n, d)
        for n in range(BATCH)
        for d in batch["document"][n].unique().tolist()
        if (free[n] & (batch["document"][n] == d)).any()
    ]
    counts: dict[Any, list[int]] = {owner: [] for owner in owners}
    total, steps = torch.zeros(BATCH, LENGTH), 600
    for step in range(steps):
        hidden = curriculum.hide(batch | {"step": torch.full((BATCH,), step)})
        assert not (hidden.where & batch["fixed"]).any() and torch.equal(hidden.canvas == MASK, hidden.where)
        total += hidden.token_weight
        for n, d in owners:
            counts[n, d].append(int((hidden.where[n] & (batch["document"][n] == d)).sum()))
    for (n, d), found in counts.items():
        size = int((free[n] & (batch["document"][n] == d)).sum())
        assert set(found) == set(range(1, size + 1))
        # each k in a share 1/N of 600 steps: five standard deviations
        assert all(abs(found.count(k) - steps / size) < 5 * (steps / size) ** 0.5 for k in range(1, size + 1))
    # N/k times the chance k/N is 1; the standard deviation of N/k is below 3 for N up to 9
    assert (total[free] / steps - 1).abs().max() < 5 * 3 / steps**0.5 and total[~free].sum() == 0


def test_padding_weighs_what_is_asked():
    rows = rows_of()
    batch = batch_of(rows)
    kinds = torch.tensor([rows[i]["kind"] for i in _which(rows)])
    assert torch.equal(batch["padding"], kinds == PADDING) and batch["padding"].any()
    replies, padding = int((kinds == REPLY).sum()), int((kinds == PADDING).sum())
    for weight in (0.0, 0.3, 1.0):
        hidden = of(FULL, rows, padding_weight=weight).hide(batch)
        assert float(hidden.denominator) == pytest.approx(replies + weight * padding)
        full = of(FULL, rows, padding_weight=1.0).hide(batch)
        assert torch.equal(hidden.where, full.where), "what is hidden does not depend on it"
        assert torch.allclose(hidden.token_weight[batch["padding"]], weight * full.token_weight[batch["padding"]])
        assert torch.equal(hidden.token_weight[~batch["padding"]], full.token_weight[~batch["padding"]])


def _which(rows: list[dict[str, Any]]) -> list[int]:
    from diffulm.data.blocks import row

    return [row(rows, SEED, 5 * BATCH + n) for n in range(BATCH)]


@pytest.mark.parametrize("name", KINDS)
def test_the_micro_batch_does_not_change_the_loss(denoiser, name):
    curriculum, align = KINDS[name]
    rows = rows_of(align)
    curriculum, batch = of(curriculum, rows), batch_of(rows)
    parts = [{key: value[part] for key, value in batch.items()} for part in torch.arange(BATCH).split([1, 3])]
    # sums of float32 in another order
    assert summed(denoiser, curriculum, parts) == pytest.approx(summed(denoiser, curriculum, [batch]), abs=5e-6)


def test_autoregressive_loss_is_on_replies_and_their_ends_alone():
    rows = rows_of()
    batch = batch_of(rows)
    hidden = of(replace(FULL, objective="autoregressive"), rows).hide(batch)
    assert torch.equal(hidden.where, ~batch["fixed"]) and torch.equal(hidden.canvas, batch["ids"])


# -- runs


@pytest.fixture(scope="module")
def base(home, tmp_path_factory) -> Path:
    """`home`, and in it conversations, an adapted model, one that fills blocks, and an AR parent's folder."""
    root = tmp_path_factory.mktemp("base")
    shutil.copytree(home / "parent", root / "parent")
    rows = [{"prompt": f"say: {word}", "response": word} for word in WORDS] * 3
    (root / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(*adopt(root / "parent"), root / "adapted")
    blocks = [pair.split("=", 1) for pair in short(home, root / "blocks", block_size=4, tokens=64, eval_every=1)[2:]]
    adapt("tiny", dict(blocks))
    return root


def given(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Six steps of four rows of 48 positions."""
    made = settings(base, out, model=str(base / "adapted"), data=str(base / "say.jsonl"), tokens=6 * 4 * 48, length=48)
    made |= {"global_batch": 4, "logging_steps": 2, "eval_every": 3, "padding_tokens": 4, "eval_rows": 4}
    del made["eval_blocks"], made["eval_samples"]
    return made | {"eval_answers": 2, "eval_steps": 2, "annealing": "bernoulli", "anneal_steps": 0, **more}


def command(base: Path, out: Path, **more: Any) -> list[str]:
    return ["sft", "tiny", *(f"{key}={value}" for key, value in given(base, out, **more).items())]


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tuned"
    run("tiny", given(base, out))
    return out


def test_a_run_leaves_what_it_promises(base, tuned):
    rows = read_metrics(tuned / "metrics.jsonl")
    looks = [row for row in rows if "eval_bound" in row]
    assert [row["step"] for row in looks] == [0, 3, 6]
    assert all({"eval_exact", "eval_empty", "eval_ended", "eval_length_error"} <= set(row) for row in looks)
    assert {"loss", "grad_norm", "learning_rate", "tokens"} <= set(next(row for row in rows if "loss" in row))
    report = json.loads((tuned / "report.json").read_text())
    held = min(4, 3 * len(WORDS) // 10)
    assert report["held_out_examples"] == held and report["conversations"] == report["examples"] == 3 * len(WORDS)
    assert {"bound", "bound_stderr", "left_to_right", "causal_view", "exact", "empty", "ended", "length_error"} <= set(
        report
    )
    assert report["bound"] < looks[0]["eval_bound"], "six steps on replies of one word must help"
    assert "parent" not in report, "there is none: the model was adapted before"
    record = json.loads((tuned / "config.json").read_text())["diffulm"]
    lm = diffulm.load(tuned)
    answer = max(len(lm.tokenizer.encode(word)) for word in WORDS) + 1
    assert record["sft"] == {"template": "auto", "length": 48, "padding": "random", "answer_tokens": answer}
    assert lm.reply_length == answer and lm.tokenizer.chat_template
    said = lm.chat([{"role": "user", "content": "say: cat"}])
    assert isinstance(said.completion, str) and len(said.ids) <= 64
    assert weights(tuned) != weights(base / "adapted")
    page = remade(tuned)
    assert page["warnings"] == {}
    text = (tuned / "report.html").read_text()
    assert ">Replies<" in text and ">Replies: length<" in text and "length_error" in text
    assert ">Help from the right side<" not in text


def test_a_finished_run_is_left_alone_and_its_config_repeats_it(base, tuned, tmp_path, capsys):
    assert run("tiny", given(base, tuned)) == json.loads((tuned / "report.json").read_text())
    assert "finished" in capsys.readouterr().out
    diffulm.sft(tuned / "config.yaml", out=str(tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(tuned) and timeless(tmp_path / "again") == timeless(tuned)
    with bad("holds another run: padding is 'random' there, 'none' here"):
        run("tiny", given(base, tuned, padding="none"))


class Died(BaseException):
    """Stands for a power cut."""


def test_a_run_that_dies_resumes_exactly(base, tuned, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for name, at in [("compute_loss", 4), ("evaluate", 1)]:
        original, calls = getattr(trainer.DiffusionTrainer, name), []

        def dying(self, *args, original=original, calls=calls, at=at, **kwargs):
            calls.append(1)
            if len(calls) == at:
                raise Died
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.DiffusionTrainer, name, dying)
            with pytest.raises(Died):
                run("tiny", given(base, out))
    assert list(out.glob("checkpoint-*")) and not (out / "report.json").exists()
    run("tiny", given(base, out))
    assert weights(out) == weights(tuned) and timeless(out) == timeless(tuned)


def test_other_data_is_no_place_to_go_on(base, tmp_path, monkeypatch):
    data = tmp_path / "say.jsonl"
    shutil.copy(base / "say.jsonl", data)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.DiffusionTrainer, "evaluate", lambda *_, **__: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            run("tiny", given(base, tmp_path / "run", data=str(data)))
    data.write_text(data.read_text().replace("cat", "dog"))
    with bad("data: packs into other blocks than those"):
        run("tiny", given(base, tmp_path / "run", data=str(data)))


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]


SHORT = {"tokens": 2 * 4 * 48, "logging_steps": 1, "eval_every": "100%", "eval_answers": 1, "save_seconds": 600}


def test_epochs_and_what_is_cut_are_counted(base, tmp_path, capsys):
    more = SHORT | {"tokens": "null", "epochs": 0.5, "packing": "false", "padding": "full", "too_long": "drop"}
    rows = [*(base / "say.jsonl").read_text().splitlines(), json.dumps({"prompt": "a", "response": "b " * 99}), "{"]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    out = tmp_path / "run"
    report = run("tiny", given(base, out, data=str(tmp_path / "a.jsonl"), bad_rows="skip", **more))
    held = report["held_out_examples"]
    assert report["steps"] == -(-(3 * len(WORDS) - held) // 8) and report["dropped"] == report["skipped"] == 1
    said = capsys.readouterr().err
    assert f"a.jsonl, line {len(rows)}: not JSON" in said and "1 bad row left out" in said
    assert f"1 replies that do not fit left out: a.jsonl, conversation {len(rows) - 1}" in said
    assert len(losses(out)) == report["steps"]


def test_held_out_conversations_of_their_own(base, tmp_path):
    (tmp_path / "e.jsonl").write_text('{"question": "say: one", "answer": 1}\n' * 3)
    (tmp_path / "a.jsonl").write_text('{"question": "say: two", "answer": 2}\n' * 3)
    fields = {"prompt": "{question}", "response": "#{answer}"}
    data = {"data": str(tmp_path / "a.jsonl"), "eval_data": str(tmp_path / "e.jsonl")}
    report = run("tiny", given(base, tmp_path / "run", **SHORT, **fields, **data))
    assert report["held_out_examples"] == report["examples"] == 3


@pytest.mark.parametrize(
    ("more", "shift", "ratios"),
    [
        ({"annealing": "bernoulli", "anneal_steps": 4, "warmup_steps": 0}, True, [0.25, 0.5, 0.75, 1.0]),
        ({"annealing": "none", "shift": "false"}, False, [1.0] * 4),
        pytest.param(
            {"scratch": "true", "annealing": "none", "noise": "bernoulli"}, True, [1.0] * 4, marks=pytest.mark.slow
        ),
    ],
)
def test_an_ar_parent_is_adapted_in_the_same_run(base, tmp_path, more, shift, ratios):
    out = tmp_path / "run"
    report = run("tiny", given(base, out, model=str(base / "parent"), **SHORT | {"tokens": 4 * 4 * 48} | more))
    found = read_metrics(out / "metrics.jsonl")
    assert [row["anneal_ratio"] for row in found if "loss" in row] == ratios
    assert found[0]["eval_parent"] == pytest.approx(report["parent"]) and report["bound"] < found[0]["eval_bound"]
    lm = diffulm.load(out)
    assert lm.record.shift is shift and lm.record.parent == str(base / "parent") and lm.record.notes["sft"]


def test_an_ar_model_is_tuned_as_such(base, tmp_path):
    out = tmp_path / "run"
    report = run("tiny", given(base, out, model=str(base / "parent"), objective="autoregressive", **SHORT))
    found = read_metrics(out / "metrics.jsonl")
    assert report["causal_view"] < found[0]["eval_ar"]
    assert "bound" not in report and "diffulm" not in json.loads((out / "config.json").read_text())
    assert (out / "chat_template.jinja").exists()
    kinds = [row["kind"] for row in conversations.Dataset.from_file(str(out / "data" / "train" / "blocks.arrow"))]
    assert not any(PADDING in kind for kind in kinds), "it stops reading at the end of a reply"
    again = run("tiny", given(base, tmp_path / "both", model=str(out), **SHORT))
    assert again["parent"] == pytest.approx(report["causal_view"], abs=1e-5), "the same rows, the same loss"


def test_a_model_that_fills_blocks_stays_one(base, tmp_path):
    out = tmp_path / "run"
    model = {"model": str(base / "blocks"), "padding": "block"}
    report = run("tiny", given(base, out, **SHORT, **model))
    lm = diffulm.load(out)
    assert (lm.record.attention, lm.record.block_size) == ("block", 4)
    assert report["bound"] < read_metrics(out / "metrics.jsonl")[0]["eval_bound"]
    rows = [*conversations.Dataset.from_file(str(out / "data" / "train" / "blocks.arrow"))]
    for row in rows[: -report["held_out_examples"]]:
        after = [*row["document"][1:], -1]
        ends = [n for n, kind in enumerate(row["kind"]) if kind and row["document"][n] != after[n]]
        assert ends and all((n + 1) % 4 == 0 for n in ends), "padded to the end of a block"
    assert isinstance(lm.chat([{"role": "user", "content": "say: cat"}]).completion, str)


# -- several processes


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"sharding": "none"}, marks=pytest.mark.slow),
        pytest.param({"sharding": "full"}, marks=pytest.mark.slow),
        pytest.param({"sharding": "full", "objective": "autoregressive"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_compute_the_same(forks, base, tmp_path, more):
    made = SHORT | {"model": base / ("parent" if "objective" in more else "adapted"), **more}
    children = forks.launched(2, *command(base, tmp_path / "two", **made, micro_batch=1))
    codes = [child.wait() for child in children]
    assert codes == [0, 0], [child.err for child in children]
    run("tiny", given(base, tmp_path / "one", **made | {"sharding": "none"}))
    # sums over processes come in another order, and AdamW makes a step of any size of them
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[key], theirs[key], rtol=0, atol=1e-3) for key in mine)
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys() and one["examples"] == two["examples"]


# -- adapters

KEEP = {"adapter": "lora", "lora_rank": 4, "train_embeddings": "false", "keep_adapter": "true"}


def logits(folder: Path) -> torch.Tensor:
    lm = diffulm.load(folder)
    ids = torch.arange(40).reshape(2, 20) + 3
    ids[:, 5:9] = lm.mask_token_id
    with torch.no_grad():
        return lm.denoiser(ids)


@pytest.fixture(scope="module")
def kept(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "run"
    run("tiny", given(base, out, **SHORT | {"save_seconds": 0}, **KEEP))
    return out


def test_an_adapter_of_an_adapted_model(base, kept, tmp_path):
    names = {path.name for path in kept.iterdir()}
    assert {adapter.CONFIG, adapter.WEIGHTS, "chat_template.jinja"} <= names and "model.safetensors" not in names
    assert json.loads((kept / adapter.CONFIG).read_text())[adapter.BASE] == str(base / "adapted")
    lm = diffulm.load(kept)
    assert lm.record.parent == str(base / "parent") and lm.reply_length < 64
    assert not torch.allclose(logits(kept), logits(base / "adapted"), atol=1e-3)
    merge(str(kept), tmp_path / "merged")
    # one sum in another order
    assert torch.allclose(logits(tmp_path / "merged"), logits(kept), rtol=0, atol=2e-5)
    assert diffulm.load(tmp_path / "merged").reply_length == lm.reply_length
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(base / "adapted")
    theirs = PeftModel.from_pretrained(plain, str(kept)).eval()
    causal = torch.ones(14, 14, dtype=torch.bool).tril()
    ids = torch.arange(28).reshape(2, 14) + 3
    with torch.no_grad():
        # its own causal kernel against ours with a mask
        assert torch.allclose(theirs(input_ids=ids).logits, lm.denoiser.rows(ids, causal), rtol=0, atol=1e-4)


def test_an_adapter_names_the_model_that_it_is_for_and_not_that_one_s_parent(base):
    denoiser, _ = load.load(base / "adapted")
    denoiser.record = replace(denoiser.record, parent="pocket-ar")
    adapter.begin(denoiser, base / "adapted", 4, 8.0, 0, False, base=str(base / "adapted"))
    assert denoiser.model.peft_config["default"].base_model_name_or_path == str(base / "adapted")
    assert denoiser.record.parent == "pocket-ar"
    assert denoiser.record.notes[adapter.PARENT] == adapter.fingerprint(base / "adapted")


@pytest.mark.slow
def test_a_run_with_an_adapter_goes_on(base, kept, tmp_path, monkeypatch):
    out = tmp_path / "run"
    more = SHORT | {"save_seconds": 0} | KEEP
    with monkeypatch.context() as patch:
        patch.setattr(trainer.DiffusionTrainer, "evaluate", lambda *_, **__: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            run("tiny", given(base, out, **more))
    run("tiny", given(base, out, **more))
    assert (out / adapter.WEIGHTS).read_bytes() == (kept / adapter.WEIGHTS).read_bytes()
    assert timeless(out) == timeless(kept)


def test_an_adapter_as_the_base_and_one_of_another_base(base, kept, tmp_path):
    report = run("tiny", given(base, tmp_path / "run", model=str(kept), **SHORT))
    assert report["bound"] > 0 and not (tmp_path / "run" / adapter.CONFIG).exists()
    start = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["eval_bound"]
    # one sum in another order: it begins where that adapter has come to
    assert start == pytest.approx(read_metrics(kept / "metrics.jsonl")[-1]["eval_bound"], abs=1e-4)
    with bad("keep_adapter=true: .* is an adapter itself; `diffulm merge` it first"):
        run("tiny", given(base, tmp_path / "no", model=str(kept), **SHORT, **KEEP))
    with bad("quantise=4bit: .* is no plain checkpoint; `diffulm merge`"):
        run("tiny", given(base, tmp_path / "no", model=str(kept), adapter="lora", quantise="4bit", **SHORT))
    shutil.copytree(kept, tmp_path / "kept")
    told = json.loads((kept / adapter.CONFIG).read_text()) | {adapter.BASE: str(base / "blocks")}
    (tmp_path / "kept" / adapter.CONFIG).write_text(json.dumps(told))
    with bad("is not the parent that the adapter .* was trained on"):
        run("tiny", given(base, tmp_path / "no", model=str(tmp_path / "kept"), **SHORT))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("model", "more", "moved"),
    [
        pytest.param("adapted", {}, {"linear", "ends"}, marks=pytest.mark.slow),
        ("adapted", {"train_embeddings": "false"}, {"linear"}),
        pytest.param("parent", {"annealing": "none"}, {"linear", "ends"}, marks=pytest.mark.slow),
    ],
)
def test_merged_at_the_end(base, tmp_path, model, more, moved):
    out = tmp_path / "run"
    run("tiny", given(base, out, model=str(base / model), adapter="lora", lora_rank=4, **SHORT, **more))
    before, after = (load_file(folder / "model.safetensors") for folder in (base / "adapted", out))
    assert before.keys() == after.keys() and not (out / adapter.CONFIG).exists()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    kinds = {"linear" if "_proj" in key else "ends" if "embed" in key or "head" in key else "norms" for key in changed}
    assert kinds == moved


@pytest.mark.slow
def test_a_quantised_base(base, tmp_path, monkeypatch):
    """The options go to transformers as QLoRA wants them; there is no GPU here to hold the weights so."""
    for model in ("adapted", "parent"):
        with bad("quantise=4bit: needs "):
            run("tiny", given(base, tmp_path / "no", model=str(base / model), adapter="lora", quantise="4bit", **SHORT))
    assert not (tmp_path / "no").exists()
    asked = []
    from diffulm.checkpoint import opening

    monkeypatch.setattr(opening, "_quantised", lambda bits: asked.append(bits) or {})
    more = {"adapter": "lora", "lora_rank": 4, "train_embeddings": "false", **SHORT}
    run("tiny", given(base, tmp_path / "held", quantise="4bit", **more))
    assert asked == ["4bit", "none"], "in 4 bits to train on, in full to merge into"
    run("tiny", given(base, tmp_path / "whole", **more))
    assert weights(tmp_path / "held") != weights(base / "adapted")
    held, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("held", "whole"))
    assert all(torch.equal(held[key], whole[key]) for key in whole)
    record = json.loads((tmp_path / "held" / "config.json").read_text())["diffulm"]
    assert record["sft"]["length"] == 48


def test_load_passes_on_how_weights_are_held(base, monkeypatch):
    asked = []
    original = load.load_weights
    monkeypatch.setattr(load, "load_weights", lambda place, dtype, how: asked.append(how) or original(place, dtype))
    load.load(base / "adapted", quantise="8bit")
    load.load(base / "adapted")
    assert asked == ["8bit", "none"]


def test_the_progress_line_says_what_became_of_replies():
    found = {
        "eval_bound": 1.3456,
        "eval_bound_stderr": 0.089,
        "eval_exact": 0.125,
        "eval_empty": 0.0,
        "eval_ended": 1.0,
    }
    assert held_out(found) == "bound 1.346 +- 0.089; of replies 12% exact, 0% empty, 100% ended"
    assert held_out({"eval_ar": 2.0}) == "ar 2.000"
