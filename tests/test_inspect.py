"""`diffulm inspect`: the verdict and its evidence, what was read for it, and the cost."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from diffulm.checkpoint.outline import skeleton, stored_tensors
from diffulm.checkpoint.save import save
from diffulm.cli import main
from diffulm.cli.inspect import show
from diffulm.denoiser import probe as probing
from diffulm.denoiser.adopt import adopt
from diffulm.errors import BadInput
from diffulm.options import sampler_names
from diffulm.recipes import inspect as inspecting
from diffulm.recipes.inspect import inspect
from diffulm.recipes.inspection import Seen, serves
from models import bad, build, tokenizer
from test_outline import change, saved

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
}  # fmt: skip


def test_inspect_changes_nothing_and_tells_all(tmp_path):
    model = build("mistral")
    model.set_attn_implementation("eager")
    before, rows = json.dumps(model.config.to_dict(), default=str), len(model.get_input_embeddings().weight)
    found = inspect(model)
    assert (found.kind, found.adoptable, found.reason) == ("autoregressive", True, None)
    assert json.dumps(model.config.to_dict(), default=str) == before
    assert model.config._attn_implementation == "eager"
    assert len(model.get_input_embeddings().weight) == rows
    build("gemma2").save_pretrained(tmp_path)
    tokenizer(special=("<unused0>",)).save_pretrained(tmp_path)
    facts = inspect(str(tmp_path), tokens=1000).as_dict()
    json.dumps(facts)  # what the command line prints
    assert facts["model"] == str(tmp_path)
    assert facts["architecture"] == "Gemma2ForCausalLM"
    assert facts["parameters"] == sum(p.numel() for p in build("gemma2").parameters())
    assert facts["layers"] == {"full_attention": None, "sliding_attention": 5}
    assert facts["layer_counts"] == {"full_attention": 1, "sliding_attention": 1}
    assert (facts["mask_token"], facts["mask_token_id"]) == ("the reserved special token '<unused0>'", 63)
    assert (facts["bos_token_id"], facts["bos_from"]) == (1, "the tokenizer's bos_token_id")
    assert (facts["tokenizer_size"], facts["tokenizer_fits"]) == (64, True)
    assert (facts["read"], facts["probed"]) == ("weights", "weights")
    assert facts["probe"]["backend"] == "eager, additive float mask"
    assert all(facts["probe"][key] for key in ("full", "causal", "mirrored", "where", "window"))
    assert facts["bytes_on_disk"] == (tmp_path / "model.safetensors").stat().st_size
    assert facts["serves"]["samplers"] == sampler_names()
    assert facts["serves"]["scores"] == ["bound", "left_to_right"]
    assert facts["serves"]["infilling"] and not facts["serves"]["caches"]
    assert (facts["cost"]["tokens"], facts["cost"]["length"]) == (1000, 64)


def test_the_estimate_is_for_what_was_asked(tmp_path):
    folder = saved(tmp_path)
    few, many = (
        inspect(folder, tokens="2K").as_dict(),
        inspect(folder, tokens="4K", length=16, utilisation=0.2).as_dict(),
    )
    assert many["cost"]["flops_by_part"]["weights"] == 2 * few["cost"]["flops_by_part"]["weights"]
    assert many["memory"]["length"] == many["cost"]["length"] == 16
    # half the utilisation, twice the time
    hours = many["cost"]["cards"][0]["hours"]["1"] / many["cost"]["flops"]
    assert hours == pytest.approx(2 * few["cost"]["cards"][0]["hours"]["1"] / few["cost"]["flops"])
    # gemma2 is served by eager attention, which holds the scores of all pairs
    assert inspect(build("gemma2")).memory["inference"]["float32"]["activations"] > 8 * 64 * 4 * 64 * 8
    with bad("length=65: .* takes at most 64 positions"):
        inspect(folder, length=65)
    for wrong in ({"tokens": "1X"}, {"tokens": 0}, {"length": 1}, {"utilisation": 0.0}, {"utilisation": float("nan")}):
        with bad(next(iter(wrong))):
            inspect(folder, **wrong)


def test_inspect_does_not_convert_a_bfloat16_folder(tmp_path, monkeypatch):
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr(
        "diffulm.denoiser.adopt.probe", lambda d, own, ids: seen.append(own.dtype) or probing.probe(d, own, ids)
    )
    found = inspect(tmp_path)
    assert (found.adoptable, found.dtype) == (True, "bfloat16")
    assert seen == [torch.bfloat16]
    denoiser, _ = adopt(tmp_path)
    assert denoiser.model.dtype == torch.float32


def test_inspect_of_what_is_there_and_what_is_not(tmp_path):
    for missing in (tmp_path / "no", str(tmp_path / "no"), "no-such-model", "no/such-model", "a/b c"):
        with bad("no such folder"):
            inspect(missing)
    (tmp_path / "empty").mkdir()
    with bad("has no config.json"):
        inspect(tmp_path / "empty")
    found = inspect(saved(tmp_path / "bloom", "bloom"))
    assert (found.adoptable, found.probed, found.cost) == (False, "weights", None)
    assert found.reason.startswith("its forward takes no 4-D attention mask (")
    saved(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    found = inspect(tmp_path / "torn")
    assert not found.adoptable
    assert "cannot be read as safetensors" in found.reason


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Every folder counts as too large to open unasked, and opening one is an error."""
    monkeypatch.setattr(inspecting, "READ_LIMIT", 0)
    monkeypatch.setattr(inspecting, "open_parent", lambda *_: pytest.fail("the weights were opened"))
    monkeypatch.setattr(inspecting, "load", lambda *_, **__: pytest.fail("the weights were opened"))


