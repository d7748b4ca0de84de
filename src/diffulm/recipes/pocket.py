"""`pocket-ar` and `pocket`, the models that ship with the package: a small LLaMA trained on Python's standard library.

    python -m diffulm.recipes.pocket prepare build/pocket

writes the text (training and held-out modules) and the parent's tokenizer and configuration, without weights. The same
CPython version gives the same files, byte for byte.
"""

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from diffulm.data import stdlib
from diffulm.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from diffulm.checkpoint import card

VOCABULARY = 2048
CONTEXT = 256
END, MASK = "<|endoftext|>", "<|mask|>"
ASSETS = Path(__file__).parents[1] / "assets"
SPECIAL = [END, MASK, *(f"<|reserved_{k}|>" for k in range(6))]

_KEYWORDS = (
    "and as assert class def del elif else except for from if import in is lambda not or raise return while with yield"
)
# How text is split before byte pairs are merged; tokens never cross these pieces. A hole in code most often begins
# after a keyword or an operator and the space that follows it, and ends before a space or the end of a line. So
# keywords and operators own the space after them, words the space before them: `return <hole:3>` leaves `return ` on
# the left, and `a + b` is three tokens. Splitting as GPT-4 does takes 2% more tokens on the same text.
SPLIT = "|".join(
    [
        r"(?:[ \t]*\r?\n)+[ \t]*",  # the end of a line, blank lines and the next line's indentation
        rf" ?\b(?:{_KEYWORDS.replace(' ', '|')})\b ",
        r" ?_*\p{L}+(?:__)?",
        r" ?\p{N}{1,3}",
        r" ?(?:[^\s\p{L}\p{N}_]|_(?!_*\p{L}))+(?: (?! ))?",  # underscores before a letter belong to the word
        r"\s+(?!\S)",
        r"\s+",
    ]
)

ABOUT = """Made by DiffuLM so that its demo and tests have a real model without a download: it knows Python's standard
library and nothing else. Byte-level BPE of its own. Every text it was trained on begins with `<|endoftext|>`; DiffuLM
puts it there, with plain transformers you do."""
REMARKS = (
    "Text: the source of the standard library of {python} without its tests, {modules} modules, {bytes:,} bytes, sha256 "
    "`{sha256}`; about 5% of the modules, by a hash of their path, held out. That source is under the PSF License "
    "Agreement; none of it is in this folder but what the weights remember.",
    "The rest of the settings: `presets/adapt/{name}.yaml`. Losses: on {blocks} held-out blocks of {length} positions, left "
    "to right on 8 of them.",
    "To repeat it: `make pocket` (same Python version for the same text; losses within 0.05 nats, which covers other "
    "kernels and thread counts).",
)


def prepare(out: str | Path) -> dict[str, object]:
    """Writes `out`/train.jsonl.gz, `out`/heldout.jsonl.gz (`text`, `path`), `out`/parent/ (tokenizer and config.json).

    Returns the figures that a model card needs: the library's fingerprint, and documents, bytes and tokens of each
    split, bytes a token, parameters of the model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for split in ("train", "heldout"):
        rows = list(stdlib.modules(split))
        texts[split] = [source for _, source in rows]
        lines = "".join(json.dumps({"text": source, "path": path}) + "\n" for path, source in rows)
        # no time and no file name in the header, so that the same text gives the same file
        (out / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    fast = tokenizer(texts["train"])
    fast.save_pretrained(out / "parent")
    model = model_config()
    model.save_pretrained(out / "parent")
    figures: dict[str, object] = {"library": stdlib.fingerprint(), "parameters": parameters(model)}
    for split, documents in texts.items():
        size = sum(len(text.encode()) for text in documents)
        tokens = sum(len(ids) for ids in fast(documents, verbose=False)["input_ids"])
        figures[split] = {
            "modules": len(documents),
            "bytes": size,
            "tokens": tokens,
            "bytes_per_token": round(size / tokens, 3),
        }
    return figures


def tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of `vocabulary` tokens trained on `texts`; any text comes back byte for byte.

    `<|endoftext|>` (id 0) is BOS and EOS, `<|mask|>` (id 1) the mask token. Deterministic: it depends on the texts
    alone, not on their order.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(texts, vocabulary),
        bos_token=END,
        eos_token=END,
        mask_token=MASK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model_config() -> "LlamaConfig":
    """The shape of `pocket` and `pocket-ar`: 2.8M parameters, 5.7 MB in bfloat16."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=0,
    )


