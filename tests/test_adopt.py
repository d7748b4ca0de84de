"""Adoption: what is taken, what is refused and why, the mask row, and that nothing else changes."""

import re

import pytest
import torch
import transformers
from transformers.utils import logging

from diffulm import visibility
from diffulm.checkpoint.opening import Refused, open_parent
from diffulm.checkpoint.save import save
from diffulm.denoiser import probe as probing
from diffulm.denoiser.adopt import adopt
from diffulm.denoiser.tile import tiled
from diffulm.recipes.inspect import inspect
from models import FAMILIES, T5, VOCABULARY, bad, build, ids, tokenizer

# --- the probe ---


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3_mixed", "opt", "cohere"])
def test_adopted_with_a_boolean_mask(family):
    denoiser, _ = adopt(build(family))
    assert not denoiser.additive
    assert not denoiser.record.additive_mask
    assert denoiser.record.window == ("keep" if family in ("mistral", "qwen3_mixed") else None)
    assert denoiser.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["gptj"])  # gemma2 as well, from some version on
def test_adopted_with_an_additive_mask(family):
    """sdpa with a boolean mask is silently wrong here; the probe finds the route that is right, and it is recorded."""
    denoiser, _ = adopt(build(family))
    assert denoiser.additive
    assert denoiser.record.additive_mask
    assert denoiser.model.config.diffulm["additive_mask"] is True


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "its forward takes no 4-D attention mask"),
        ("mamba", "it can only look left|it is recurrent"),
        ("gpt_neo", "it can only look left"),
        ("bert", "its own forward looks at tokens to the right"),
    ],
)
def test_refused_by_the_probe(family, reason):
    with bad(f"^{type(build(family)).__name__}: cannot be used: .*{reason}"):
        adopt(build(family))


def blind(model):
    """A layer that takes no notice of the mask it is given and looks left, as some attention kernels do."""
    attention = model.model.layers[0].self_attn
    right = attention.forward

    def forward(hidden_states, *args, attention_mask=None, **options):
        length = hidden_states.shape[1]
        return right(hidden_states, *args, attention_mask=torch.ones(1, 1, length, length).tril().bool(), **options)

    attention.forward = forward


def leaking(model):
    """A matrix is read as if it were all True; without one it is causal."""
    attention = model.model.layers[1].self_attn
    right = attention.forward

    def forward(hidden_states, *args, attention_mask=None, **options):
        if attention_mask is not None:
            attention_mask = torch.ones_like(attention_mask)
        return right(hidden_states, *args, attention_mask=attention_mask, **options)

    attention.forward = forward


def half_causal(model):
    """One layer of several looks left only, within what the matrix allows: as a whole the model looks right."""
    attention = model.model.layers[1].self_attn
    right = attention.forward

    def forward(hidden_states, *args, attention_mask=None, **options):
        length = hidden_states.shape[1]
        own = torch.ones(length, length, dtype=torch.bool).tril()
        return right(
            hidden_states, *args, attention_mask=own if attention_mask is None else attention_mask & own, **options
        )

    attention.forward = forward


def recurrent(model):
    """A layer mixes in what is to its left, whatever the matrix says, and no config tells."""
    block = model.model.layers[1].mlp
    right = block.forward
    block.forward = lambda hidden: right(hidden) + hidden.cumsum(1) / hidden.shape[1]


def no_blocks(model):
    """Any matrix with a False above and a True above the diagonal is taken for a causal one."""
    right = model.forward

    def forward(input_ids=None, attention_mask=None, **options):
        if attention_mask is not None:
            above = attention_mask.triu(1)
            mixed = (
                above.any((-1, -2))
                & ~(above | torch.ones_like(above).tril()).all((-1, -2))
                & attention_mask[..., -1, 0]
            )
            attention_mask = torch.where(mixed[..., None, None], attention_mask.tril(), attention_mask)
        return right(input_ids=input_ids, attention_mask=attention_mask, **options)

    model.forward = forward