WHAT_WEIGHTS_SAY = {"read", "probed", "evidence", "probe"}


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2"])
def test_headers_say_the_same_as_weights(family, tmp_path, large, monkeypatch):
    folder = saved(tmp_path, family)
    tokenizer(special=("<mask>",), mask_token="<mask>").save_pretrained(folder)
    # without BOS in the config: the tokenizer's will do, also where a twin is asked
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))
    by_headers = inspect(folder).as_dict()
    assert (by_headers["read"], by_headers["probed"]) == ("headers", "twin")
    assert "the weights were not read" in by_headers["evidence"]
    monkeypatch.undo()
    by_weights = inspect(folder).as_dict()
    assert {key for key in by_weights if by_weights[key] != by_headers[key]} <= WHAT_WEIGHTS_SAY
    flags = ("full", "causal", "mirrored", "where", "window", "backend")
    assert [by_headers["probe"][key] for key in flags] == [by_weights["probe"][key] for key in flags]


def test_probe_and_no_probe(tmp_path, large, monkeypatch):
    folder = saved(tmp_path)
    found = inspect(folder, probe=False)
    assert (found.adoptable, found.reason, found.read, found.probed, found.probe) == (None, None, "headers", None, None)
    assert "nothing was measured" in found.evidence and found.cost and found.serves
    with pytest.raises(pytest.fail.Exception, match="the weights were opened"):
        inspect(folder, probe=True)
    monkeypatch.setattr(inspecting, "twin_of", lambda config: (_ for _ in ()).throw(BadInput("no twin")))
    found = inspect(folder)  # that no twin can be made is nobody's fault
    assert (found.adoptable, found.probed) == (None, None)
    assert "no twin" in found.evidence
    monkeypatch.undo()
    monkeypatch.setattr(inspecting, "READ_LIMIT", 0)
    assert inspect(folder, probe=True).probed == "weights"
    found = inspect(build("llama"), probe=False)
    assert (found.adoptable, found.read, found.probed) == (None, "weights", None)


def test_a_hybrid_says_which_layers_look_left():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "conv", "full_attention"]
    config = transformers.Lfm2Config(vocab_size=64, num_hidden_layers=3, layer_types=kinds, **sizes)
    found = inspect(transformers.Lfm2ForCausalLM(config), probe=False)
    assert found.layer_counts == {"conv": 2, "full_attention": 1}
    assert found.serves["infilling_reason"] == "it has no tokenizer: only ids can be filled, through `denoiser`"
    seen = Seen("x", transformers.Lfm2ForCausalLM(config), tokenizer(), "weights", "float32")
    assert serves(seen, None)["infilling_reason"].startswith("2 of 3 layers always look left (recurrent)")


