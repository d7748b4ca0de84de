"""`diffulm import` and `diffulm export`: released layouts to ours and back, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import nn

from diffulm.checkpoint import tensors
from diffulm.checkpoint.files import CHECKSUMS, read_config
from diffulm.checkpoint.load import load
from diffulm.checkpoint.save import save
from diffulm.cli import main
from diffulm.denoiser.adopt import adopt
from diffulm.recipes.convert import export, import_checkpoint
from layouts import TEXT, TIED_NOTE, byte_pairs, published_name, released
from models import VOCABULARY, bad, build, ids, tokenizer

MASK = 9
UNTIED = {"config": {"tie_word_embeddings": False}}
# What somebody may publish: name -> arguments of `released`, layout to export to, whether the mask must be told.
PUBLISHED: dict[str, tuple[dict[str, Any], str, bool]] = {
    "gpt2": ({"note": TIED_NOTE}, "diffugpt", False),
    "gpt2 untied": (UNTIED, "diffugpt", False),
    "gpt2 float16": ({"dtype": torch.float16, "note": TIED_NOTE}, "diffugpt", False),
    "gpt2 reused token": ({"vocabulary": VOCABULARY, "note": TIED_NOTE}, "denoise-model", True),
    "llama": ({"family": "llama", "vocabulary": VOCABULARY}, "denoise-model", True),
    "llama extra row": ({"family": "llama"}, "denoise-model", False),
    "llama mixed": (
        {"family": "llama", "dtype": torch.bfloat16, "norms": torch.float32, "vocabulary": VOCABULARY},
        "denoise-model",
        True,
    ),
    "llama plain": ({"family": "llama", "plain": True, "dtype": torch.bfloat16}, "diffullama", True),
}


def contents(folder: Path) -> dict[str, tuple[torch.dtype, list[int], bytes]]:
    """Every tensor of a folder: dtype, shape and bits."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(name)
                found[name] = value.dtype, list(value.shape), value.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def logits(source: Path, mask: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        return load(source, mask)[0].rows(ids())


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- there and back ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_import_then_export_gives_the_same_file(name, tmp_path):
    how, layout, told = PUBLISHED[name]
    source = released(tmp_path / "DiffuLLaMA", **how)
    mask = MASK if told else None
    report = import_checkpoint(str(source), tmp_path / "ours", mask_token_id=mask)
    family = how.get("family", "gpt2")
    before, ours = contents(source), contents(tmp_path / "ours")
    assert {
        published_name(key, family) if not how.get("plain") else key: value for key, value in ours.items()
    } == before
    config = read_config(tmp_path / "ours")
    assert config["dtype"] == str(how.get("dtype", torch.float32)).removeprefix("torch.")
    assert config["architectures"] == [type(build(family)).__name__]
    assert not {"torch_dtype", "_name_or_path"} & set(config)
    assert report["tensors"] == len(before) and report["mask_token_id"] == (MASK if told else VOCABULARY)
    assert torch.equal(logits(tmp_path / "ours"), logits(source, mask))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")  # a plain checkpoint
    assert (
        theirs.get_input_embeddings().weight.shape[0] == config["vocab_size"] == how.get("vocabulary", VOCABULARY + 1)
    )
    assert theirs.dtype == how.get("dtype", torch.float32)

    export(str(tmp_path / "ours"), tmp_path / "back", layout)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    back = read_config(tmp_path / "back")
    assert back.pop("diffulm")["mask_token_id"] == report["mask_token_id"]
    assert back == read_config(source)
    assert torch.equal(logits(tmp_path / "back"), logits(source, mask))


@pytest.mark.parametrize("name", ["gpt2_released", "llama_released", "llama_derived_released"])
def test_the_released_fixtures_survive(shared, name, tmp_path):
    source = shared / "fixtures" / name
    told = json.loads((shared / "fixtures" / "fixtures.json").read_text())["families"][name.split("_")[0]]["mask_id"]
    mask = None if name == "gpt2_released" else told
    assert import_checkpoint(str(source), tmp_path / "ours", mask)["mask_token_id"] == told
    assert torch.equal(logits(tmp_path / "ours"), logits(source, mask))
    export(str(tmp_path / "ours"), tmp_path / "back", "diffullama" if name == "llama_released" else "denoise-model")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    back = read_config(tmp_path / "back")
    assert back.pop("diffulm")["mask_token_id"] == told  # what nothing else in the folder says
    assert back == read_config(source)


@pytest.mark.parametrize(
    ("family", "layout"), [("gpt2", "diffugpt"), ("llama", "diffullama"), ("llama", "denoise-model")]
)
def test_export_then_import_gives_the_same_model(family, layout, tmp_path):
    denoiser, words = adopt(build(family), tokenizer())
    denoiser.model.to(torch.bfloat16)
    save(denoiser, words, tmp_path / "ours")
    report = export(str(tmp_path / "ours"), tmp_path / "out", layout)
    assert report["layout"] == layout and report["dtypes"] == {"BF16": report["tensors"]}
    derived = any(name.startswith("denoise_model.") for name in contents(tmp_path / "out"))
    assert derived == (layout != "diffullama")
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "ours"))
    import_checkpoint(str(tmp_path / "out"), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "ours")
    assert load(tmp_path / "again")[0].record == load(tmp_path / "ours")[0].record
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "ours"))
    assert load(tmp_path / "again")[1]("w5 w7")["input_ids"] == words("w5 w7")["input_ids"]


