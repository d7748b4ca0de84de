"""Weights, gradients and moments split over the processes of a run (FSDP2, ZeRO stage 3), on GPUs and CPUs alike.

`shard` changes the model in place: it stays the transformers model that it is, its parameters become DTensors, and hooks
gather a layer's weights for as long as that layer runs. (accelerate would take a CPU's model for one to wrap in DDP, whatever
its FSDP settings say.) A checkpoint holds one safetensors file a process, which torch.distributed.checkpoint reads again on
any number of them; nothing in it is pickled.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.layers import decoder_layers
from diffulm.errors import BadInput
from diffulm.training import processes


def mesh(device: str) -> DeviceMesh:
    """All processes of the run in a row; `device` is cpu or cuda."""
    return init_device_mesh(device, (processes.count(),))


def shard(model: nn.Module, mesh: DeviceMesh, bf16: bool) -> None:
    """Keep this process's part of each decoder layer and of what is outside of them, on its device.

    bf16: the layers are gathered in bfloat16, which is what autocast would make of them, and run under autocast alone;
    gradients are summed in float32. Everything is given back after its forward, so that outside of the model's own passes
    there are parts alone.
    """
    dtype = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(model) or []:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(denoiser: Denoiser, device: str) -> Denoiser:
    """On process 0 the denoiser with a plain model, gathered tensor by tensor; called by all processes. No other holds more
    than one whole tensor at a time, and what is not sharded is handed back as it is."""
    if not is_sharded(denoiser.model):
        return denoiser
    gathered: dict[Tensor, nn.Parameter] = {}
    for parameter in denoiser.model.parameters():
        full: Tensor = parameter.full_tensor().detach()  # pyright: ignore[reportCallIssue]
        if processes.index() == 0:
            gathered[parameter] = nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad)
    if processes.index() > 0:
        return denoiser
    made = copy.copy(denoiser)
    made.model = made.module = _plain(denoiser.model, gathered).to(device)
    return made


def _plain(module: nn.Module, gathered: dict[Tensor, nn.Parameter]) -> nn.Module:
    """A copy of the module with its class, hooks and parameters as they were before `shard`."""
    kind = type(module).__bases__[1] if isinstance(module, FSDPModule) else type(module)
    made = object.__new__(kind)
    for name, value in vars(module).items():
        # accelerate puts a forward that casts over a model's own
        own = isinstance(value, MethodType) and value.__self__ is module
        made.__dict__[name] = MethodType(value.__func__, made) if own else copy.copy(value)
    for hooks in (made._forward_pre_hooks, made._forward_hooks):
        for key in [key for key, hook in hooks.items() if "fsdp" in getattr(hook, "__module__", "")]:
            del hooks[key]
    made._compiled_call_impl = None
    made._parameters = {k: p if p is None else gathered[p] for k, p in module._parameters.items()}
    made._modules = {k: m if m is None else _plain(m, gathered) for k, m in module._modules.items()}
    return made


def in_shards(checkpoint: Path) -> bool:
    """Whether a sharded run wrote it."""
    return any(checkpoint.glob("shard-*.safetensors"))


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Each process writes its part of the tensors; called by all of them."""
    checkpoint = _checkpoint()
    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _told():
        checkpoint.save(tensors, storage_writer=writer, **_group())


def load_weights(folder: Path, model: nn.Module) -> None:
    """The weights of a checkpoint, whole or in shards, into a model, whole or sharded; called by all processes."""
    _load(folder, trained(model))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint: of a model with an adapter not those of the frozen parent."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def load_moments(folder: Path, optimizer: Any) -> dict[int, dict[str, Tensor]]:
    """The `state` of an optimizer's state_dict, likewise."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wanted: dict[str, Tensor] = {}
    stored = _checkpoint().HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, about in stored.items():
        number = name.partition(".")[0]
        if number.isdecimal():
            parameter = parameters[int(number)]
            alike = about.size == parameter.shape
            wanted[name] = torch.zeros_like(parameter) if alike else torch.zeros(about.size)
    _load(folder, wanted)
    return by_parameter(wanted)


def by_parameter(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """{"0.exp_avg": a} -> {0: {"exp_avg": a}}."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    return state


def _load(folder: Path, tensors: dict[str, Tensor]) -> None:
    checkpoint = _checkpoint()
    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    if missing := sorted(tensors.keys() - reader.read_metadata().state_dict_metadata.keys()):
        # transformers has names of its own for the experts that it writes
        raise processes.said_once(f"{folder}: has no {missing[0]}; it was written with sharding=none, go on with that")
    with _told():
        checkpoint.load(tensors, storage_reader=reader, **_group())


def _checkpoint() -> Any:
    from torch.distributed import checkpoint

    if not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise BadInput(f"sharding=full: torch {torch.__version__} writes no sharded safetensors; 2.8 and later do")
    return checkpoint


def _group() -> dict[str, Any]:
    return {"process_group": processes.group()} if processes.group() else {"no_dist": True}


@contextmanager
def _told() -> Iterator[None]:
    """What went wrong on some process, as it was there, in the place of a report about all of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