def test_a_large_model_is_refused_for_the_same_reasons(tmp_path, large):
    for family, reason in (("bloom", "its forward takes no 4-D attention mask"), ("mamba", "can only look left")):
        found = inspect(saved(tmp_path / family, family))
        assert (found.adoptable, found.probed, found.serves, found.cost) == (False, "twin", None, None)
        assert reason in found.reason
    folder = saved(tmp_path / "words")
    tokenizer(size=70).save_pretrained(folder)
    found = inspect(folder)
    assert (found.adoptable, found.tokenizer_fits, found.probed) == (False, False, None)
    assert found.reason == "its tokenizer has 70 tokens, its embedding only 64 rows"
    found = inspect(saved(tmp_path / "mask"), mask_token="64")
    assert (found.adoptable, "lies outside the vocabulary" in found.reason) == (False, True)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_tensors_that_do_not_fit_are_named(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(inspecting, "READ_LIMIT", limit)
    folder = saved(tmp_path)
    change(folder, model__norm__weight=None, other__weight=torch.ones(1))
    found = inspect(folder)
    assert (found.adoptable, found.probed, found.architecture) == (False, None, "LlamaForCausalLM")
    assert found.tensors == {"missing": ["model.norm.weight"], "unexpected": ["other.weight"], "misshapen": []}
    assert "1 missing (model.norm.weight); 1 unexpected (other.weight)" in found.reason


def test_a_model_of_the_hub(tmp_path, monkeypatch):
    """A folder that only transformers knows to be one: what the hub has is told by its config alone if it is large."""
    folder = saved(tmp_path)
    tokenizer().save_pretrained(folder)
    monkeypatch.setattr(inspecting, "locate", str)
    found = inspect(folder)
    assert (found.adoptable, found.read, found.probed, found.bytes_on_disk) == (True, "weights", "weights", None)
    monkeypatch.setattr(inspecting, "READ_LIMIT", 0)
    (folder / "model.safetensors").unlink()
    found = inspect(folder)
    assert (found.adoptable, found.read, found.probed) == (True, "config", "twin")
    assert found.dtype == "float32"
    assert found.parameters == sum(p.numel() for p in build("llama").parameters())


# -- diffusion models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_model_that_is_adapted_already(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(inspecting, "READ_LIMIT", limit)
    save(*adopt(build("llama"), tokenizer()), tmp_path / "ours")
    found = inspect(tmp_path / "ours")
    assert (found.kind, found.adoptable, found.mask_token) == ("diffusion", True, "id 64, attention full")
    assert (found.read, found.probed) == ("weights" if limit else "headers", None)
    assert (found.mask_token_id, found.vocabulary, found.bos_token_id) == (64, 65, 1)
    assert found.record["attention"] == "full" and found.serves["when"] == "now" and found.serves["infilling"]
    with bad("is a diffusion model already"):
        adopt(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["diffulm"] |= {"attention": "block", "block_size": 4}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    found = inspect(tmp_path / "ours")
    assert found.serves["caches"] == ["block-causal, exact"] and not found.serves["infilling"]
    assert "never trained to see what follows" in found.serves["infilling_reason"]


@pytest.mark.parametrize("name", ["gpt2_released", "llama_derived_released"])
def test_a_released_checkpoint_by_its_headers(shared, name, large, monkeypatch):
    by_headers = inspect(shared / "fixtures" / name, mask_token="7")
    assert (by_headers.kind, by_headers.adoptable, by_headers.read) == ("diffusion", True, "headers")
    assert (by_headers.mask_token_id, by_headers.record["emit_mask"]) == (7, True)
    assert by_headers.evidence == "its tensors or name are a released checkpoint's; nothing was measured"
    monkeypatch.undo()
    by_weights = inspect(shared / "fixtures" / name, mask_token="7")
    assert by_headers.as_dict() | {"read": "weights"} == by_weights.as_dict()


# -- a 7B folder, and the command line ----------------------------------------------------------------------------------


def hollow(folder: Path) -> Path:
    """Llama-2-7B with all its headers and no data: the files are holes of 13.5 GB."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))
    model = skeleton(transformers.LlamaConfig(**LLAMA_2_7B))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    names, listed = sorted(shapes), {}
    for i, part in enumerate((names[:150], names[150:]), 1):
        header, end = {}, 0
        for name in part:
            size = 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        file = folder / f"model-{i:05}-of-00002.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + end)
        listed |= dict.fromkeys(part, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


PEAK = """
import re, sys
from diffulm.cli import main
try:
    main(["inspect", sys.argv[1], "--json", "--tokens", "65B"])
finally:
    with open("/proc/self/status") as status:
        print(re.search(r"VmHWM:\\s*(\\d+)", status.read())[1], file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.slow
def test_a_7b_folder_in_seconds(tmp_path):
    folder = hollow(tmp_path / "7b")
    assert sum(file.stat().st_size for file in folder.iterdir()) > 13e9
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # processor seconds, imports included: those of the clock depend on who else uses the machine. 4.5 when written
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    # kB: torch and transformers take 0.35 GB, the weights would be 13.5
    assert int(done.stderr.split()[-1]) < 1e6
    found = json.loads(done.stdout)
    assert (found["adoptable"], found["read"], found["probed"]) == (True, "headers", "twin")
    assert (found["parameters"], found["dtype"], found["context"]) == (6_738_415_616, "float16", 4096)
    assert found["parameters_by_use"]["without_embedding"] == 6_738_415_616 - 2 * 32000 * 4096
    assert found["layer_counts"] == {"full_attention": 32}
    # the paper's run, on cards with the peak of its GH200
    hours = {row["card"]: row["hours"]["64"] for row in found["cost"]["cards"]}
    assert hours["H100 SXM"] == pytest.approx(30.3, abs=0.1)
    assert len(stored_tensors(folder)) == 291


@pytest.fixture
def run(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what making the model said
        with pytest.raises(SystemExit) as end:
            main(["inspect", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return call


def test_the_command(run, tmp_path):
    code, out, err = run("pocket-ar", "--tokens", "50M", "--length", "128", "--utilisation", "0.5")
    assert (code, err) == (0, "")
    for said in ("LlamaForCausalLM", "it can be adapted", "measured on these weights", "50,000,000 tokens", "at 50%"):
        assert said in out
    code, out, _ = run("pocket-ar", "--json", "--no-probe")
    found = json.loads(out)
    assert (code, found["adoptable"], found["probed"]) == (0, None, None)
    code, out, err = run(saved(tmp_path / "bloom", "bloom"), "--json")
    assert (code, json.loads(out)["adoptable"]) == (2, False)
    assert err.startswith("diffulm: error: ") and "takes no 4-D attention mask" in err and err.count("\n") == 1
    code, out, err = run(tmp_path / "bloom")  # for people the evidence, too
    assert (code, err.count("\n"), "it cannot be adapted" in out, "cost" in out) == (2, 1, True, False)
    for wrong in (["--tokens", "many"], ["--length", "0"], ["--utilisation", "2"]):
        code, out, err = run("pocket-ar", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert wrong[0].strip("-") in err


def shown(facts, width, monkeypatch, encoding="utf-8"):
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(facts, out)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


def test_the_report_fits_every_terminal(monkeypatch):
    facts = inspect(build("gemma2"), probe=False).as_dict()
    facts |= {"model": "[bold]x[/bold]", "mask_token": "the token '[/MASK]'"}
    facts["probe"] = {"full": True, "window": None, "identity": 0.0, "limit": 0.01, "backend": "sdpa"}
    facts["probe"]["layers"] = [("conv", "left always")] * 3 + [
        ("full_attention", "both sides"),
        ("conv", "left always"),
    ]
    wide = shown(facts, 100, monkeypatch, "ascii")
    assert "[bold]x[/bold]" in wide and "the token '[/MASK]'" in wide  # what files say is no markup
    assert "0-2, 4: conv, left always" in wide and "3: full attention, both sides" in wide
    assert "0.0e+00" in wide and "RTX 4090" in wide
    said = ["[bold]x[/bold]", "the token '[/MASK]'", "Gemma2ForCausalLM", "RTX 4090", "architecture", "assumptions"]
    for width in (20, 30, 49, 50, 69, 70, 80):
        text = shown(facts, width, monkeypatch)
        assert max(map(len, text.splitlines())) <= width
        squeezed = "".join(text.split())  # folded, never cut off
        assert all("".join(words.split()) in squeezed for words in said)
