"""`diffulm adapt PRESET --plan`: what a run would do and what it would cost, before anything is read or written.

    diffulm adapt diffullama-7b --plan --devices 64

No weights are read. The parents of the presets are known by name, so the hub is not needed for them; of any other parent
its config.json is read, in its folder or on the hub.
"""

from typing import Annotated, Any

from pydantic import Field

from diffulm import costs
from diffulm.costs import Geometry, Method
from diffulm.errors import BadInput
from diffulm.options import Count, Options, checked
from diffulm.recipes.adapt import VERB, AdaptConfig, stages
from diffulm.recipes.config import resolve

# What transformers builds of these models' configs; a test holds it.
PARENTS = {
    "gpt2": Geometry(
        layers=12, attention_layers=12, width=768, heads=12, kv_heads=12, head_width=64, intermediate=3072,
        vocabulary=50257, tied=True, parameters=124_439_808, active_parameters=124_439_808,
        embedding_parameters=(50257 + 1024) * 768, context=1024,
    ),
    "gpt2-medium": Geometry(
        layers=24, attention_layers=24, width=1024, heads=16, kv_heads=16, head_width=64, intermediate=4096,
        vocabulary=50257, tied=True, parameters=354_823_168, active_parameters=354_823_168,
        embedding_parameters=(50257 + 1024) * 1024, context=1024,
    ),
    "meta-llama/Llama-2-7b-hf": Geometry(
        layers=32, attention_layers=32, width=4096, heads=32, kv_heads=32, head_width=128, intermediate=11008,
        vocabulary=32000, tied=False, parameters=6_738_415_616, active_parameters=6_738_415_616,
        embedding_parameters=2 * 32000 * 4096, context=4096,
    ),
    "Qwen/Qwen3-0.6B": Geometry(
        layers=28, attention_layers=28, width=1024, heads=16, kv_heads=8, head_width=128, intermediate=3072,
        vocabulary=151936, tied=True, parameters=596_049_920, active_parameters=596_049_920,
        embedding_parameters=151936 * 1024, context=40960,
    ),
}  # fmt: skip
LINEAR_BYTES = {"none": 4, "8bit": 1, "4bit": 0.52}  # 4 bits, and a scale of 8 for every 64 of them
OPEN = "?"  # what a plan can do without
ASSUMED = {
    "batch": "micro-batches as a run takes them on GPUs where the preset leaves it open",
    "float32": "the peak is that of bfloat16: in float32 it takes several times as long",
    "sharding": "weights, gradients and moments split over all devices; each holds two layers and the embeddings whole",
    "replicas": "every device holds everything; DDP keeps the gradients a second time, to exchange them",
    "adapter": "low-rank matrices on every linear layer, counted as if none were fused or of an expert",
    "clean": "all pairs of the two copies are computed, those nobody may see as well",
}


class PlanOptions(Options):
    """What a plan is for: so many devices, None: costs.DEVICES; the share of their peak that training gets."""

    devices: Count | None = None
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.4


