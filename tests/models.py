"""Tiny random models and tokenizers for the tests of the denoiser, and the check that an error is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

from diffulm.checkpoint import adapter
from diffulm.denoiser.adopt import adopt
from diffulm.errors import BadInput

VOCABULARY = 64
WINDOW = 5
# Weights of 0.1 rather than the usual 0.02: in two layers of width 32 attention then matters as in a trained model.
SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SMALL | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT2 = SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SLIDING = {"sliding_window": WINDOW}
MIXED = SLIDING | {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]}
OPT = SMALL | {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
    "max_position_embeddings": 64, "init_std": 0.1,
}  # fmt: skip
BERT = SMALL | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}

# name -> prefix of the transformers classes, keywords of the config
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", LLAMA),
    "mistral": ("Mistral", LLAMA | SLIDING),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2_windowed": ("Qwen2", LLAMA | SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3_mixed": ("Qwen3", LLAMA | MIXED | {"use_sliding_window": True}),
    "opt": ("OPT", OPT),
    "cohere": ("Cohere", LLAMA),
    "gemma2": ("Gemma2", LLAMA | MIXED | {"query_pre_attn_scalar": 8}),
    "gptj": ("GPTJ", GPT2 | {"rotary_dim": 4}),
    "bloom": ("Bloom", SMALL | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("Mamba", SMALL | {"hidden_size": 32, "num_hidden_layers": 2}),
    "gpt_neo": ("GPTNeo", SMALL | {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    }),
    "bert": ("Bert", BERT),
}  # fmt: skip
HEADS = {"gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM"}
# the sliding window of each layer
WINDOWS = {
    "mistral": [WINDOW, WINDOW],
    "qwen2_windowed": [None, WINDOW],
    "qwen3_mixed": [None, WINDOW],
    "gemma2": [None, WINDOW],
}


def build(family: str, seed: int = 0, **changes: Any) -> Any:
    """The tiny model of a family in eval mode; the global generator is left as it was."""
    prefix, config = FAMILIES[family]
    made = getattr(transformers, f"{prefix}Config")(**config | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, HEADS.get(family, f"{prefix}ForCausalLM"))(made).eval()


def ids(rows: int = 2, length: int = 14, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """(rows, length) tokens, none of them special."""
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def tokenizer(size: int = VOCABULARY, special: tuple[str, ...] = (), template: str | None = None, **named: str) -> Any:
    """`size` tokens in all: <unk>, <s>, </s>, words w3, w4, ..., and at the end the `special` ones.

    named: what is handed to the tokenizer besides, such as mask_token="<mask>" (which then must be in `special`).
    """
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, size - len(special))), *special]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | named
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    out.chat_template = template
    return out


def flip(path: Path) -> None:
    """One bit of a file, near its end."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@contextmanager
def bad(match: str) -> Iterator[None]:
    """A BadInput whose message matches and is one line."""
    with pytest.raises(BadInput, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def with_adapter(parent: Path, mask_token: str = "auto"):
    """(denoiser, tokenizer) with an adapter whose tensors are drawn at random, as if it had been trained."""
    denoiser, words = adopt(str(parent), mask_token=mask_token, frozen=True)
    adapter.begin(denoiser, parent, rank=4, alpha=8.0, seed=0, embeddings=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in denoiser.model.parameters():
            if value.requires_grad:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return denoiser, words
