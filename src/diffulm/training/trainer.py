"""DiffusionTrainer: transformers' Trainer with the loss of the whole global batch, checkpoints that are whole or absent,
and an exact resume."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from diffulm.checkpoint import disk
from diffulm.checkpoint.save import flush, sync, write_model
from diffulm.denoiser.denoiser import Denoiser
from diffulm.denoiser.quiet import quietly
from diffulm.objective import ratio
from diffulm.training import checkpoints, processes
from diffulm.training.curriculum import Curriculum, Samples
from diffulm.training.run_folder import RESUMES, RunFolder

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
        self._visible: tuple[int, Tensor | None] = (-1, None)
        super().__init__(
            model=denoiser.model, args=args, train_dataset=samples, data_collator=default_collate, callbacks=callbacks
        )

    # -- the loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimizer step, noised, and the denominator of the global batch over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        hidden = [self.curriculum.hide(batch) for batch in batches]
        if not hidden:
            return [], None
        denominator = torch.stack([h.denominator for h in hidden]).sum().to(device)
        if self.args.world_size > 1:
            denominator = self.accelerator.reduce(denominator, "sum")
        inputs = [
            {"ids": b["ids"], "canvas": h.canvas, "where": h.where, "weight": h.token_weight, "step": b["step"]}
            for b, h in zip(batches, hidden, strict=True)
        ]
        return inputs, denominator

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """world size x sum(CE weight) / denominator: DDP averages over ranks, which the factor undoes."""
        where = inputs["where"]
        visible = self._visible_at(int(inputs["step"][0]), where)
        ce, balance = self.denoiser.on(model).training_losses(inputs["canvas"], inputs["ids"][where], where, visible)
        loss = self.args.world_size * ratio((ce * inputs["weight"][where]).sum(), num_items_in_batch)
        if balance is not None:  # a mean over micro-batches and, by DDP, over ranks
            loss = loss + balance / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    def _visible_at(self, step: int, where: Tensor) -> Tensor | None:
        if self._visible[0] != step:
            self._visible = (step, self.curriculum.visible(step, where.shape[1], where.device))
        return self._visible[1]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 6 * sum(p.numel() for p in self.denoiser.model.parameters()) * inputs["ids"].numel()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(cast(Any, train_dataset or self.train_dataset))  # Samples is in the run's own order

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:  # pyright: ignore[reportIncompatibleMethodOverride]
        metrics = self._evaluate_with()
        if self.args.process_index == 0:
            self.run_folder.log({"step": self.state.global_step, **metrics})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer writes into a folder called .tmp; seal, fsync, then rename: a checkpoint that can be seen is whole."""
        root, name = self.run_folder.path, f"checkpoint-{self.state.global_step}"
        saving = root / "saving.tmp"
        keep, self.args.output_dir, self.args.save_total_limit = self.args.save_total_limit, str(saving), None
        try:
            with disk.writing(root, checkpoint_bytes(self.denoiser.model), RESUMES):
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
        """The model as a plain checkpoint; no pickled training_args.bin."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run_folder.path)
        write_model(self.denoiser.model, self.tokenizer_to_save, folder, self.saved_record(), state_dict)

    def saved_record(self) -> dict[str, Any] | None:
        return None if self.curriculum.autoregressive else self.denoiser.record.to_dict()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if not self.args.should_save:
            return
        optimizer, scheduler = self._optimizer_and_scheduler()
        state = optimizer.state_dict()
        tensors = {f"{i}.{k}": v for i, part in state["state"].items() for k, v in part.items() if torch.is_tensor(v)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, Path(output_dir) / OPTIMIZER)
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

    def _optimizer_and_scheduler(self) -> tuple[Any, Any]:
        assert self.optimizer is not None and self.lr_scheduler is not None
        return self.optimizer, self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = self._optimizer_and_scheduler()
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(Path(checkpoint) / OPTIMIZER).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
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
