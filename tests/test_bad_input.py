"""Bad input ends in one line that says what is wrong, where, and what to do: exit code 2, nothing written, nothing printed.

One table of cases, run through the command line in this process. Every numeric option and every setting: test_numbers.py.
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from broken import (
    TEXT,
    Place,
    folder,
    infinite,
    make_kinds,
    nan,
    of_size,
    one_error,
    parquet,
    pickled,
    record,
    refused,
    run,
    tree,
)
from diffulm.denoiser.quiet import quietly
from diffulm.recipes.adapt import AdaptConfig
from diffulm.recipes.config import resolve
from diffulm.training.run_folder import RunFolder
from models import flip

HUGE = str(10**30)
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
REMOTE = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
NUMBERS = b"PAR1" + bytes(range(40)) + b"PAR1"
SAFETENSORS = ("model.safetensors: cannot be read as safetensors", "copy or download it again")

# What is wrong -> how to make it (the command line), and what the one line must say.
CASES: dict[str, tuple[Any, ...]] = {
    # -- a model that is not there
    "no such folder": (lambda at: at.generate("./none"), "./none: no such folder"),
    "no such model, offline": (lambda at: at.generate("no/such"), "no/such: no such folder, and not on the hub"),
    "no such parent, offline": (lambda at: at.adapt(model="no/such"), "no/such: no such folder, and not on the hub"),
    "no such model to inspect": (lambda at: ["inspect", "no/such"], "no/such: no such folder, and not on the hub"),
    "a shipped name misspelt": (lambda at: at.generate("poket"), "poket", "did you mean 'pocket'?"),
    "no name": (lambda at: at.generate(""), "'': no such folder"),
    "a name with NUL": (lambda at: at.generate("a\0b"), r"'a\x00b': no such folder"),
    "a name without end": (lambda at: at.generate("/" + "a" * 5000), "aaa...aaa", "no such folder"),
    "a link to itself": (lambda at: (os.symlink("l", "l"), at.generate("./l"))[1], "./l: no such folder"),
    "an empty folder": (lambda at: at.generate(folder(at, "e")), "e: has no config.json", "give a folder that has"),
    "an empty folder as parent": (lambda at: at.adapt(model=folder(at, "e")), "e: has no config.json"),
    "an empty folder to inspect": (lambda at: ["inspect", folder(at, "e")], "e: has no config.json"),
    "a file": (lambda at: at.generate(at.file("m.bin")), "m.bin: is a file; give the folder of a checkpoint"),
    "a run that is not finished": (
        lambda at: (at.file("run/checkpoint-7/x"), at.generate(at.here / "run"))[1], "newest checkpoint is", "checkpoint-7",
    ),
    "an adapter": (
        lambda at: at.generate(Path(at.file("a/adapter_config.json", ADAPTER)).parent), "an adapter of 'org/base'", "merge",
    ),
    "an adapter as parent": (
        lambda at: at.adapt(model=Path(at.file("a/adapter_config.json", ADAPTER)).parent), "an adapter of 'org/base'",
    ),
    # -- weights
    "weights cut short": (lambda at: at.generate(at.model(model__safetensors=lambda b: b[:-9])), *SAFETENSORS),
    "no weights in the file": (lambda at: at.generate(at.model(model__safetensors=b"")), *SAFETENSORS),
    "weights of a parent cut short": (
        lambda at: at.adapt(model=at.model("plain", model__safetensors=lambda b: b[:-9])), *SAFETENSORS,
    ),
    "a corrupt header": (
        lambda at: at.adapt(model=at.model("plain", model__safetensors=lambda b: b[:8] + b"x" + b[9:])), *SAFETENSORS,
    ),
    "a header of no length": (
        lambda at: at.generate(at.model(model__safetensors=lambda b: b"\xff" * 8 + b[8:])), *SAFETENSORS,
    ),
    "a flipped bit": (
        lambda at: (flip(at.model() / "model.safetensors"), at.generate(at.here / "model"))[1],
        "model.safetensors: its sha256 is not the one in sha256.json", "copy it again",
    ),
    "a NaN": (lambda at: at.generate(at.tensors("ours", nan)), "model.norm.weight has 1 of 32 numbers NaN or infinite"),
    "a NaN in a score": (lambda at: ["score", str(at.tensors("ours", nan)), "--text", "w5"], "model.norm.weight has 1"),
    "a NaN in a parent": (lambda at: at.adapt(model=at.tensors("plain", nan)), "model.norm.weight has 1 of 32 numbers"),
    "an infinity in a parent": (
        lambda at: at.adapt(model=at.tensors("plain", infinite)), "model.layers.1.mlp.up_proj.weight has 1 of 1536",
    ),
    "pickled weights": (lambda at: at.generate(pickled(at, "ours")), "pytorch_model.bin is pickled", "convert it"),
    "pickled weights of a parent": (lambda at: at.adapt(model=pickled(at, "plain")), "pytorch_model.bin is pickled"),
    "no weights": (lambda at: at.generate(at.model(without="*.safetensors")), "has no .safetensors weights"),
    "no weights of a parent": (
        lambda at: at.adapt(model=at.model("plain", without="*.safetensors")), "has no .safetensors weights", "download",
    ),
    "a missing shard": (
        lambda at: at.adapt(model=at.model("shards", without="*2-of*")), "model-00002-of-00005.safetensors: is missing",
    ),
    "a broken index of shards": (
        lambda at: at.adapt(model=at.model("shards", model__safetensors__index__json=b"{")),
        "model.safetensors.index.json: is not valid JSON", "copy or download",
    ),
    "an index of nothing": (
        lambda at: at.adapt(model=at.model("shards", model__safetensors__index__json=b"{}")), "has no weight_map",
    ),
    "broken checksums": (lambda at: at.generate(at.model(sha256__json=b"[1]")), "sha256.json: is not a JSON object"),
    "a tensor too few": (
        lambda at: at.generate(at.tensors("ours", lambda t: {k: v for k, v in t.items() if "model.norm" not in k})),
        "missing", "model.norm.weight", "not this architecture",
    ),
    "a tensor too many": (
        lambda at: at.adapt(model=at.tensors("plain", lambda t: t | {"more": torch.ones(2)})), "unexpected", "more",
    ),
    "a tensor of another shape": (
        lambda at: at.adapt(model=at.tensors("plain", lambda t: t | {"model.norm.weight": torch.ones(3)})),
        "model.norm.weight [3] instead of [32]",
    ),
    "weights of another architecture": (
        lambda at: at.adapt(model=at.model("plain", config__json={"model_type": "gpt2"})), "not this architecture",
    ),
    "a config of a far larger model": (
        lambda at: at.adapt(model=at.model("plain", config__json={"hidden_size": 10**6})),
        "config.json describes 613,000,000 parameters", "not of one model",
    ),
    # -- config.json
    "a config that is not JSON": (lambda at: at.generate(at.model(config__json=b"{")), "config.json: is not valid JSON"),
    "a config of a parent that is not JSON": (
        lambda at: at.adapt(model=at.model("plain", config__json=b"\xff\xfe")), "config.json: is not valid JSON", "copy",
    ),
    "a config nested without end": (
        lambda at: at.generate(at.model(config__json=b"[" * 10**5)), "config.json: is not valid JSON",
    ),
    "a config that is a list": (
        lambda at: at.adapt(model=at.model("plain", config__json=b"[]")), "config.json: holds no JSON object",
    ),
    "a config without model_type": (
        lambda at: at.adapt(model=at.model("plain", config__json=b"{}")), "config.json", "it has no model_type",
    ),
    "an unknown model_type": (
        lambda at: at.generate(at.model(config__json={"model_type": "lama"})), "no model_type 'lama'", "upgrade",
    ),
    "a model_type that is a number": (lambda at: at.generate(at.model(config__json={"model_type": 3})), "model_type 3"),
    "sizes that do not fit": (
        lambda at: at.adapt(model=at.model("plain", config__json={"num_attention_heads": 5})), "config.json", "heads",
    ),
    "a model that needs its own code": (
        lambda at: at.adapt(model=at.model("plain", config__json=REMOTE, code__py=b"raise SystemExit('it was run')")),
        "it needs code of its own (auto_map), which is never run",
    ),
    "an encoder": (lambda at: at.adapt(model=at.kinds / "bert"), "bert: cannot be used: it is a bert model, an encoder"),
    "an encoder to generate with": (lambda at: at.generate(at.kinds / "bert"), "it is a bert model, an encoder"),
    "an encoder and decoder": (lambda at: at.adapt(model=at.kinds / "t5"), "it is a t5 model, not a decoder"),
    "an encoder and decoder to score with": (
        lambda at: ["score", str(at.kinds / "t5"), "--text", "a"], "it is a t5 model, not a decoder",
    ),
    "a model of pictures": (lambda at: at.adapt(model=at.kinds / "vit"), "it is a vit model, not a decoder"),
    "a model of pictures to infill with": (
        lambda at: ["infill", str(at.kinds / "vit"), "--text", "a<hole:1>"], "it is a vit model, not a decoder",
    ),
    "an AR model to generate with": (lambda at: at.generate("pocket-ar"), "pocket-ar: is a plain AR", "diffulm adapt"),
    "an AR model to infill with": (
        lambda at: ["infill", "pocket-ar", "--text", "a<hole:1>"], "pocket-ar: is a plain AR", "diffulm adapt",
    ),
    "an AR model to score with": (lambda at: ["score", "pocket-ar", "--text", "a"], "pocket-ar: is a plain AR"),
    "a diffusion model to adapt": (lambda at: at.adapt(model="pocket"), "pocket", "a diffusion model already"),
    # -- our record
    "a record without mask": (lambda at: at.generate(at.model(config__json={"diffulm": {}})), "no mask_token_id"),
    "a record that is null": (lambda at: at.generate(at.model(config__json={"diffulm": None})), "no mask_token_id"),
    "a mask id that is text": (lambda at: record(at, mask_token_id="5"), "config.json", "mask_token_id = '5'"),
    "a mask id beyond the vocabulary": (lambda at: record(at, mask_token_id=65), "mask token id 65", "of 65 rows"),
    "a negative mask id": (lambda at: record(at, mask_token_id=-1), "mask token id -1 lies outside"),
    "a BOS id beyond the vocabulary": (lambda at: record(at, bos_token_id=65), "bos_token_id 65 lies outside"),
    "an attention of no kind": (lambda at: record(at, attention="half"), "it can be 'full' or 'block'"),
    "blocks of no size": (lambda at: record(at, attention="block"), "needs a positive block_size"),
    "a note that is no boolean": (lambda at: record(at, additive_mask="x"), "additive_mask = 'x'"),
    "a mask flag beyond the vocabulary": (
        lambda at: at.generate(at.model(), "--mask-token-id", "65"), "65 lies outside", "give another --mask-token-id",
    ),
    # -- tokenizers
    "a tokenizer larger than the vocabulary": (
        lambda at: at.generate(of_size(at, "ours", 99)), "its tokenizer has a token 98, its vocabulary only 65 rows",
    ),
    "a parent's tokenizer larger than its vocabulary": (
        lambda at: at.adapt(model=of_size(at, "plain", 99)), "its tokenizer has 99 tokens, its embedding only 64 rows",
    ),
    "no tokenizer": (lambda at: at.generate(at.model(without="tokenizer*")), "model: has no tokenizer", "copy"),
    "no tokenizer to score with": (
        lambda at: ["score", str(at.model(without="tokenizer*")), "--text", "w5"], "model: has no tokenizer",
    ),
    "a parent without tokenizer": (
        lambda at: at.adapt(model=at.model("plain", without="tokenizer*")), "model: has no tokenizer",
    ),
    "a broken tokenizer": (
        lambda at: at.generate(at.model(tokenizer__json=b"{")), "its tokenizer cannot be opened", "tokenizer.json: is not",
    ),
    "a parent's broken tokenizer": (
        lambda at: at.adapt(model=at.model("plain", tokenizer__json=b"{}")), "its tokenizer cannot be opened", "copy",
    ),
    "a tokenizer config that is a list": (
        lambda at: at.adapt(model=at.model("plain", tokenizer_config__json=b"[]")), "tokenizer_config.json: holds no",
    ),
    "a mask token that is none": (lambda at: at.adapt("mask_token=foo"), "mask token 'foo': is not a token", "'new'"),
    "a mask token that is a power": (lambda at: at.adapt("mask_token=²"), "mask token '²': is not a token"),
    "a mask token beyond the vocabulary": (lambda at: at.adapt("mask_token=64"), "id 64 lies outside", "64 rows"),
    "a mask token that has a job": (lambda at: at.adapt("mask_token=</s>"), "it is the tokenizer's eos_token"),
    # -- texts and holes
    "a prompt that is not UTF-8": (lambda at: at.generate("pocket", "--prompt", "a\udcff"), "the text given is not UTF-8"),
    "standard input that is not UTF-8": (
        lambda at: at.generate("pocket", "--prompt", at.stdin(b"a\xff")), "standard input is not UTF-8", "convert it",
    ),
    "standard input twice": (
        lambda at: ["score", "pocket", "--text", at.stdin(b"a"), "--context", "-"], "--context cannot both be -",
    ),
    "a prompt of 10 MB": (
        lambda at: at.generate("pocket", "--prompt", at.stdin(b"x y " * 2_500_000)), "context is 256: give less",
    ),
    "a line of 10 MB to infill": (
        lambda at: at.infill(at.stdin(b"x" * 10_000_000 + b"<hole:1>")), "the model's context is 256: give less",
    ),
    "nothing to score": (lambda at: ["score", "pocket", "--text", ""], "nothing to score: the text is empty"),
    "nothing on standard input to score": (lambda at: ["score", "pocket", "--text", at.stdin(b"")], "nothing to score"),
    "a prompt beyond the context": (lambda at: at.generate("pocket", "--prompt", "x y " * 400), "context is 256"),
    "a context beyond the context": (
        lambda at: ["score", "pocket", "--text", "a", "--context", "x y " * 400], "the model's context is 256",
    ),
    "a length beyond the context": (lambda at: at.generate("pocket", "--length", "256"), "259 positions", "is 256"),
    "a hole of nothing": (lambda at: at.infill("a<hole:0>"), "'<hole:0>' is not a hole: write <hole:3>"),
    "a negative hole": (lambda at: at.infill("a<hole:-1>"), "'<hole:-1>' is not a hole: write <hole:3>"),
    "a hole of half a token": (lambda at: at.infill("a<hole:1.5>"), "'<hole:1.5>' is not a hole"),
    "a hole of a word": (lambda at: at.infill("a<hole:x>"), "'<hole:x>' is not a hole"),
    "a huge hole": (lambda at: at.infill("a<hole:999999999>"), "1000000001 positions", "context is 256"),
    "a hole beyond all numbers": (lambda at: at.infill(f"a<hole:{HUGE}>"), "is not a hole"),
    "a hole beyond the context": (lambda at: at.infill("a<hole:256>"), "258 positions", "context is 256"),
    "holes beyond the context": (lambda at: at.infill("a<hole:150>b<hole:150>"), "303 positions", "context is 256"),
    "a hole of lengths upside down": (lambda at: at.infill("a<hole:3-1>b"), "'<hole:3-1>' is not a hole: write <hole:3>"),
    "no hole": (lambda at: at.infill("a<hole:3"), "there is no hole in the text: write <hole:3>"),
    "no text, no hole": (lambda at: at.infill(""), "there is no hole in the text"),
    "an animation over a file": (
        lambda at: at.generate("no/such", "--save-animation", at.file("a.html")), "a.html: is there already; name a new file",
    ),
    "an animation in no folder": (
        lambda at: at.generate("no/such", "--save-animation", "none/a.html"), "none/a.html: none is no folder; name a new",
    ),
    "an animation without name": (
        lambda at: at.generate("no/such", "--save-animation", ""), "'' is no name of a file; name a new one",
    ),
    "an animation with NUL": (
        lambda at: at.generate("no/such", "--save-animation", "a\0"), r"'a\x00' is no name of a file",
    ),
    "a stop of nothing": (lambda at: at.generate("no/such", "--stop", ""), "stop should not be empty"),
    "a stream of several": (
        lambda at: at.generate("no/such", "--stream", "-n", "2", "--watch"), "leave out --n and --watch",
    ),
    "two rules of how many": (
        lambda at: at.generate("no/such", "--factor", "1", "--entropy-bound", "1"), "entropy_bound and factor each say",
    ),
    "an unknown cache": (lambda at: at.generate("no/such", "--cache", "dul"), "'prefix' or 'dual', not 'dul'"),
    # -- data
    "no such data": (lambda at: at.adapt("data=dota.txt"), "dota.txt: no such file", "did you mean data.txt?"),
    "no such data set, offline": (lambda at: at.adapt(data="no/such"), "no/such: no such file", "cannot be reached"),
    "no name of data": (lambda at: at.adapt("data="), "data should be a name that a file can have"),
    "a list of nothing": (lambda at: at.adapt("data=[]"), "no data given: name at least one file"),
    "a list that is broken": (lambda at: at.adapt("data=[a"), "data: '[a' is not a valid list"),
    "a glob that matches nothing": (lambda at: at.adapt(data="*.jsonl"), "*.jsonl: no file matches this pattern"),
    "a folder without data": (lambda at: at.adapt(data=folder(at, "e")), "e: a folder without .txt, .jsonl, .parquet"),
    "an unknown kind of file": (lambda at: at.data("a.csv", "text"), "a.csv: unknown kind of file; convert it"),
    "an empty file": (lambda at: at.data("a.txt", ""), "a.txt: no text in it"),
    "data that is not UTF-8": (lambda at: at.data("a.txt", b"one\n\xff\n"), "a.txt, line 2: not UTF-8", "convert"),
    "data shorter than a block": (lambda at: at.data("a.txt", "w5"), "a.txt: has less text than one block of 16 tokens"),
    "data of one block": (lambda at: at.data("a.txt", "w5 " * 20), "a.txt: has only 1 blocks of 16 tokens"),
    "a word of 10 MB": (lambda at: at.data("a.txt", b"x" * 10**7), "a.txt: has less text than one block of 16 tokens"),
    "a row of 10 MB cut short": (
        lambda at: at.data("a.jsonl", '{"text": "' + "x" * 10**7), "line 1: not JSON (Unterminated string", "mend",
    ),
    "a broken row": (lambda at: at.data("a.jsonl", '{"text": "w5"}\n{"text":\n'), "a.jsonl, line 2: not JSON", "mend"),
    "a broken row, and out far down": (
        lambda at: [*at.data("a.jsonl", "{\n"), "out=deep/down/run"], "a.jsonl, line 1: not JSON",
    ),
    "a row without end": (lambda at: at.data("a.jsonl", "[" * 10**5), "a.jsonl, line 1: not JSON that can be read"),
    "a row that is a list": (lambda at: at.data("a.jsonl", '["text"]\n'), "a.jsonl, line 1: a list, not an object"),
    "a row without text": (lambda at: at.data("a.jsonl", '{"txt": "w5"}\n'), "line 1: no field `text`, it has txt"),
    "a row with a number": (lambda at: at.data("a.jsonl", '{"text": 5}\n'), "line 1: `text` is int, not a string"),
    "a row with null": (lambda at: at.data("a.jsonl", '{"text": null}\n'), "line 1: `text` is NoneType"),
    "a row that is not UTF-8": (lambda at: at.data("a.jsonl", b'{"text": "\xff"}\n'), "line 1: not UTF-8", "convert"),
    "half of a surrogate pair": (lambda at: at.data("a.jsonl", '{"text": "\\ud800"}'), "line 1: `text` is not Unicode"),
    "an empty Parquet file": (lambda at: at.data("a.parquet", b""), "a.parquet: damaged Parquet file", "copy"),
    "a broken Parquet file": (lambda at: at.data("a.parquet", NUMBERS), "a.parquet: damaged Parquet file"),
    "a Parquet file cut short": (lambda at: at.data("a.parquet", parquet(text=["w5"])[:-5]), "damaged Parquet file"),
    "Parquet without text": (lambda at: at.data("a.parquet", parquet(n=[1])), "no column `text`, it has n; rename one"),
    "Parquet without rows": (lambda at: at.data("a.parquet", parquet(text=[])), "a.parquet: no text in it"),
    "Parquet of numbers": (lambda at: at.data("a.parquet", parquet(text=[1])), "a.parquet, row 1: `text` is int"),
    "a null in Parquet": (lambda at: at.data("a.parquet", parquet(text=["w5", None])), "row 2: `text` is NoneType"),
    "gzip that is none": (lambda at: at.data("a.txt.gz", "w5"), "a.txt.gz: damaged gzip file", "copy or download"),
    "gzip cut short": (lambda at: at.data("a.txt.gz", gzip.compress(TEXT.encode())[:-9]), "damaged gzip file"),
    "no such held-out data": (lambda at: at.adapt("eval_data=none.txt"), "none.txt: no such file"),
    "held-out data too short": (
        lambda at: at.adapt(f"eval_data={at.file('e.txt', 'w5')}"), "e.txt: has less text than one block of 16 tokens",
    ),
    "more held-out blocks than there are": (lambda at: at.adapt("eval_blocks=99"), "blocks of 16 tokens; 99 are held out"),
    "data that takes in the run": (
        lambda at: at.adapt(f"out={at.here}/a/run", data=(at.file("a/b.jsonl"), f"{at.here}/a/**/*.jsonl")[1]),
        "a/**/*.jsonl: takes in what the run writes to out=", "name a folder elsewhere",
    ),
    # -- settings
    "an unknown key": (lambda at: at.adapt("lenght=3"), "unknown key 'lenght'; did you mean 'length'?"),
    "a key like no other": (lambda at: at.adapt("zzz=3"), "unknown key 'zzz'; there are: adapter,"),
    "a key without value": (lambda at: at.adapt("tokens"), "'tokens' is not a setting; write key=value"),
    "a value without key": (lambda at: at.adapt("=3"), "'=3' is not a setting; write key=value"),
    "no parent named": (lambda at: ["adapt", "tiny", "data=a.txt", "out=out"], "model is missing"),
    "an unknown preset": (lambda at: at.adapt(preset="tinny"), "unknown preset 'tinny'; did you mean 'tiny'?"),
    "a preset like no other": (lambda at: at.adapt(preset="zzzzzz"), "unknown preset 'zzzzzz'; there are: adapter,"),
    "a preset with a pattern": (lambda at: at.adapt(preset="tiny**"), "unknown preset 'tiny**'; did you mean 'tiny'?"),
    "a file of settings that is not YAML": (lambda at: at.adapt(preset=at.file("a.json", "{}")), "a.json: is no YAML file"),
    "no such YAML file": (lambda at: at.adapt(preset="none.yaml"), "none.yaml: no such file; name a YAML file"),
    "a folder named as YAML": (lambda at: at.adapt(preset=folder(at, "d.yaml")), "d.yaml: is a folder; name a YAML file"),
    "YAML that is broken": (lambda at: at.yaml("length: 8\nbetas: [0.1"), "mine.yaml, line 2: is not valid YAML"),
    "YAML with tabs": (lambda at: at.yaml("a:\n\tb: 3\n"), "mine.yaml, line 2: is not valid YAML (found character '\\t'"),
    "YAML that is not UTF-8": (lambda at: at.yaml(b"\xff\xfe"), "mine.yaml: is not UTF-8 text"),
    "YAML that is a list": (lambda at: at.yaml("- 1\n"), "mine.yaml: holds no mapping", "write lines such as"),
    "YAML with an unknown key": (lambda at: at.yaml("lenght: 3\n"), "mine.yaml: unknown key 'lenght'; did you mean"),
    "YAML with a key twice": (lambda at: at.yaml("length: 8\ntokens: 1\nlength: 9\n"), "line 3", "'length' is given twice"),
    "YAML within itself": (lambda at: at.yaml("tokens: &x [*x]\n"), "tokens should be a number of tokens", "..."),
    "YAML nested without end": (lambda at: at.yaml("tokens: " + "[" * 1500), "mine.yaml", "nested too deeply"),
    "YAML with an alias of nothing": (lambda at: at.yaml("tokens: *x\n"), "mine.yaml, line 1", "undefined alias 'x'"),
    "YAML with a number of 5,000 digits": (lambda at: at.yaml("seed: " + "9" * 5000), "mine.yaml: is not valid YAML"),
    "YAML that would run code": (lambda at: at.yaml("data: !!python/object/apply:os.getcwd []\n"), "mine.yaml, line 1"),
    "YAML of two documents": (lambda at: at.yaml("length: 4\n---\nlength: 5\n"), "expected a single document"),
    "YAML with a date": (lambda at: at.yaml("tokens: 2001-13-01\n"), "mine.yaml: is not valid YAML (month must be"),
    "an unknown objective": (lambda at: at.adapt("objective=bond"), "unknown objective 'bond'; did you mean 'bound'?"),
    "an unknown schedule": (lambda at: at.adapt("noise_schedule=lineal"), "did you mean 'linear'?"),
    "betas out of range": (lambda at: at.adapt("betas=[2,1]"), "betas should be less than 1, not 2"),
    "one beta": (lambda at: at.adapt("betas=[0.9]"), "betas has too few values"),
    "three betas": (lambda at: at.adapt("betas=[0.9,0.9,0.9]"), "betas has too many values"),
    "a share of more than all": (lambda at: at.adapt("warmup_steps=101%"), "warmup_steps should be a number of steps"),
    "an evaluation every 0 steps": (lambda at: at.adapt("eval_every=0%"), "eval_every should be", "more than 0"),
    "canvases beyond the context": (lambda at: at.adapt("length=65"), "length=65", "takes at most 64 positions"),
    "a batch that does not divide": (lambda at: at.adapt("micro_batch=3"), "micro_batch=3 does not divide the 2"),
    "a device that is none": (lambda at: at.adapt("device=gpu"), "device should be 'auto', 'cpu' or 'cuda', not 'gpu'"),
    # -- words
    "an unknown verb": (lambda at: ["generat", "pocket"], "'generat'", "'generate'"),
    "an unknown flag": (lambda at: at.generate("pocket", "--lenght", "3"), "--lenght", "--length"),
    "an unknown sampler": (lambda at: at.generate("pocket", "--sampler", "confidens"), "did you mean 'confidence'?"),
    "an unknown dtype": (lambda at: at.generate("pocket", "--dtype", "fp32"), "unknown dtype 'fp32'", "'float32'"),
    "an unknown method": (lambda at: ["score", "pocket", "--text", "a", "--method", "l2r"], "'bound' or 'left_to_right'"),
    # -- where the run goes
    "out is a file": (lambda at: at.adapt(f"out={at.file('f')}"), "f: is a file; name a folder"),
    "out below a file": (lambda at: at.adapt(f"out={at.file('f')}/run"), "f/run", "f is a file; name another folder"),
    "out is not empty": (
        lambda at: at.adapt(f"out={Path(at.file('full/notes.txt')).parent}"), "full: is not empty and holds no run",
    ),
    "out is the parent": (lambda at: at.adapt(f"out={at.here}/model"), "model: is not empty and holds no run; name"),
    "out has no name": (lambda at: at.adapt("out="), "out should be a name that a file can have, not ''"),
    "out has NUL in its name": (lambda at: at.adapt("out=a\0b"), r"out should be a name that a file can have", r"\x00"),
    "out has too long a name": (lambda at: at.adapt("out=" + "a" * 256), "out should be a name that a file can have"),
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    return make_kinds(tmp_path_factory.mktemp("kinds"))


# A tokenizer takes seconds for it.
SLOW = {"a word of 10 MB"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_bad_input_ends_in_one_line(case: str, kinds: Path, tmp_path: Path, monkeypatch, capsys):
    refused(CASES[case], kinds, tmp_path, monkeypatch, capsys)


def test_a_run_that_was_begun_keeps_its_folder(kinds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, kinds, monkeypatch)
    arguments = place.data("a.jsonl", "{\n")
    config = resolve("adapt", AdaptConfig, "tiny", dict(setting.split("=", 1) for setting in arguments[2:]))
    with RunFolder(Path("out"), config.model_dump(mode="json")).claimed():  # killed before its first step
        pass
    before = tree(tmp_path)
    assert "a.jsonl, line 1: not JSON" in one_error(arguments, capsys)
    assert tree(tmp_path) == before and "out/config.yaml" in before


def test_a_folder_that_may_not_be_written(kinds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = Place(tmp_path, kinds, monkeypatch).adapt()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # not by chmod: to root no folder is closed
    assert f"out=out: {tmp_path} may not be written; name another folder" in one_error(arguments, capsys)


# What looks wrong and is not.
FINE = {
    "an empty prompt": lambda at: at.generate("pocket", "--prompt", ""),
    "NUL in a prompt": lambda at: at.generate("pocket", "--prompt", at.stdin(b"a\0\r\n\xe2\x80\xa8b")),
    "a hole in a prompt": lambda at: at.generate("pocket", "--prompt", "a <hole:2> <hole:x>"),
    "more steps than tokens": lambda at: at.generate("pocket", "--steps", str(2**31 - 1)),
    "any token alike": lambda at: at.generate("pocket", "--temperature", HUGE),
    "a tokenizer smaller than the vocabulary": lambda at: at.generate(of_size(at, "ours", 40)),
    "data with NUL and a byte order mark": lambda at: at.data("a.txt", b"\xef\xbb\xbf" + b"w5 \0 w6\r\n" * 99),
}


@pytest.mark.parametrize("case", FINE)
def test_what_looks_wrong_and_is_not(case, kinds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with quietly():
        arguments = FINE[case](Place(tmp_path, kinds, monkeypatch))
    code, out, err = run(arguments, capsys)
    assert code == 0 and out, err
    if case == "NUL in a prompt":
        assert out.startswith("a\0\r\n\u2028b")
