"""Settings to a typed config: presets, YAML files, key=value, and back from the config.yaml that a run writes."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diffulm.recipes.adapt import AdaptConfig
from diffulm.recipes.config import every, in_steps, preset_names, resolve, steps_or_share, tokens
from diffulm.training.run_folder import RunFolder
from models import bad

NAME = st.one_of(
    st.text(min_size=1, max_size=40), st.sampled_from(["gpt2", "null", "yes", "1e3", "[a]", "~", "a: b", "- a"])
)
NAMES = NAME | st.lists(NAME, min_size=1, max_size=3)
COUNT = st.integers(1, 2**31 - 1)
SHARE = st.floats(0, 1, exclude_max=True)
STEPS = st.integers(0, 10**12 - 1) | st.floats(0, 100).map(lambda share: f"{share:.3f}%")
# key -> values of which many are valid
VALUES = {
    "model": NAME, "data": NAMES, "out": NAME, "tokens": st.integers(1, 10**16) | st.sampled_from(["4M", "1.5B", " 600k"]),
    "length": st.integers(2, 2**24), "global_batch": st.integers(1, 2**20), "micro_batch": COUNT | st.none(),
    "seed": st.integers(0, 2**63 - 1), "scratch": st.booleans(), "objective": st.sampled_from(["bound", "autoregressive"]),
    "noise": st.sampled_from(["bernoulli", "count"]), "noise_schedule": st.sampled_from(["linear", "cosine", "polynomial"]),
    "noise_floor": st.floats(0, 1), "annealing": st.sampled_from(["bernoulli", "near", "none"]), "anneal_steps": STEPS,
    "mask_token": st.text(max_size=9) | st.integers(-9, 10**9 - 1), "window": st.sampled_from(["keep", "lift"]),
    "learning_rate": st.floats(0, 1), "lr_schedule": st.sampled_from(["cosine", "linear", "constant"]),
    "warmup_steps": STEPS, "weight_decay": st.floats(0, 100), "betas": st.tuples(SHARE, SHARE),
    "max_grad_norm": st.floats(0, allow_infinity=False), "dropout": SHARE, "precision": st.sampled_from(["float32", "bf16"]),
    "logging_steps": COUNT, "eval_data": NAMES | st.none(), "eval_blocks": COUNT, "eval_samples": st.integers(2, 10**6),
    "eval_every": STEPS, "save_seconds": st.floats(0, allow_infinity=False), "keep_checkpoints": COUNT,
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "noise_ceiling": st.floats(0, 1), "ar_weight": st.floats(0, 100), "full_share": SHARE, "shift": st.booleans(),
    "block_size": st.integers(1, 2**24) | st.none(), "adapter": st.sampled_from(["none", "lora"]),
    "block_schedule": st.lists(st.fixed_dictionaries({"size": st.integers(1, 99) | st.none(), "steps": STEPS})) | st.none(),
    "clean_copy": st.sampled_from(["block", "causal"]), "lora_rows": st.sampled_from(["all", "masked"]),
    "lora_rank": COUNT, "lora_alpha": st.floats(0, 1e6), "train_embeddings": st.booleans(),
    "keep_adapter": st.booleans(), "quantise": st.sampled_from(["none", "8bit", "4bit"]), "checkpointing": st.booleans(),
    "compile": st.booleans(), "sharding": st.sampled_from(["none", "full"]), "deepspeed": NAME | st.none(),
    "packing": st.sampled_from(["stream", "documents"]), "bad_rows": st.sampled_from(["stop", "skip"]),
    "report_to": st.lists(st.text(max_size=9), max_size=2),
}  # fmt: skip
REQUIRED = {key: VALUES[key] for key, field in AdaptConfig.model_fields.items() if field.is_required()}
OPTIONAL = {key: value for key, value in VALUES.items() if key not in REQUIRED}


def test_every_key_is_tried():
    assert VALUES.keys() == AdaptConfig.model_fields.keys()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.fixed_dictionaries(REQUIRED, optional=OPTIONAL))
@example({"model": "0\x85", "data": ["a\u2028b", "\ufeff", "'\r"], "out": "é\u0085\n", "tokens": 1})
def test_what_a_run_writes_is_read_as_the_same_config(values):
    try:
        config = AdaptConfig(**values)
    except ValidationError:
        reject()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", config.model_dump(mode="json"))
        with run.claimed():
            again = resolve("adapt", AdaptConfig, run.path / "config.yaml", {})
        assert again == config
        run.check()  # and the run is taken for its own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("600K", 600_000),
        ("4m", 4_000_000),
        ("1.5B", 1_500_000_000),
        ("1_000", 1000),
        (7, 7),
        ("0.5K", 500),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@pytest.mark.parametrize("text", ["0", "0.4", "-1", "1e9", "", "K", "nan", None, "10001T", "9" * 400, "1" + "0" * 17])
def test_no_number_of_tokens(text):
    with pytest.raises(ValueError, match="should be"):
        tokens(text)


def test_steps_and_shares():
    assert [steps_or_share(value) for value in (0, "20", "5%", " 12.5% ", "100%")] == [0, 20, "5%", "12.5%", "100%"]
    assert [in_steps(value, 400) for value in (7, "5%", "12.5%", "0%")] == [7, 20, 50, 0]
    for wrong in ("101%", "-1", "1.5", "%", "1" * 13, "nan%"):
        with pytest.raises(ValueError, match="should be"):
            steps_or_share(wrong)
    assert [every(value) for value in (3, "5%")] == [3, "5%"]
    for wrong in (0, "0%", "0.0%"):
        with pytest.raises(ValueError, match="more than 0"):
            every(wrong)


NEEDED = {"model": "gpt2", "data": "a.txt", "out": "run"}


def test_settings_lie_over_the_file_and_lists_and_null_are_read(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("tokens: 1M\nlength: 64\nmask_token: 811\nlearning_rate: 1e-4\n")
    given = NEEDED | {"length": "128", "betas": "[0.5, 0.6]", "micro_batch": "null", "data": "[a.txt, b.txt]"}
    config = resolve("adapt", AdaptConfig, file, given)
    assert (config.tokens, config.length, config.mask_token, config.learning_rate) == (10**6, 128, "811", 1e-4)
    assert (config.betas, config.micro_batch, config.data) == ((0.5, 0.6), None, ["a.txt", "b.txt"])
    file.write_text("")  # says nothing, which is no mistake
    assert resolve("adapt", AdaptConfig, file, NEEDED | {"tokens": "1K"}).tokens == 1000


def test_anchors_and_merges_are_yaml(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: &text [a.txt, b.txt]\neval_data: *text\ntokens: 1K\n")
    assert resolve("adapt", AdaptConfig, file, {"model": "m", "out": "o"}).eval_data == ["a.txt", "b.txt"]
    file.write_text(
        "data: {<<: {a: 1}, a: 2}\ntokens: 1K\n"
    )  # a merged key may be given again, that is what merging is
    with bad("^data should be text"):
        resolve("adapt", AdaptConfig, file, {"model": "m", "out": "o"})
    file.write_text("data: {a: 1, a: 2}\n")
    with bad("mine.yaml, line 1: is not valid YAML .the key 'a' is given twice"):
        resolve("adapt", AdaptConfig, file, {})


def test_every_preset_is_one():
    assert {"tiny", "diffugpt-s", "diffugpt-m", "diffullama-7b"} <= set(preset_names("adapt"))
    for name in preset_names("adapt"):
        assert resolve("adapt", AdaptConfig, name, NEEDED | {"tokens": "1M"}).tokens == 10**6


def test_a_preset_of_another_verb(tmp_path, monkeypatch):
    for verb, name in (("adapt", "tiny"), ("sft", "chat")):
        (tmp_path / verb).mkdir()
        (tmp_path / verb / f"{name}.yaml").write_text("tokens: 1M\n")
    monkeypatch.setattr("diffulm.recipes.config.PRESETS", tmp_path)
    with bad("'chat' is a preset of `sft`, not of `adapt`, which has: tiny"):
        resolve("adapt", AdaptConfig, "chat", {})
