"""Model cards: what they say, and that the parent's licence outlives any chain of adapting, loading and saving."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from diffulm import lm as lms
from diffulm.checkpoint import card
from diffulm.checkpoint.card import Facts, edited, text
from diffulm.checkpoint.load import load
from diffulm.checkpoint.origin import front_matter, hub_name, shown
from diffulm.checkpoint.save import save
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.record import Record
from diffulm.recipes import pocket
from diffulm.recipes.adapt import run
from diffulm.recipes.convert import export, import_checkpoint
from layouts import released
from models import build, tokenizer

FACTS = Facts("mine", "Made by hand.", "GPT2LMHeadModel", 1234567, 65, 64, "float16", Record(64, 1), parent="gpt2")
TRAINING = {
    "data": ["text.jsonl"], "datasets": ["owner/text"], "tokens": 50_000_000, "steps": 12, "held_out_blocks": 4,
    "settings": {"objective": "bound", "length": 32}, "scores": {"bound": 3.25, "bound_stderr": 0.01, "parent": 2.5},
}  # fmt: skip
PARENT_CARD = (
    "---\nlicense: other\nlicense_name: tiny-licence\nlanguage: [no, en]\ntags: [old]\nwidget: 3\n---\n# A parent\n"
)


def metadata(written: str) -> dict:
    front, _, _ = written.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(front)


def of(folder: Path) -> dict:
    return metadata((folder / "README.md").read_text())


@pytest.fixture
def parent(tmp_path) -> Path:
    folder = tmp_path / "parent-of-all"
    build("gpt2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(PARENT_CARD)
    (folder / "LICENSE.txt").write_text("You may look at it.")
    return folder


# --- the text ---


def test_the_text_says_what_is_known():
    written = text(
        replace(FACTS, training=TRAINING, metadata={"license": "mit", "base_model": "openai-community/gpt2"})
    )
    for part in (
        "# mine", "Made by hand.", "`gpt2`", "1,234,567 parameters, float16", "65 rows", "64 positions", "i + 1",
        "| mask token | id 64 |", "| attention | full |", "`mit`, that of its parent `gpt2`", "`text.jsonl`",
        "50,000,000 tokens in 12 steps", "objective=bound length=32", "On 4 held-out blocks",
        "| any-order bound | 3.250 ± 0.010 |", "| AR loss of the parent | 2.500 |",
        'import diffulm\n\nlm = diffulm.load("mine")\nprint(lm.infill(', "written by diffulm 0.",
    ):  # fmt: skip
        assert part in written, part
    told = metadata(written)
    assert told["license"] == "mit" and told["base_model"] == "openai-community/gpt2"
    assert told["library_name"] == "diffulm" and told["pipeline_tag"] == "text-generation"
    assert told["datasets"] == ["owner/text"] and {"diffulm", "masked-diffusion", "infilling"} <= set(told["tags"])
    (result,) = told["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "nats_per_token", "name": "any-order bound", "value": 3.25}]


def test_the_text_does_not_say_what_is_not_known():
    written = text(FACTS)
    assert "## Training" not in written and "## Losses" not in written
    assert not {"base_model", "datasets", "model-index", "language"} & set(metadata(written))
    assert metadata(written)["license"] == "unknown" and "Unknown: ask the parent's authors (`gpt2`)." in written
    assert "diffulm.load" not in text(replace(FACTS, record=None)) and "AutoModelForCausalLM" in text(
        replace(FACTS, record=None)
    )


def test_the_record_is_told():
    block = text(replace(FACTS, record=Record(5, None, shift=False, attention="block", block_size=8, emit_mask=True)))
    for part in (
        "id 5, which the model may also predict",
        "| BOS | none |",
        "full" not in block and "block, blocks of 8",
    ):
        assert part and part in block
    assert "| shift | none |" in block and "lm.infill" not in block
    assert "lifted" in text(replace(FACTS, record=Record(5, 1, window="lift")))


def test_odd_names_do_not_break_the_text():
    written = text(replace(FACTS, name="a\n---\nlicense: mit", parent="x | y\nz", how="Made."))
    assert metadata(written)["license"] == "unknown" and "\n# a --- license: mit\n" in written
    assert "| parent | `x / y z` |" in written


def test_who_wrote_it(tmp_path):
    file = tmp_path / "README.md"
    assert not edited(file)
    file.write_text(text(FACTS))
    assert not edited(file)
    file.write_text(text(FACTS).replace("Made by hand", "Made by me"))
    assert edited(file)
    file.write_text("# Mine\n")
    assert edited(file)


# --- the facts ---


def test_names_of_the_hub_and_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert (
        hub_name("gpt2") == "openai-community/gpt2"
        and hub_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    )
    cached = "/home/x/.cache/huggingface/hub/models--owner--na-me/snapshots/0a1b2c"
    assert hub_name(cached) == shown(cached) == "owner/na-me"
    for local in ("runs/mine", str(tmp_path / "runs" / "mine"), "pocket-ar", "a model", "/a/b/c", None):
        assert hub_name(local) is None
    assert shown("runs/mine") == "mine" == shown(str(tmp_path / "gone" / "mine"))
    assert shown("owner/name:configuration") == "owner/name:configuration" and shown("build/a/t.gz") == "t.gz"


@pytest.mark.parametrize("front", ["", "no front matter", "---\n: [\n---\n", "---\n- a\n---\n", "---\nnever closed"])
def test_a_card_that_cannot_be_read_says_nothing(tmp_path, front):
    (tmp_path / "README.md").write_text(front)
    assert front_matter(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe" + front.encode())
    assert front_matter(tmp_path) == {}


def test_norwegian_is_no_falsehood(tmp_path):
    (tmp_path / "README.md").write_text("---\r\nlanguage: no\r\nlicense: mit\r\n---\r\n")
    assert front_matter(tmp_path) == {"language": "no", "license": "mit"}


def test_the_parents_card_is_asked_for_on_the_hub(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text(PARENT_CARD)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(tmp_path)
    )
    facts = card.of_model(
        build("gpt2"), Record(5, 1, parent="gpt2"), tmp_path / "new", parent="gpt2", training=TRAINING
    )
    assert facts.metadata["base_model"] == asked[0][0] == "openai-community/gpt2"
    assert facts.metadata["license_name"] == "tiny-licence" and facts.parent == "gpt2"
    assert "tags" not in facts.metadata and "widget" not in facts.metadata
    assert all(name == "README.md" or name.isupper() for name in (p.rstrip("*") for p in asked[0][1]["allow_patterns"]))

    def offline(name, **kw):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    facts = card.of_model(
        build("gpt2"), Record(5, 1, parent="gpt2"), tmp_path / "new", parent="gpt2", training=TRAINING
    )
    assert facts.metadata == {"base_model": "openai-community/gpt2"}


# --- every saved model, and the chain ---


def carries(folder: Path, name: str) -> str:
    """The licence of PARENT_CARD in the card of `folder`, its text beside it; returns the card."""
    told, written = of(folder), (folder / "README.md").read_text()
    assert (told["license"], told["license_name"]) == ("other", "tiny-licence"), folder
    assert "base_model" not in told and "old" not in told["tags"] and "widget" not in told
    assert (folder / "LICENSE.txt").read_text() == "You may look at it."
    assert f"# {name}\n" in written and "`tiny-licence`, that of its parent `parent-of-all`." in written
    assert str(folder.parent) not in written
    return written


def test_the_licence_of_the_parent_survives_a_chain(parent, tmp_path):
    """adapt, load and save, save again without the first folders, export, import."""
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i} w{i + 1} w5 w7 w9"}) + "\n" for i in range(3, 60))
    )
    settings = {"model": str(parent), "data": str(tmp_path / "text.jsonl"), "out": str(tmp_path / "run"), "tokens": 64}
    settings |= {
        "length": 16,
        "global_batch": 2,
        "eval_blocks": 2,
        "eval_samples": 2,
        "device": "cpu",
        "precision": "float32",
    }
    report = run("tiny", settings)
    written = carries(tmp_path / "run", "run")
    score = f"| any-order bound | {report['bound']:.3f} ± {report['bound_stderr']:.3f} |"
    for part in (
        score,
        "trained by DiffuLM from the weights of `parent-of-all`",
        "`text.jsonl`",
        "64 tokens in 2 steps",
    ):
        assert part in written, part
    assert json.loads((tmp_path / "run" / "config.json").read_text())["diffulm"]["training"]["tokens"] == 64

    lms.load(tmp_path / "run").save(tmp_path / "copy")
    shutil.rmtree(parent)
    shutil.rmtree(tmp_path / "run")
    lms.load(tmp_path / "copy").save(tmp_path / "copy of copy")
    shutil.rmtree(tmp_path / "copy")
    export(str(tmp_path / "copy of copy"), tmp_path / "released")
    shutil.rmtree(tmp_path / "copy of copy")
    import_checkpoint(str(tmp_path / "released"), tmp_path / "last")
    for name, how in (("released", "exported from `copy of copy`"), ("last", "imported from the released checkpoint")):
        written = carries(tmp_path / name, name)
        assert how in written and score in written and "64 tokens in 2 steps" in written
        assert of(tmp_path / name)["model-index"][0]["name"] == name


def test_what_a_user_writes_into_a_card_goes_on(parent, tmp_path):
    save(*adopt(parent), tmp_path / "a")
    assert "no training of it is recorded" in carries(tmp_path / "a", "a")
    file = tmp_path / "a" / "README.md"
    file.write_text(file.read_text().replace("license: other", "license: mit\nbase_model: me/parent"))
    lms.load(tmp_path / "a").save(tmp_path / "b")
    assert of(tmp_path / "b")["license"] == "mit" and of(tmp_path / "b")["base_model"] == "me/parent"
    assert "saved from `a`" in (tmp_path / "b" / "README.md").read_text()
    file.unlink()
    lms.load(tmp_path / "a").save(tmp_path / "c")  # without a card of its own its parent's is read
    carries(tmp_path / "c", "c")


def test_a_run_of_an_autoregressive_model_has_a_card_too(parent, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + i * i % 60}" for i in range(400)))
    settings = {"model": str(parent), "data": str(tmp_path / "text.txt"), "out": str(tmp_path / "ar"), "tokens": 32}
    settings |= {"length": 16, "global_batch": 2, "eval_blocks": 2, "objective": "autoregressive", "scratch": True}
    run("tiny", settings | {"device": "cpu", "precision": "float32"})
    written = (tmp_path / "ar" / "README.md").read_text()
    assert "An autoregressive language model, trained by DiffuLM from fresh weights" in written
    assert "| AR loss | " in written and "mask token" not in written and "annealing=" not in written
    assert of(tmp_path / "ar")["library_name"] == "transformers"


def test_a_card_that_was_edited_in_a_run_stays(parent, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("# My notes\n")
    denoiser, _ = load(_saved(parent, tmp_path / "a"))
    facts = card.of_model(denoiser.model, denoiser.record, tmp_path / "run")
    (tmp_path / "new").mkdir()
    card.write(tmp_path / "new", facts)
    assert (tmp_path / "new" / "README.md").read_text() == "# My notes\n"
    assert (tmp_path / "new" / "LICENSE.txt").exists()


def _saved(parent: Path, folder: Path) -> Path:
    save(*adopt(parent), folder)
    return folder


def test_an_imported_card_keeps_what_its_publisher_said(tmp_path):
    source = released(tmp_path / "theirs")
    index = [{"name": "theirs", "results": []}]
    front = {"license": "apache-2.0", "base_model": "openai-community/gpt2", "datasets": ["HuggingFaceFW/fineweb"]}
    (source / "README.md").write_text(f"---\n{yaml.safe_dump({**front, 'model-index': index})}---\nText.")
    (source / "NOTICE").write_text("Made by them.")
    import_checkpoint(str(source), tmp_path / "ours")
    told = of(tmp_path / "ours")
    assert {key: told[key] for key in front} == front and told["model-index"] == index
    assert (tmp_path / "ours" / "NOTICE").read_text() == "Made by them."


def test_large_and_foreign_files_are_no_licence(tmp_path):
    for name in ("LICENSE", "Licence-Model.md", "notice.txt", "COPYING", "USE_POLICY.md", "licensed.py", "README.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "LICENSE.big").write_bytes(b" " * (card.LEGAL_BYTES + 1))
    (tmp_path / "license").mkdir()
    (tmp_path / "new").mkdir()
    card.write(tmp_path / "new", replace(FACTS, source=tmp_path))
    names = {"LICENSE", "Licence-Model.md", "notice.txt", "COPYING", "USE_POLICY.md", "README.md"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names


@pytest.mark.parametrize("name", ["pocket", "pocket-ar"])
def test_the_shipped_cards_are_untouched_and_describe_the_folders(name):
    folder = pocket.ASSETS / name
    told = of(folder)
    assert not edited(folder / "README.md") and told["license"] == "apache-2.0"
    assert ("mask token | id 1 |" in (folder / "README.md").read_text()) == (name == "pocket")


def test_the_licence_of_a_shipped_parent_is_known(tmp_path):
    lms.adopt("pocket-ar").save(tmp_path / "adopted")
    told = of(tmp_path / "adopted")
    assert told["license"] == "apache-2.0" and "model-index" not in told, "the parent's scores are not the child's"
    assert "`pocket-ar`, set up as a masked-diffusion" in (tmp_path / "adopted" / "README.md").read_text()
    facts = card.of_model(build("llama"), Record(1, 0), tmp_path / "new", parent="pocket-ar", training=TRAINING)
    assert facts.metadata["license"] == "apache-2.0" and facts.metadata["language"] == "code"
    assert "base_model" not in facts.metadata