def scaled(model):
    """With a matrix the logits are 5% too large: no token moves that should not."""
    right = model.forward

    def forward(input_ids=None, attention_mask=None, position_ids=None, **options):
        out = right(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)
        if attention_mask is not None:
            out.logits = 1.05 * out.logits
        return out

    model.forward = forward


class Numbered(torch.nn.Linear):
    """An output embedding for which the place of a row matters."""

    def forward(self, hidden):
        return super().forward(hidden) + torch.arange(hidden.shape[-2])[:, None]


def numbered(model):
    model.lm_head.__class__ = Numbered


def broken(model):
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (blind, r"layer 0 \(full_attention\) sees tokens to its left that the matrix hides"),
        (half_causal, r"layer 1 \(full_attention\) can only look left"),
        (recurrent, r"layer 1 \(full_attention\) sees tokens to its left that the matrix hides"),
        (no_blocks, "under a block-causal matrix"),
        (leaking, "does not obey the attention mask"),
        (scaled, "differ from its own forward by"),
        (numbered, "its output embedding is special"),
        (broken, "NaN"),
    ],
)
def test_a_lying_model_is_refused(lie, reason):
    model = build("llama")
    lie(model)
    with bad(reason):
        adopt(model)
    found = inspect(model)
    assert (found.adoptable, found.kind) == (False, "autoregressive")
    assert re.search(reason, found.reason)