def test_a_family_has_a_first_layout(tmp_path):
    for family, layout in (("gpt2", "diffugpt"), ("llama", "diffullama")):
        save(adopt(build(family))[0], None, tmp_path / family)
        assert export(str(tmp_path / family), tmp_path / f"{family}.out")["layout"] == layout


# --- shards and large files ---


def test_shards_in_and_out(tmp_path, monkeypatch):
    """Read from shards whatever their order; ours and the plain layout are cut at the usual size, the other one, of which
    the published code opens a single file, never."""
    source = released(tmp_path / "DiffuLLaMA", "llama", vocabulary=VOCABULARY, shards=4)
    whole = released(tmp_path / "whole", "llama", vocabulary=VOCABULARY)
    assert len(import_checkpoint(str(source), tmp_path / "one", MASK)["files"]) == 1
    monkeypatch.setattr(tensors, "SHARD_BYTES", 20_000)
    files = import_checkpoint(str(source), tmp_path / "many", MASK)["files"]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert files == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)] + ["model.safetensors.index.json"]
    assert index["metadata"]["total_size"] == sum(len(bits) for _, _, bits in contents(source).values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "many" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    assert all((tmp_path / "many" / file).stat().st_size < 22_000 for file in files[:-1])
    assert set(json.loads((tmp_path / "many" / CHECKSUMS).read_text())) == set(files[:-1])
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    expected = logits(whole, MASK)
    assert torch.equal(logits(tmp_path / "many"), expected)
    assert len(export(str(tmp_path / "many"), tmp_path / "plain")["files"]) == 6
    assert torch.equal(logits(tmp_path / "plain"), expected)
    assert export(str(tmp_path / "many"), tmp_path / "derived", "denoise-model")["files"] == ["model.safetensors"]
    assert contents(tmp_path / "derived") == contents(whole)


def test_nothing_is_decoded(tmp_path, monkeypatch):
    """Tensors go by in pieces, as bytes: also of a dtype that nobody computes in."""
    source = released(tmp_path / "a")
    import_checkpoint(str(source), tmp_path / "expected")
    monkeypatch.setattr(tensors, "CHUNK", 1000)
    monkeypatch.setattr(torch, "frombuffer", None)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    import_checkpoint(str(source), tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(tmp_path / "expected")
    eighth = {"denoise_model.ln_f.weight": torch.ones(32).to(torch.float8_e4m3fn)}
    assert import_checkpoint(str(released(tmp_path / "b", **eighth)), tmp_path / "f8")["dtypes"]["F8_E4M3"] == 1


# --- what is dropped, and what is refused ---


def test_what_is_left_out_is_told(tmp_path):
    weight = build("gpt2", vocab_size=VOCABULARY + 1).transformer.wte.weight.detach().clone()
    more = {"denoise_model.h.0.attn.bias": torch.ones(1), "lm_head.weight": weight}
    report = import_checkpoint(str(released(tmp_path / "a", **more)), tmp_path / "ours")
    assert report["dropped"] == sorted(more)
    assert any("lm_head.weight was left out: tied: the same bits as embed_tokens.weight" in n for n in report["notes"])
    assert not {"transformer.h.0.attn.bias", "lm_head.weight"} & set(contents(tmp_path / "ours"))
    expected = import_checkpoint(str(released(tmp_path / "b")), tmp_path / "bare")
    assert expected["dropped"] == [] and contents(tmp_path / "ours") == contents(tmp_path / "bare")
    weight[0, 0] += 1
    with bad("lm_head.weight differs from embed_tokens.weight"):
        import_checkpoint(str(released(tmp_path / "c", **{"lm_head.weight": weight})), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_every_tensor_that_does_not_fit_is_told(tmp_path, capsys):
    more = {f"extra.{i}": torch.ones(1) for i in range(40)}
    gone = {"denoise_model.ln_f.bias": None, "denoise_model.h.1.ln_1.bias": None}
    source = released(tmp_path / "a", **more, **gone, **{"denoise_model.ln_f.weight": torch.ones(3)})
    with pytest.raises(SystemExit) as caught:
        main(["import", str(source), str(tmp_path / "out"), "--json"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["unexpected"] == sorted(more) and told["missing"] == sorted(gone)
    assert told["misshapen"] == ["denoise_model.ln_f.weight [3] instead of [32]"]
    (line,) = err.splitlines()
    assert line.startswith("diffulm: error: ") and all(name in line for name in (*more, *gone))
    assert listing(tmp_path) == sorted(f"a{end}" for end in ("", "/config.json", "/model.safetensors"))


def test_import_is_refused(tmp_path):
    plain = tmp_path / "plain"
    build("llama").save_pretrained(plain)
    with bad("is a plain AR checkpoint, not a diffusion model; `diffulm adapt`"):
        import_checkpoint(str(plain), tmp_path / "out")
    build("mistral").save_pretrained(tmp_path / "mistral")
    with bad("no released layout is known of the model type 'mistral'"):
        import_checkpoint(str(tmp_path / "mistral"), tmp_path / "out", MASK)
    source = released(tmp_path / "a")
    for mask, bos, match in ((65, None, "mask token id 65 lies outside"), (MASK, -1, "bos_token_id -1 lies outside")):
        with bad(match):
            import_checkpoint(str(source), tmp_path / "out", mask, bos)
    with bad("no-such: no such folder"):
        import_checkpoint(str(tmp_path / "no-such"), tmp_path / "out")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with bad("cannot be read as safetensors"):
        import_checkpoint(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_file_that_shrinks_meanwhile(tmp_path, monkeypatch):
    source = released(tmp_path / "a")
    write = tensors._write_file

    def cut_short(*arguments):
        (source / "model.safetensors").write_bytes(b"")
        write(*arguments)

    monkeypatch.setattr(tensors, "_write_file", cut_short)
    with bad("ends before its tensor .* does; copy or download it again"):
        import_checkpoint(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_an_occupied_folder_is_left_alone(tmp_path):
    source = released(tmp_path / "a")
    import_checkpoint(str(source), tmp_path / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    for run in (
        lambda: import_checkpoint(str(source), tmp_path / "full"),
        lambda: import_checkpoint(str(source), source),
        lambda: export(str(tmp_path / "ours"), tmp_path / "full"),
        lambda: export(str(tmp_path / "ours"), tmp_path / "full" / "note"),
    ):
        before = {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)}
        with bad("exists and is not empty; nothing was written"):
            run()
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)} == before


def ours(folder: Path, family: str = "gpt2", words: Any = None, **record: Any) -> str:
    """A folder of ours with these values in its record."""
    save(*adopt(build(family), words), folder)
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps(config | {"diffulm": config["diffulm"] | record}))
    return str(folder)


def test_export_refuses_what_the_published_code_would_quietly_misread(tmp_path):
    out = tmp_path / "out"
    with bad("fills block by block; in diffugpt every position sees every other"):
        export(ours(tmp_path / "block", attention="block", block_size=4), out)
    with bad("has no shift; the published code always shifts"):
        export(ours(tmp_path / "flat", shift=False), out)
    with bad("holds no record of DiffuLM"):
        export(str(released(tmp_path / "theirs")), out)
    with bad("no released layout is known of the model type 'mistral'"):
        export(ours(tmp_path / "mistral", "mistral"), out)
    gpt2 = ours(tmp_path / "gpt2", words=tokenizer())
    with bad("unknown layout 'difugpt'; did you mean 'diffugpt'?"):
        export(gpt2, out, "difugpt")
    with bad("is a gpt2 model, which has no layout 'diffullama'; it can be diffugpt or denoise-model"):
        export(gpt2, out, "diffullama")
    config = read_config(Path(gpt2))
    for size, match in ((60, "no token with id 64"), (200, "65 rows of the embedding for 200 tokens")):
        shutil.rmtree(gpt2)
        save(adopt(build("gpt2"), None)[0], tokenizer(size), gpt2)
        assert read_config(Path(gpt2)) == config
        with bad(match):
            export(gpt2, out)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_export_notes_what_its_user_should_know(tmp_path):
    folder = ours(tmp_path / "a", words=tokenizer())
    notes = export(folder, tmp_path / "out")["notes"]
    assert any("do not forbid the mask token, id 64" in note for note in notes)
    assert any("will not take 65 rows" in note for note in notes)
    assert notes[0] in (tmp_path / "out" / "README.md").read_text()
    named, _ = adopt(build("gpt2"), tokenizer(), mask_token="w9")
    save(named, tokenizer(), tmp_path / "b")
    (note,) = export(str(tmp_path / "b"), tmp_path / "named")["notes"]
    assert "'w9'" in note and "cuts it out of any text" in note


# --- tokenizers ---


def test_mask_ids(tmp_path):
    """From the tokenizer, else the row behind the parent's vocabulary, else the family; what is given goes first."""
    with_row = released(tmp_path / "row")
    said = import_checkpoint(str(with_row), tmp_path / "1")
    assert (said["mask_token_id"], said["mask_token_from"]) == (64, "the row behind the parent's vocabulary")
    tokenizer(special=("<mask>",), mask_token="<mask>").save_pretrained(with_row)
    said = import_checkpoint(str(with_row), tmp_path / "2")
    assert (said["mask_token_id"], said["mask_token_from"]) == (63, "the tokenizer's mask token '<mask>'")
    said = import_checkpoint(str(with_row), tmp_path / "3", mask_token_id=7, bos_token_id=5)
    record = load(tmp_path / "3")[0].record
    assert (said["mask_token_id"], said["mask_token_from"], record.bos_token_id) == (7, "given", 5)
    large = released(tmp_path / "large", "llama", vocabulary=900, config={"vocab_size": 900})
    said = import_checkpoint(str(large), tmp_path / "4")
    assert (said["mask_token_id"], said["mask_token_from"]) == (811, "the one its family is known to use")


def test_a_tokenizer_comes_along(tmp_path):
    """Of a class unknown to transformers: as the family's own, under its name; any other: file for file."""
    source = released(tmp_path / "a", vocabulary=300)
    byte_pairs(source, tokenizer_class="MaskTokenWrapper")
    notes = import_checkpoint(str(source), tmp_path / "ours", MASK)["notes"]
    assert any("read as a GPT2Tokenizer" in note for note in notes)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert words.decode(words(TEXT)["input_ids"]) == TEXT
    known = released(tmp_path / "b", vocabulary=300)
    byte_pairs(known, tokenizer_class="GPT2Tokenizer", model_max_length=64)
    import_checkpoint(str(known), tmp_path / "same", MASK)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (known / name).read_bytes()


def test_an_exported_tokenizer_carries_the_mask_and_is_readable_in_version_4(tmp_path):
    """There the class that reads any tokenizer.json has another name, and merges are strings."""
    (tmp_path / "words").mkdir()
    byte_pairs(tmp_path / "words")
    words = transformers.GPT2TokenizerFast.from_pretrained(tmp_path / "words")
    source = released(tmp_path / "a", vocabulary=len(words))
    words.save_pretrained(source)
    file = source / "tokenizer_config.json"
    for unreadable in ("TokenizersBackend", "MaskTokenWrapper"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": unreadable}))
        import_checkpoint(str(source), tmp_path / f"ours {unreadable}", MASK)
        out = tmp_path / f"out {unreadable}"
        export(str(tmp_path / f"ours {unreadable}"), out, "diffugpt")
        assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
        merges = json.loads((out / "tokenizer.json").read_text())["model"]["merges"]
        assert merges and all(isinstance(pair, str) and pair.count(" ") == 1 for pair in merges)
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        assert theirs.mask_token_id == MASK and theirs(TEXT)["input_ids"] == words(TEXT)["input_ids"]


# --- what the published code makes of an export ---


class Published(nn.Module):
    """The modules of the published class: the parts of a transformers model under names of its own, read by `load_model`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.denoise_model: Any = model.base_model
        self.embed_tokens, self.lm_head = model.get_input_embeddings(), model.lm_head
        delattr(self.denoise_model, "wte" if hasattr(self.denoise_model, "wte") else "embed_tokens")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        out = self.denoise_model(inputs_embeds=self.embed_tokens(tokens), attention_mask=seen)
        return self.lm_head(out.last_hidden_state)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_published_class_reads_an_export(family, tmp_path):
    denoiser, _ = adopt(build(family))
    save(denoiser, None, tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "out", "denoise-model")
    theirs = Published(build(family, seed=5, vocab_size=VOCABULARY + 1))
    missing, unexpected = load_model(theirs, tmp_path / "out" / "model.safetensors", strict=True)
    assert not missing and not unexpected
    with torch.no_grad():
        assert torch.equal(theirs.eval()(ids()), denoiser.rows(ids()))


def test_config_of_an_export_is_one_of_version_4(tmp_path):
    """Version 4.44 knows rope_theta and rope_scaling; it would pass over rope_parameters and turn by 10000 in silence."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 16}
    for name, rope, expected in (("a", {"rope_type": "default"}, None), ("b", scaling, scaling)):
        save(adopt(build("llama", rope_parameters={**rope, "rope_theta": 5e5}))[0], None, tmp_path / name)
        export(str(tmp_path / name), tmp_path / f"{name}.out")
        config = read_config(tmp_path / f"{name}.out")
        assert (config["rope_theta"], config["rope_scaling"]) == (5e5, expected)
        assert config["torch_dtype"] == "float32" and not {"dtype", "rope_parameters"} & set(config)
        again = transformers.AutoConfig.from_pretrained(tmp_path / f"{name}.out").rope_parameters
        assert again["rope_theta"] == 5e5 and again["rope_type"] == rope["rope_type"]


def test_no_path_of_this_machine_is_given_away(tmp_path):
    parent = tmp_path / "parent"
    build("gpt2").save_pretrained(parent)
    save(*adopt(parent), tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "out")
    for file in (tmp_path / "out").glob("*.*[dn]"):  # .md, .json
        assert str(tmp_path) not in file.read_text(), file.name
    assert read_config(tmp_path / "out")["_name_or_path"] == "parent"


# --- the command line ---


def test_the_verbs(tmp_path, capsys):
    source = released(tmp_path / "a", **{"denoise_model.h.0.attn.bias": torch.ones(1)})
    for arguments in (
        ["import", str(source), str(tmp_path / "ours"), "--mask-token-id", "9"],
        ["export", str(tmp_path / "ours"), str(tmp_path / "out"), "--layout", "denoise-model"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        said = capsys.readouterr().out
        assert "mask_token_id: 9\n" in said and "note: " in said and "[" not in said
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "ours"), str(tmp_path / "json"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["layout"] == "diffugpt" and told["files"] == ["model.safetensors"] and told["notes"]
    with pytest.raises(SystemExit) as caught:
        main(["export", str(tmp_path / "ours"), str(tmp_path / "no"), "--layout", "diffugtp"])
    assert caught.value.code == 2 and "did you mean 'diffugpt'?" in capsys.readouterr().err


def test_weights_that_are_not_ours_any_more(tmp_path):
    import_checkpoint(str(released(tmp_path / "a")), tmp_path / "ours")
    save_file({"x": torch.ones(1)}, tmp_path / "ours" / "more.safetensors")
    with bad("unexpected: x"):
        export(str(tmp_path / "ours"), tmp_path / "out")
