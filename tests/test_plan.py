"""`adapt --plan`: what a run would do and cost, the parents it knows by name, and the shipped presets, value by value."""

import io
import json

import pytest
import transformers
import yaml

from broken import one_error
from diffulm import costs
from diffulm.checkpoint.outline import geometry, skeleton
from diffulm.cli import main
from diffulm.cli.adapt import show
from diffulm.costs import Method
from diffulm.recipes.adapt import AdaptConfig, run
from diffulm.recipes.config import PRESETS, preset_names, resolve
from diffulm.recipes.plan import PARENTS, clean_share, plan
from models import bad

GIVEN = {"model": "gpt2", "data": "x", "out": "y"}

# -- the parents


CONFIGS = {
    "gpt2": transformers.GPT2Config(),
    "gpt2-medium": transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "meta-llama/Llama-2-7b-hf": transformers.LlamaConfig(max_position_embeddings=4096),
    "Qwen/Qwen3-0.6B": transformers.Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARENTS)
def test_the_parents_are_as_transformers_builds_them(name):
    assert PARENTS[name] == geometry(skeleton(CONFIGS[name]))


def test_their_sizes_are_as_people_know_them():
    millions = {name: round(sizes.parameters / 1e6, 1) for name, sizes in PARENTS.items()}
    assert millions == {
        "gpt2": 124.4, "gpt2-medium": 354.8, "meta-llama/Llama-2-7b-hf": 6738.4, "Qwen/Qwen3-0.6B": 596.0,
    }  # fmt: skip


def of(name: str, **settings: object) -> AdaptConfig:
    return resolve("adapt", AdaptConfig, name, settings, GIVEN | {"tokens": "1M"})


def test_every_preset_s_parent_is_known():
    """So that no plan of a preset needs the hub."""
    named = {of(name).model for name in preset_names("adapt")}
    assert named <= PARENTS.keys() | {"pocket-ar"}


# -- the plan


def test_a_plan_of_the_7b_run(tmp_path, monkeypatch):
    """On 64 cards of 80 GB it fits, as in the paper on 64 of 96 GB; on one it does not."""
    monkeypatch.chdir(tmp_path)
    found = plan("diffullama-7b", {})
    assert list(tmp_path.iterdir()) == []
    assert (found["parameters"], found["steps"]) == (6_738_415_616, 2067)
    assert found["tokens"] == 2067 * 15_360 * 2048
    assert found["config"]["data"] is None and found["config"]["out"] is None
    cards = {row["card"]: row for row in found["cards"]}
    assert cards["H100 SXM"]["fits"] == {"1": False, "8": True, "64": True}
    assert found["batch"]["64"] == {"micro_batch": 16, "accumulation": 15}
    memory = found["memory_per_device"]
    assert memory["1"]["total"] > 110e9 > 80e9 > memory["8"]["total"] > memory["64"]["total"]
    assert memory["64"]["moments"] == 8 * 6_738_415_616 // 64
    # what is computed a second time is a third more than the 30 hours of `test_the_7b_run_of_the_paper`
    assert cards["H100 SXM"]["hours"]["64"] == pytest.approx(30.3 * 4 / 3, rel=0.01)
    assert cards["H100 SXM"]["hours"]["8"] == pytest.approx(8 * cards["H100 SXM"]["hours"]["64"])
    faster = plan("diffullama-7b", {"checkpointing": "false"}, devices=64, utilisation=0.5)
    assert faster["cards"][2]["hours"] == {"64": pytest.approx(30.3 * 0.4 / 0.5, rel=0.01)}
    assert faster["memory_per_device"]["64"]["total"] > 2 * memory["64"]["total"]
    # too much at once for 80 GB, so it says what would do
    assert (faster["cards"][2]["fits"], faster["cards"][2]["largest_micro_batch"]) == ({"64": False}, {"64": 4})


def test_a_plan_counts_what_the_run_does(home):
    model = str(home / "parent")
    sizes = geometry(transformers.LlamaForCausalLM.from_pretrained(model))
    same = {"model": model, "tokens": "1M", "length": "32"}
    found = plan("tiny", {**same, "micro_batch": "2"}, devices=1)
    assert (found["parameters"], found["sizes_from"]) == (sizes.parameters, "its config.json")
    assert found["batch"] == {"1": {"micro_batch": 2, "accumulation": 3}}
    parts, tokens = found["flops_by_part"], found["tokens"]
    assert sum(parts.values()) == found["flops"] == costs.flops(sizes, tokens, 32)
    assert found["memory_per_device"]["1"] == costs.training_memory(sizes, 32, 2, Method(mixed=False)).as_dict()
    low = plan("adapter", same, devices=1)
    assert low["trained_parameters"] == costs.low_rank_parameters(sizes, 16) < low["parameters"]
    assert low["flops_by_part"]["vocabulary"] == parts["vocabulary"] * 4 // 6
    for more in ({"block_size": "8"}, {"ar_weight": "0.5"}):
        assert plan("tiny", same | more, devices=1)["flops_by_part"]["weights"] == 2 * parts["weights"]
    two = plan("tiny", same, devices=2)["memory_per_device"]["2"]["gradients"]  # of DDP's, in buckets; one micro-batch
    assert two == 4 * sizes.parameters + 4 * sizes.width * sizes.vocabulary


