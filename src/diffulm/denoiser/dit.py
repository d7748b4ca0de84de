"""The diffusion transformer of MDLM (arXiv 2406.07524) and SEDD (arXiv 2310.16834) as a model of transformers.

Blocks of DiT (arXiv 2212.09748) over tokens: layer norms without biases are shifted, scaled and gated by what the model is
told of the time (adaLN), positions are rotated, every row sees all that `attention_mask` leaves. Names of tensors are those
of the published code, but for the embedding's.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

MODEL_TYPE = "diffulm_dit"
FREQUENCIES, MAX_PERIOD, ROTARY_BASE = 256, 10000.0, 10000.0
EPSILON = 1e-3  # of the log-linear schedule: the share of tokens that is never masked


class DiTConfig(PreTrainedConfig):
    """noise_token_id: the mask token of a model that is told how much of a text is masked; None: it is told no time."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 50258,
        hidden_size: int = 768,
        condition_size: int = 128,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 1024,
        noise_token_id: int | None = None,
        **more: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.condition_size = vocab_size, hidden_size, condition_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings, self.noise_token_id = max_position_embeddings, noise_token_id
        more.setdefault("tie_word_embeddings", False)
        super().__init__(**more)


def noise_level(ids: Tensor, visible: Tensor | None, mask_token_id: int) -> Tensor:
    """Total noise sigma (B,) at which a text has as many masks as `ids` (B, L): -log(1 - (1 - epsilon) masked / length).

    The published samplers pass the time beside the text; on the way from noise to text the share of masks is that time, up
    to chance. visible (B, 1, L, L): columns that nobody but themselves can see are padding, and do not count.
    """
    real = torch.ones_like(ids, dtype=torch.bool)
    if visible is not None:
        if visible.shape[-1] != visible.shape[-2]:
            raise ValueError("a model that is told how much is masked needs the whole text at once, and no cache")
        itself = torch.eye(visible.shape[-1], dtype=torch.bool, device=ids.device)
        real = (visible[:, 0] & ~itself).any(1)
        real = real | ~real.any(1, keepdim=True)
    masked = ((ids == mask_token_id) & real).sum(1) / real.sum(1)
    return -torch.log1p(-(1 - EPSILON) * masked)


class TimeEmbedding(nn.Module):
    """sigma (B,) -> (B, condition_size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=sigma.device) / half)
        angles = sigma[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(dtype))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class DiTBlock(GradientCheckpointingLayer):
    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.layer, self.heads = config, layer, config.num_attention_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(config.condition_size, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, rotation: tuple[Tensor, Tensor], mask: Any, cache: Any) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        attended = self._attend(modulated(self.norm1(x), shift, scale), rotation, mask, cache)
        x = x + gate * self.attn_out(attended)
        return x + gate_mlp * self.mlp(modulated(self.norm2(x), shift_mlp, scale_mlp))

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Any, cache: Any) -> Tensor:
        query, key, value = self.attn_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=query.shape[-1] ** -0.5)
        return out.flatten(2)


class DiTOutput(nn.Module):
    """Hidden states -> logits, or log ratios: see families/sedd.py."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_size, bias=False)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.condition_size, 2 * config.hidden_size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


class DiTForMaskedDiffusion(PreTrainedModel):
    """A denoiser: row i says what stands at i, not behind it."""

    config_class = DiTConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vocab_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = TimeEmbedding(config.condition_size)
        self.blocks = nn.ModuleList(DiTBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.output_layer = DiTOutput(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vocab_embed

    def get_output_embeddings(self) -> nn.Module:
        return self.output_layer.linear

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, L), attention_mask (B, 1, L, C), None: everything is seen -> logits (B, L, V)."""
        x = self.vocab_embed(input_ids)
        mask_id = self.config.noise_token_id
        sigma = x.new_zeros(1) if mask_id is None else noise_level(input_ids, attention_mask, mask_id)
        condition = F.silu(self.sigma_map(sigma, x.dtype))
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=x.device)[None]
        rotation = self._rotation(position_ids, x.dtype)
        for block in self.blocks:
            x = block(x, condition, rotation, attention_mask, past_key_values)
        return CausalLMOutputWithPast(logits=self.output_layer(x, condition), past_key_values=past_key_values)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size = self.config.hidden_size // self.config.num_attention_heads
        rates = ROTARY_BASE ** -(torch.arange(0, size, 2, device=positions.device).float() / size)
        angles = (positions[..., None].float() * rates).repeat(1, 1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def register() -> None:
    """Make transformers' own loaders know the class; once is enough."""
    AutoConfig.register(MODEL_TYPE, DiTConfig, exist_ok=True)
    AutoModelForCausalLM.register(DiTConfig, DiTForMaskedDiffusion, exist_ok=True)