def parameters(config: "LlamaConfig") -> int:
    """The number of parameters of the model of this configuration, tied weights counted once; nothing is allocated."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(config).num_parameters()


def _byte_pairs(texts: Iterable[str], vocabulary: int) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,  # longer ones are rules of dashes
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def ship(parent: str | Path, child: str | Path, assets: str | Path = ASSETS) -> None:
    """The finished runs `parent` and `child` as the shipped `pocket-ar` and `pocket`: bfloat16, with a model card each.

    Raises:
        BadInput: a run that is not finished, or models that are there already.
    """
    import torch

    from diffulm.checkpoint.load import load
    from diffulm.checkpoint.opening import open_parent
    from diffulm.checkpoint.save import write_model

    for run in (Path(parent), Path(child)):
        if not (run / "report.json").is_file():
            raise BadInput(f"{run}: holds no finished run")
    for name in ("pocket-ar", "pocket"):
        if (Path(assets) / name).exists():
            raise BadInput(f"{Path(assets) / name}: is there already; delete it to ship again")
    model, words, _ = open_parent(parent, None, torch.bfloat16)
    write_model(model, words, Path(assets) / "pocket-ar", None, facts=facts("pocket-ar", Path(parent)))
    denoiser, words = load(child, dtype=torch.bfloat16)
    record = {**denoiser.record.to_dict(), "parent": "pocket-ar"}
    write_model(denoiser.model, words, Path(assets) / "pocket", record, facts=facts("pocket", Path(child)))


def facts(name: str, run: Path) -> "card.Facts":
    """What the card of a shipped model says: all figures from its run's report.json, config.yaml and config.json."""
    import yaml

    from diffulm.checkpoint import card
    from diffulm.denoiser.record import Record

    report = json.loads((run / "report.json").read_text("utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    told = json.loads((run / "config.json").read_text("utf-8")).get("diffulm")
    record = None if told is None else Record.from_dict({**told, "parent": "pocket-ar"}, str(run))
    start = "from fresh weights" if record is None else "from the weights of `pocket-ar`"
    kind = "An autoregressive" if record is None else "A masked-diffusion"
    known = {"name": name, "blocks": report["held_out_blocks"], "length": config["length"], **stdlib.fingerprint()}
    return card.Facts(
        name=name,
        how=f"{kind} language model, trained by DiffuLM {start}.",
        architecture="LlamaForCausalLM",
        parameters=parameters(model_config()),
        vocabulary=VOCABULARY,
        context=CONTEXT,
        dtype="bfloat16",
        record=record,
        parent=None if record is None else "pocket-ar",
        metadata={"license": "apache-2.0", "language": "code", "tags": ["python", name]},
        training=card.training_of(config, report),
        about=ABOUT,
        remarks=tuple(remark.format(**known) for remark in REMARKS),
    )


def main(arguments: list[str]) -> int:
    """`prepare OUT` prints the figures as JSON, `ship PARENT_RUN RUN` writes package data. Exit status 2 on bad input."""
    try:
        match arguments:
            case ["prepare", out]:
                print(json.dumps(prepare(out), indent=1))
            case ["ship", parent, child]:
                ship(parent, child)
            case _:
                raise BadInput("usage: python -m diffulm.recipes.pocket prepare OUT | ship PARENT_RUN RUN")
    except (BadInput, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