def test_the_share_of_steps_with_a_clean_copy():
    steps = {
        "tokens": 100 * 6 * 128,
        "block_schedule": [{"size": 4, "steps": 10}, {"size": None, "steps": 60}, {"size": 8, "steps": 1}],
    }
    assert clean_share(of("tiny", **steps)) == pytest.approx(0.4)
    assert clean_share(of("tiny", **steps, full_share=0.5)) == pytest.approx(0.2)
    assert clean_share(of("tiny", block_size=8)) == 1
    assert clean_share(of("tiny")) == clean_share(of("pocket-ar")) == 0


def test_what_a_plan_cannot_know_it_says(tmp_path):
    found = plan("diffugpt-s", {"model": "somebody/unknown", "out": str(tmp_path / "x")})
    assert (found["parameters"], found["flops"], found["steps"]) == (None, None, 1_000_000)
    assert found["reason"].startswith("no costs: somebody/unknown: no such folder")
    assert not (tmp_path / "x").exists()
    # a batch of 6 cannot be shared by 8 or 64
    tiny = plan("tiny", {"model": "gpt2"})
    assert tiny["batch"] == {"1": {"micro_batch": 6, "accumulation": 1}, "8": None, "64": None}
    assert tiny["memory_per_device"]["8"] is None and not tiny["cards"][0]["fits"]["64"]
    with bad("global_batch=6 does not divide by 8"):
        plan("tiny", {"model": "gpt2"}, devices=8)
    with bad("length=2048: gpt2 takes at most 1024"):
        plan("tiny", {"model": "gpt2", "length": "2048"})
    with bad("^model is missing"):
        plan("tiny", {})


def test_a_plan_needs_nothing_that_a_run_does(tmp_path):
    found = run("diffugpt-s", {"out": str(tmp_path / "x"), "data": "nowhere.jsonl"}, plan=True)
    assert (found["steps"], found["config"]["learning_rate"], found["config"]["data"]) == (
        1_000_000,
        3e-4,
        "nowhere.jsonl",
    )
    assert not (tmp_path / "x").exists()