@pytest.mark.parametrize("window", ["keep", "lift"])
def test_what_happens_beyond_the_window_is_probed(window, monkeypatch):
    """The real window is far longer than the probe: only the twin with a small one can show the lie."""
    adopt(build("mistral", sliding_window=32), window=window)
    honest = probing.twin_of

    def twin(config):
        """A twin whose own forward knows of no window, whatever its config says."""
        made = honest(config)
        right, causal = made.forward, torch.ones(1, 1, probing.LENGTH, probing.LENGTH).tril().bool()
        made.forward = lambda **options: right(**{"attention_mask": causal} | options)
        return made

    monkeypatch.setattr(probing, "twin_of", twin)
    with bad("beyond its sliding window"):
        adopt(build("mistral", sliding_window=32), window=window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3_mixed"])
def test_the_probe_works_in_16_bits(family, dtype):
    denoiser, _ = adopt(build(family).to(dtype))
    assert denoiser(ids()).dtype == dtype
    model = build(family).to(dtype)
    for layer in getattr(model, "model", model).modules():  # attention weights of nothing: no token is seen at all
        if type(layer).__name__.endswith("Attention"):
            for weight in layer.parameters():
                torch.nn.init.zeros_(weight)
    with bad("can only look left"):
        adopt(model)


def test_rounding_is_no_influence():
    base = torch.linspace(-3, 3, 64).view(2, 32)
    for dtype, moved in ((torch.float32, 1e-3), (torch.bfloat16, 0.2)):
        rounded = base * (1 + torch.finfo(dtype).eps)  # one unit in the last place
        assert not probing.moved(rounded[None], base, dtype).any()
        assert probing.moved((base + moved)[None], base, dtype).all()


# --- what is not a decoder ---


def test_what_is_no_decoder_is_refused(tmp_path):
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    headless = transformers.GPT2Model(transformers.GPT2Config(**FAMILIES["gpt2"][1]))
    for model in (t5, headless):
        with bad("not a decoder with a language-model head"):
            adopt(model)
    with bad("Linear: is not a model of transformers"):
        adopt(torch.nn.Linear(2, 2))
    transformers.T5Config(**T5).save_pretrained(tmp_path / "t5")
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    for kind in ("t5", "vit"):
        with bad(f"it is a {kind} model, not a decoder"):
            adopt(tmp_path / kind)
        assert inspect(tmp_path / kind).reason == f"it is a {kind} model, not a decoder with a language-model head"


def test_a_refused_instance_stays_as_it_was():
    model, words = build("llama"), tokenizer()
    leaking(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.config.to_dict()
    with bad("does not obey"):
        adopt(model, words)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.config.to_dict(), model.config._attn_implementation) == (config, "sdpa")
    assert words.mask_token is None


def test_arguments_that_do_not_fit():
    with bad("window='wide': it can be 'keep' or 'lift'"):
        adopt(build("mistral"), window="wide")
    with bad("its tokenizer has 70 tokens, its embedding only 64 rows"):
        adopt(build("llama"), tokenizer(70))
    with bad("scratch needs a folder or hub id"):
        adopt(build("llama"), scratch=1)
    denoiser, _ = adopt(build("llama"))
    with bad("is a diffusion model already"):
        adopt(denoiser.model)


# --- the mask row ---


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_a_new_row_is_the_mean_and_draws_nothing(family):
    models = [build(family) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            if getattr(model.get_output_embeddings(), "bias", None) is not None:
                model.get_output_embeddings().bias.copy_(torch.arange(VOCABULARY))
    states = []
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        denoiser, _ = adopt(model)
        assert torch.equal(torch.get_rng_state(), before)
        assert denoiser.record.mask_token_id == VOCABULARY
        assert denoiser.vocabulary == model.config.vocab_size == VOCABULARY + 1
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for layer in (models[0].get_input_embeddings(), models[0].get_output_embeddings()):
        torch.testing.assert_close(layer.weight[-1], layer.weight[:-1].mean(0))
        if getattr(layer, "bias", None) is not None:
            assert layer.bias[-1] == (VOCABULARY - 1) / 2
    tied = models[0].get_input_embeddings().weight is models[0].get_output_embeddings().weight
    assert tied == build(family).config.tie_word_embeddings


def test_a_padding_row_of_the_embedding_is_used():
    model, words = build("llama"), tokenizer(40)
    original = model.get_input_embeddings().weight.clone()
    denoiser, words = adopt(model, words)
    weight = model.get_input_embeddings().weight
    assert denoiser.record.mask_token_id == words.mask_token_id == 40
    assert (words.mask_token, len(words)) == ("<|mask|>", 41)
    assert denoiser.vocabulary == VOCABULARY
    torch.testing.assert_close(weight[40], original[:40].mean(0))
    assert torch.equal(weight[41:], original[41:])


def test_the_parent_is_named_where_it_has_a_name(tmp_path, monkeypatch):
    denoiser, _ = adopt(build("llama"))
    assert denoiser.record.parent is None
    build("llama").save_pretrained(tmp_path / "ar")
    denoiser, words = adopt(str(tmp_path / "ar"))
    assert denoiser.record.parent == str(tmp_path / "ar")
    assert words is None
    monkeypatch.chdir(tmp_path)
    assert adopt("ar")[0].record.parent == "ar"  # as it was given, not where this machine keeps it
    loaded = open_parent("ar", None, None)[0]
    assert adopt(loaded)[0].record.parent == "ar"


def test_scratch_is_the_same_architecture_from_a_seed(tmp_path):
    build("llama").save_pretrained(tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = (open_parent(tmp_path, None, None, scratch=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (one, again, other, build("llama"))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_refusals_can_be_told_apart():
    with pytest.raises(Refused) as caught:
        adopt(build("bloom"))
    assert caught.value.reason in str(caught.value)


# --- quiet ---


def test_transformers_keeps_quiet_and_its_verbosity(tmp_path, capfd):
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        denoiser, words = adopt(build("gptj"), tokenizer())  # a resize, and an attention that cannot be set
        save(denoiser, words, tmp_path / "out")
        inspect(tmp_path / "out")
        build("llama").save_pretrained(tmp_path / "ar")
        capfd.readouterr()
        adopt(tmp_path / "ar")
        with bad("cannot be used"):
            adopt(build("mamba"))
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


# --- parents that do not lie in one piece in this machine's memory ---

# Where each part of a tiny LLaMA lies, and where its weights are when nobody looks.
SPREAD = {
    "a layer on disk": {"model.layers.1": "disk"},
    "embedding and head on disk": {"model.embed_tokens": "disk", "lm_head": "disk"},
}


@pytest.mark.parametrize("away", SPREAD.values(), ids=SPREAD)
def test_a_parent_spread_over_devices_is_not_moved(away, tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "ar")
    tokens = ids(vocabulary=VOCABULARY - 1)
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(parts, "cpu") | away
    spread = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ar", device_map=places, offload_folder=tmp_path / "off", dtype=torch.float32
    )
    before = {name: p.device.type for name, p in spread.named_parameters()}
    assert set(before.values()) == {"cpu", "meta"}
    denoiser, _ = adopt(spread, tokenizer(special=("<mask>",), mask_token="<mask>"))
    assert {name: p.device.type for name, p in spread.named_parameters()} == before
    assert spread.hf_device_map == places
    with torch.no_grad():
        causal = visibility.causal(tokens.shape[1])
        assert torch.equal(
            denoiser.rows(tokens, causal), model(input_ids=tokens).logits
        )  # the same kernels: the same bits
        where = denoiser.predictable(tokens)
        assert torch.isfinite(denoiser.cross_entropy(tokens, tokens[where], where)).all()
    assert torch.isfinite(tiled(denoiser)(tokens, where)[:, 0]).all()


def test_no_mask_row_for_an_embedding_that_is_away(tmp_path):
    build("llama").save_pretrained(tmp_path / "ar")
    places = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    spread = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ar", device_map=places, offload_folder=tmp_path / "off"
    )
    with bad("its embedding is offloaded, so it cannot be given a mask row; name a token"):
        adopt(spread, tokenizer())


class Eighth(torch.nn.Module):
    """A linear layer with its weights in 8 bits, as libraries of quantisation put in the place of one."""

    def __init__(self, layer):
        super().__init__()
        self.scale = layer.weight.detach().abs().amax(1) / 127
        self.register_buffer("weight", (layer.weight.detach() / self.scale[:, None]).round().to(torch.int8))

    def forward(self, hidden):
        return hidden @ (self.weight * self.scale[:, None]).T


def test_what_is_in_place_of_a_layer_stays():
    model = build("llama")
    for part in [p for layer in model.model.layers for p in (layer.self_attn, layer.mlp)]:
        for name, layer in list(part.named_children()):
            if isinstance(layer, torch.nn.Linear):
                setattr(part, name, Eighth(layer))
    tokens = ids()
    with torch.no_grad():
        own = model(input_ids=tokens).logits
    denoiser, _ = adopt(model)
    assert sum(isinstance(module, Eighth) for module in model.modules()) == 14
    assert all(module.weight.dtype == torch.int8 for module in model.modules() if isinstance(module, Eighth))
    with torch.no_grad():
        assert torch.equal(denoiser.causal_view(tokens)[..., :VOCABULARY], own)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_parent_stays_quantised(bits, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `quantised` is not installed")
    # blocks of 64 weights share a scale, so a width of 32 would not do
    build("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "ar")
    config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ar", quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    tokens = ids()
    with torch.no_grad():
        own = model(input_ids=tokens).logits
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    quantised = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert len(quantised) == 14
    denoiser, _ = adopt(model)
    assert [name for name, module in model.named_modules() if isinstance(module, kind)] == quantised
    ours = denoiser.causal_view(tokens)[..., :VOCABULARY]
    # 8 bits: activations are quantised by what else is in the batch; the probe's own limit for coarse arithmetic
    assert float((ours - own).abs().max() / own.std()) < (1e-4 if bits == 4 else probing.COARSE_LIMIT)