def plan(preset: str, overrides: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """A document for programs and people; `asked` as `PlanOptions`. `data` and `out` may be left open.

    Where the parent's sizes cannot be found `parameters` is None and `reason` says why. BadInput for settings that a run
    would refuse as well: a batch that does not divide by the devices asked for, a canvas longer than the parent's context.
    """
    options = checked(PlanOptions, **asked)
    config = resolve(VERB, AdaptConfig, preset, overrides, {"data": OPEN, "out": OPEN})
    settings = config.model_dump(mode="json")
    settings |= {key: None for key in ("data", "out") if settings[key] == OPEN}
    positions = config.steps * config.global_batch * config.length
    told = {"config": settings, "steps": config.steps, "tokens": positions}
    try:
        sizes, source = parent_sizes(config.model)
    except BadInput as error:
        return {**told, "parameters": None, "flops": None, "reason": f"no costs: {error}"}
    if sizes.context is not None and config.length > sizes.context:
        raise BadInput(
            f"length={config.length}: {config.model} takes at most {sizes.context} positions; set length lower"
        )
    return {
        **told,
        "parameters": sizes.parameters,
        "trained_parameters": method_of(config, sizes).trained(sizes),
        "sizes_from": source,
        "length": config.length,
        **_costs(config, sizes, positions, options),
    }


def parent_sizes(model: str) -> tuple[Geometry, str]:
    """(geometry, where it is from) of a parent; a folder comes before a name that is known. BadInput if there is none."""
    from diffulm.checkpoint.files import locate

    place = locate(model)
    if isinstance(place, str) and place in PARENTS:
        return PARENTS[place], "what is known of this model"
    from diffulm.checkpoint.opening import decoder_config
    from diffulm.checkpoint.outline import geometry, skeleton
    from diffulm.denoiser.quiet import quietly

    with quietly():
        return geometry(skeleton(decoder_config(place))), "its config.json"


def _costs(config: AdaptConfig, sizes: Geometry, positions: int, options: PlanOptions) -> dict[str, Any]:
    from diffulm.recipes.devices import split_batch

    counts = costs.DEVICES if options.devices is None else (options.devices,)
    device = "cpu" if config.device == "cpu" else "cuda"
    batches: dict[str, tuple[int, int] | None] = {}
    for count in counts:
        try:
            batches[str(count)] = split_batch(config, count, device)
        except BadInput:
            if options.devices is not None:
                raise
            batches[str(count)] = None
    method = method_of(config, sizes)
    parts = costs.flop_parts(sizes, positions, config.length, method)
    memory = {n: batch and _memory(config, sizes, int(n), *batch) for n, batch in batches.items()}
    cards = costs.card_rows(sum(parts.values()), options.utilisation, counts)
    for row in cards:
        row["fits"] = {n: found is not None and costs.fits(found, row["card"]) for n, found in memory.items()}
        row["largest_micro_batch"] = {
            n: batch and _largest(config, sizes, int(n), *batch, row["card"]) for n, batch in batches.items()
        }
    return {
        "flops": sum(parts.values()),
        "flops_by_part": parts,
        "utilisation": options.utilisation,
        "batch": {n: batch and dict(zip(("micro_batch", "accumulation"), batch, strict=True)) for n, batch in batches.items()},
        "memory_per_device": {n: found and found.as_dict() for n, found in memory.items()},
        "cards": cards,
        "assumptions": _assumptions(config, method),
    }  # fmt: skip


def method_of(config: AdaptConfig, sizes: Geometry, devices: int = 1, accumulation: int = 2) -> Method:
    """How this run trains, as costs.py counts."""
    split = devices > 1 and (config.sharding == "full" or config.deepspeed is not None)
    adapter = config.adapter == "lora"
    return Method(
        mixed=config.precision == "bf16",
        checkpointing=config.checkpointing,
        adapter=costs.low_rank_parameters(sizes, config.lora_rank) if adapter else None,
        embeddings=config.train_embeddings,
        frozen_bytes=LINEAR_BYTES[config.quantise],
        shards=devices if split else 1,
        buckets=devices > 1 and not split,
        accumulates=accumulation > 1,
        predicted=1.0 if config.objective == "autoregressive" else costs.MASKED_SHARE,
        clean_share=clean_share(config),
        ar_term=config.ar_weight > 0,
    )


def clean_share(config: AdaptConfig) -> float:
    """Share of the steps that see a clean copy beside the canvas: those under block-causal attention."""
    parts = stages(config)
    ends = [*(min(first, config.steps) for first, _ in parts[1:]), config.steps]
    clean = sum(end - first for (first, size), end in zip(parts, ends, strict=True) if size is not None and end > first)
    return clean / config.steps * (1 - config.full_share)


def _memory(config: AdaptConfig, sizes: Geometry, devices: int, micro: int, accumulation: int) -> costs.Memory:
    method = method_of(config, sizes, devices, accumulation)
    return costs.training_memory(sizes, config.length, micro, method)


def _largest(
    config: AdaptConfig, sizes: Geometry, devices: int, micro: int, accumulation: int, card: str
) -> int | None:
    """The largest micro-batch up to the planned one with which this card is large enough; None: none is."""
    share = micro * accumulation
    for size in range(micro, 0, -1):
        if share % size == 0 and costs.fits(_memory(config, sizes, devices, size, share // size), card):
            return size
    return None


def _assumptions(config: AdaptConfig, method: Method) -> dict[str, str]:
    split = config.sharding == "full" or config.deepspeed is not None
    said = {"batch", "sharding" if split else "replicas"}
    said |= {"adapter"} if method.adapter is not None else set()
    said |= {"clean"} if method.clean_share else set()
    said |= {"float32"} if not method.mixed else set()
    known = {key: text for key, text in ASSUMED.items() if key in said}
    return {key: costs.ASSUMPTIONS[key] for key in ("flops", "training", "cards")} | known