def test_the_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["adapt", "diffullama-7b", "--plan", "--devices", "64", "--utilisation", "0.5", "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["utilisation"], list(found["memory_per_device"])) == (0.5, ["64"])
    for line in (["--devices", "2"], ["--utilisation", "0.5"]):
        assert "add --plan" in one_error(["adapt", "tiny", *line], capsys)
    assert "does not divide by 7" in one_error(["adapt", "diffullama-7b", "--plan", "--devices", "7"], capsys)


@pytest.mark.parametrize("name", ["diffullama-7b", "tiny"])
def test_a_plan_fits_every_terminal(name, monkeypatch):
    report = plan(name, {} if name != "tiny" else {"model": "gpt2"})
    for width in (30, 49, 69, 70, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        out = io.StringIO()
        show(report, out)
        text = "".join(out.getvalue().split())
        assert max(map(len, out.getvalue().splitlines())) <= width
        assert all(said in text for said in ("learning_rate", "RTX4090", "assumptions", "tobegiven"))
        assert ("doesnotdivide" in text) == (name == "tiny") and ("toosmall" in text)
    out = io.StringIO()
    show(plan(name, {"model": "./no"}), out)
    assert "no costs: ./no: no such folder" in " ".join(out.getvalue().split()) and "RTX" not in out.getvalue()


# -- the presets

# The paper's table (arXiv 2410.17891 v3, section 4 and appendix): what each preset is held to, value by value.
PAPER = {
    "diffugpt-s": {
        "model": "gpt2", "length": 512, "global_batch": 256, "steps": 1_000_000, "tokens": 131_072_000_000,
        "learning_rate": 3e-4, "lr_schedule": "cosine", "warmup_steps": 2000, "annealing": "bernoulli",
        "anneal_steps": 10_000, "mask_token": "10541", "precision": "bf16", "packing": "stream",
    },
    "diffugpt-m": {
        "model": "gpt2-medium", "length": 1024, "global_batch": 1280, "steps": 160_000, "tokens": 209_715_200_000,
        "learning_rate": 3e-4, "lr_schedule": "cosine", "warmup_steps": 2000, "annealing": "bernoulli",
        "anneal_steps": 10_000, "mask_token": "new", "precision": "bf16", "packing": "stream",
    },
    "diffullama-7b": {
        "model": "meta-llama/Llama-2-7b-hf", "length": 2048, "global_batch": 60 * 4 * 64, "steps": 2067,
        "tokens": 65_000_000_000, "learning_rate": 2e-5, "lr_schedule": "constant", "warmup_steps": 0,
        "annealing": "none", "anneal_steps": 0, "mask_token": "811", "precision": "bf16", "packing": "stream",
        "betas": (0.9, 0.95), "weight_decay": 0.1, "sharding": "full",
    },
}  # fmt: skip
# Where a preset is not as the paper, or the paper says nothing: the words of its header that tell.
DEVIATIONS = {
    "diffugpt-s": ["a fixed BOS", "objective `bound`", "the subset of FineWeb", "Not given in the paper: betas, weight decay"],
    "diffugpt-m": ["BOS", "objective `bound`", "210B tokens", "kept as they are"],
    "diffullama-7b": ["BOS", "objective `bound`", "FSDP2 in place of ZeRO-3", "micro-batches", "prepared first"],
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_presets(name):
    config = resolve("adapt", AdaptConfig, name, {}, {"data": "x", "out": "y"})
    assert {key: getattr(config, key) for key in PAPER[name]} == PAPER[name]
    positions = config.steps * config.global_batch * config.length
    assert 0 <= positions - config.tokens < config.global_batch * config.length  # the last step is a whole one
    assert (config.shift, config.noise, config.noise_schedule, config.noise_floor) == (
        True,
        "bernoulli",
        "linear",
        1e-3,
    )
    assert (config.adapter, config.block_size, config.block_schedule, config.ar_weight) == ("none", None, None, 0)
    # what deviates, and what the paper leaves open
    assert config.objective == "bound"
    if name != "diffullama-7b":
        assert (config.betas, config.weight_decay) == ((0.9, 0.999), 0)
        assert config.data == "HuggingFaceFW/fineweb:sample-100BT"
    header = " ".join(
        line.lstrip("# ") for line in (PRESETS / "adapt" / f"{name}.yaml").read_text().splitlines() if line[0] == "#"
    )
    for words in DEVIATIONS[name]:
        assert words in header


def test_diffullama_s_data_is_the_mixture_of_the_paper():
    mixture = yaml.safe_load((PRESETS / "prepare" / "diffullama-7b.yaml").read_text())
    assert [source["weight"] for source in mixture["data"]] == [69.36, 30.64]
    run = of("diffullama-7b")
    assert (mixture["model"], mixture["length"], mixture["mask_token"]) == (run.model, run.length, run.mask_token)


@pytest.mark.parametrize(("name", "sizes"), [("block-qwen3", [1, 4, 32]), ("tiny-block", [1, 4, 8])])
def test_the_block_presets_grow(name, sizes):
    config = of(name)
    assert config.block_schedule is not None and [stage.size for stage in config.block_schedule] == sizes
    assert sum(float(str(stage.steps).rstrip("%")) for stage in config.block_schedule) == 100
    assert config.anneal_steps == 0 and config.annealing == "none"  # the blocks open the future
    assert all(config.length % size == 0 for size in sizes)


def test_the_small_presets_are_like_tiny():
    """But for what they are there to show."""
    tiny = of("tiny").model_dump()
    different = {
        name: {key for key, value in of(name).model_dump().items() if value != tiny[key]}
        for name in ("tiny-block", "adapter")
    }
    assert different == {
        "tiny-block": {"annealing", "anneal_steps", "block_schedule"},
        "adapter": {"adapter", "train_embeddings", "keep_adapter", "learning_rate"},
    }


def test_the_shipped_models_presets_stay():
    """`pocket` and `pocket-ar` are trained: what their cards tell must go on being what these presets do."""
    same = {
        "length": 256, "global_batch": 32, "warmup_steps": "4%", "weight_decay": 0.1, "betas": (0.9, 0.95),
        "eval_blocks": 64, "save_seconds": 60,
    }  # fmt: skip
    more = {
        "pocket": {"tokens": 8_000_000, "anneal_steps": "40%", "learning_rate": 1.5e-3},
        "pocket-ar": {
            "tokens": 16_000_000, "annealing": "none", "objective": "autoregressive", "scratch": True,
            "learning_rate": 2.5e-3, "eval_every": "5%",
        },
    }  # fmt: skip
    for name, own in more.items():
        assert of(name).model_dump(exclude_defaults=True) == GIVEN | same | own
