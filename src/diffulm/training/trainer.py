"""DiffusionTrainer: transformers' Trainer with the loss of the whole global batch, checkpoints that are whole or absent,
and an exact resume."""

import json
import os
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from diffulm.checkpoint import adapter, disk
from diffulm.checkpoint.files import checkpoints_in
from diffulm.checkpoint.opening import load_weights
from diffulm.checkpoint.save import flush, sync, write_model
from diffulm.data.blocks import row as row_of
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.quiet import quietly
from diffulm.training import checkpoints, finite, processes, sharding
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.run_folder import RESUMES, RunFolder
from diffulm.training.step import loss_of, prepared

OPTIMIZER, GROUPS, SCHEDULER = "optimizer.safetensors", "optimizer.json", "scheduler.json"
GENERATORS = "generators.json"
Metrics = dict[str, Any]


class DiffusionTrainer(Trainer):
    """Trains `denoiser.model` under a curriculum. `evaluate_with() -> metrics` is called on evaluation steps."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the denominator of the whole global batch

    def __init__(
        self,
        denoiser: Denoiser,
        curriculum: Curriculum,
        run: RunFolder,
        samples: Samples,
        args: TrainingArguments,
        tokenizer: Any,
        evaluate_with: Callable[[], Metrics],
        callbacks: list[TrainerCallback],
    ) -> None:
        self.denoiser, self.curriculum, self.run_folder = denoiser, curriculum, run
        self.tokenizer_to_save, self._evaluate_with = tokenizer, evaluate_with
        self.sharded = sharding.is_sharded(denoiser.model)
        # the micro-batches of the step that is under way, each with its loss
        self._taken: deque[tuple[dict[str, Tensor], Tensor]] = deque(maxlen=args.gradient_accumulation_steps)
        super().__init__(
            model=denoiser.model, args=args, train_dataset=samples, data_collator=default_collate, callbacks=callbacks
        )

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.sharded:  # the gradients are summed by the model itself, and DDP takes no DTensors
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self.sharded:
            super()._move_model_to_device(model, device)

    # -- the loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return [], None
        world = self.args.world_size
        return prepared(self.curriculum, batches, world, self._summed if world > 1 else lambda total: total), None

    def _summed(self, total: Tensor) -> Any:
        return self.accelerator.reduce(total.to(self.accelerator.device), "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = loss_of(self.denoiser.on(model), self.curriculum, inputs, self.current_gradient_accumulation_steps)
        return (loss, None) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._taken.append((inputs, loss))
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """The gradient's norm over all processes; BadInput on each of them where it, or a loss, is not finite, before the
        weights take it in."""
        norm = super()._clip_grad_norm(model)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        loss = torch.stack([loss for _, loss in self._taken]).sum()
        found = torch.stack([loss, torch.as_tensor(0.0 if norm is None else norm).to(loss)])
        wrong = (~found.isfinite()).float()
        if self.args.world_size > 1:
            wrong = cast(Tensor, self.accelerator.reduce(wrong, "sum"))
        if bool(wrong.any()):
            self._stop("loss" if wrong[0] else "gradient")
        self._taken.clear()
        return norm

    def _stop(self, what: str) -> NoReturn:
        model, samples, step = self.denoiser.model, cast(Samples, self.train_dataset), self.state.global_step
        model.zero_grad()  # room for the gradients of a row

        def alone(inputs: dict[str, Tensor]) -> Tensor:
            with self.compute_loss_context_manager():
                return self.compute_loss(model, cast(Any, self._prepare_inputs(inputs)))

        rows = finite.spoilt(model, [inputs for inputs, _ in self._taken], alone)
        blocks = {
            row: row_of(cast(Any, samples.blocks), samples.seed, step * samples.global_batch + row) for row in rows
        }
        last = checkpoints_in(self.run_folder.path)
        raise processes.said_once(
            f"{finite.told(step + 1, what, blocks, samples.global_batch, self.sharded)}; nothing of that step was saved, "
            f"{f'{last[-1]} is the last checkpoint' if last else 'and there is no checkpoint yet'}; a lower learning_rate"
            f"{' or precision=float32' if self.args.bf16 else ''}, with another out, may get past it"
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 6 * sum(p.numel() for p in self.denoiser.model.parameters()) * inputs["ids"].numel()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(cast(Any, train_dataset or self.train_dataset))  # Samples is in the run's own order

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:  # pyright: ignore[reportIncompatibleMethodOverride]
        metrics = self._evaluate_with()
        if self.args.process_index == 0:
            self.run_folder.log({"step": self.state.global_step, **metrics})
        if self.args.report_to:
            self.log(dict(metrics))  # to the trackers
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer writes into a folder called .tmp; seal, fsync, then rename: a checkpoint that can be seen is whole."""
        root, name = self.run_folder.path, f"checkpoint-{self.state.global_step}"
        saving = root / "saving.tmp"
        keep, self.args.output_dir, self.args.save_total_limit = self.args.save_total_limit, str(saving), None
        try:
            needed = checkpoint_bytes(self.denoiser.model)
            with processes.saying_once(), disk.writing(root, needed, RESUMES):
                super()._save_checkpoint(model, trial)
                processes.all_of(None)  # whatever the others have to write is written
                if self.args.should_save:
                    self.run_folder.complete(saving / name)
                    flush(saving / name)
        except BaseException:
            shutil.rmtree(saving, ignore_errors=True)  # on a full disk it would be in the way
            raise
        finally:
            self.args.output_dir, self.args.save_total_limit = str(root), keep
        if not self.args.should_save:
            return
        shutil.rmtree(root / name, ignore_errors=True)
        os.rename(saving / name, root / name)
        saving.rmdir()
        sync(root)
        checkpoints.keep_newest(root, keep or 1)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model as a plain checkpoint; no pickled training_args.bin. Shards are written with those of the optimizer."""
        if not self.args.should_save or self.sharded:
            return
        folder = Path(output_dir or self.run_folder.path)
        write_model(self.denoiser.model, self.tokenizer_to_save, folder, self.saved_record(), state_dict)

    def saved_record(self) -> dict[str, Any] | None:
        return None if self.curriculum.autoregressive else self.denoiser.record.to_dict()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if not (self.args.should_save or self.sharded):
            return
        optimizer, scheduler = self._optimizer_and_scheduler()
        state = optimizer.state_dict()
        tensors = {f"{i}.{k}": v for i, part in state["state"].items() for k, v in part.items() if torch.is_tensor(v)}
        if self.sharded:
            sharding.save(Path(output_dir), tensors | sharding.trained(self.denoiser.model))
        else:
            save_file({k: v.contiguous() for k, v in tensors.items()}, Path(output_dir) / OPTIMIZER)
        if not self.args.should_save:
            return
        (Path(output_dir) / GROUPS).write_text(json.dumps(state["param_groups"]), "utf-8")
        (Path(output_dir) / SCHEDULER).write_text(json.dumps(scheduler.state_dict()), "utf-8")

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        with quietly():  # another micro-batch or number of processes than before: the same batch, nothing to warn of
            return super()._init_training_state(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        states = processes.all_of(generators())
        if self.args.should_save:
            (Path(output_dir) / GENERATORS).write_text(json.dumps(states), "utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = json.loads((Path(checkpoint) / GENERATORS).read_text("utf-8"))
        if len(states) == self.args.world_size:  # on another number of processes there is nothing to go on from
            set_generators(states[self.args.process_index])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer would look up the names of the model's tensors, those of experts are others in a file, and go on without."""
        folder = Path(resume_from_checkpoint)
        if adapter.is_adapter(folder):
            adapter.fill(self.denoiser.model, folder)
        elif self._in_parts(resume_from_checkpoint):
            sharding.load_weights(folder, self.denoiser.model)
        else:
            with quietly():
                self.denoiser.model.load_state_dict(load_weights(folder, self.denoiser.model.dtype).state_dict())

    def _in_parts(self, checkpoint: str) -> bool:
        """Whether this run or the one that wrote the checkpoint is sharded."""
        return self.sharded or sharding.in_shards(Path(checkpoint))

    def _optimizer_and_scheduler(self) -> tuple[Any, Any]:
        assert self.optimizer is not None and self.lr_scheduler is not None
        return self.optimizer, self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = self._optimizer_and_scheduler()
        if self._in_parts(checkpoint):
            state = sharding.load_moments(Path(checkpoint), optimizer)
        else:
            state = sharding.by_parameter(load_file(Path(checkpoint) / OPTIMIZER))
        groups = json.loads((Path(checkpoint) / GROUPS).read_text("utf-8"))
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict(json.loads((Path(checkpoint) / SCHEDULER).read_text("utf-8")))


def checkpoint_bytes(model: Any) -> int:
    """About what a checkpoint takes: the weights, and two moments of each for AdamW."""
    return 3 * disk.size(model)


def generators() -> dict[str, Any]:
    """The state of every global random generator as plain values. Our own noise needs none of them; dropout does."""
    numbers: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [numbers[0], numbers[1].tolist(), *numbers[2:]],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def set_generators(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
