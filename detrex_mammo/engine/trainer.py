# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training step: autocast, backward, clipping, a check that the loss is finite, update.

The step does not wait for the device, except where the model does (its matcher): a fused optimizer
is told on the device not to step on numbers that are not finite, and the host reads these numbers
one step later, right after the model has waited anyway.
"""

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import distributed as dist

from detrex_mammo.engine import rng
from detrex_mammo.engine.accumulation import LargeBatch, summed_losses
from detrex_mammo.engine.optimizer import keep_implementation
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Metrics:
    """What one step measured; ``values`` may still be on their way to the host."""

    iter: int
    names: list[str]
    values: torch.Tensor  # of these names, then the total of each small batch of this process
    batch: LargeBatch


class Trainer(SimpleTrainer):
    """detectron2's trainer with one loop for CPU and GPU, full and mixed precision.

    Args:
        model (nn.Module): list of dataset dicts -> dict of weighted scalar losses.
        data_loader: endless; yields what ``model`` takes.
        optimizer (torch.optim.Optimizer): over the trainable parameters.
        amp_dtype (torch.dtype, optional): autocast to it; None is full precision.
        max_norm (float, optional): clip the gradient's norm to it; None only measures it.
        norm_type (float): of that norm.
        log_period (int): metrics are read at once, waiting for the device, every so many steps.
        accumulate (int): batches of the loader in one step, which is that of one batch of all
            their images.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        amp_dtype: torch.dtype | None = None,
        max_norm: float | None = 0.1,
        norm_type: float = 2.0,
        log_period: int = 20,
        accumulate: int = 1,
    ):
        super().__init__(model, data_loader, optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.amp_dtype = amp_dtype
        self.max_norm = math.inf if max_norm is None else float(max_norm)
        self.norm_type = float(norm_type)
        self.log_period = log_period
        self.accumulate = accumulate
        self.data_rng = rng.TorchStream()
        # Without a device to wait for there is nothing to put off.
        self.copied = torch.cuda.Event() if self.device.type == "cuda" else None
        self.unread: _Metrics | None = None
        keep_implementation(optimizer)
        self.grad_scaler = None
        if amp_dtype is torch.float16:
            self.grad_scaler = torch.amp.GradScaler(self.device.type)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run steps ``start_iter`` to ``max_iter - 1``.

        As detectron2's, but an error is reported once, by the caller, and not logged here too.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1  # tells after_train that training came to its end
            finally:
                self.after_train()
                # Ends the loader's workers now; the garbage collector would wait for each.
                self._data_loader_iter = None

    def run_step(self) -> None:
        """One optimizer step, on ``accumulate`` batches."""
        with summed_losses(self.model, self.accumulate > 1) as has_sums:
            batch = LargeBatch(self.accumulate, has_sums)
            for index in range(self.accumulate):
                with self._exchange(is_last=index == self.accumulate - 1):
                    self._forward_backward(batch, is_first=index == 0)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        losses = batch.normalise(self.parameters)
        if hasattr(self, "after_backward"):  # a place for hooks that detectron2 0.6 lacks
            self.after_backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.parameters, self.max_norm, norm_type=self.norm_type
        )
        values = self._reduce(losses, grad_norm)
        self._update(values.isfinite().all())
        host = torch.cat((values, torch.stack(batch.totals))).to("cpu", non_blocking=True)
        self.unread = _Metrics(self.iter, [*losses, "grad_norm"], host, batch)
        if self.copied is None:
            self.read_metrics()
        else:
            self.copied.record()

    def _forward_backward(self, batch: LargeBatch, is_first: bool) -> None:
        """Add the gradients of the loader's next batch."""
        start = time.perf_counter()
        with self.data_rng:
            items = next(self._data_loader_iter)
        batch.data_time += time.perf_counter() - start
        enabled = self.amp_dtype is not None
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled):
            total = batch.add(items, self.model(items))
        if is_first:
            self.read_metrics()  # of the step before
            self.optimizer.zero_grad(set_to_none=True)
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()

    def _exchange(self, is_last: bool) -> AbstractContextManager:
        """Processes exchange gradients in the backward pass of the last batch of a step."""
        return nullcontext() if is_last or comm.get_world_size() == 1 else self.model.no_sync()

    def _reduce(self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor) -> torch.Tensor:
        """Mean of each loss over the processes, and the norm, in one tensor on the device."""
        values = torch.stack([v.detach().float() for v in losses.values()] + [grad_norm.float()])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
            values /= comm.get_world_size()
        return values

    def _update(self, is_finite: torch.Tensor) -> None:
        """Step the optimizer, unless the numbers of this step are not finite."""
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)  # skips the step if a scaled gradient overflowed
            self.grad_scaler.update()
        elif skips_steps(self.optimizer):
            self.optimizer.found_inf = (~is_finite).float()
            self.optimizer.step()
            del self.optimizer.found_inf
        elif is_finite:  # waits for the device
            self.optimizer.step()

    def after_step(self) -> None:
        """Run the hooks; those that write metrics find the newest ones."""
        if (self.iter + 1) % self.log_period == 0 or self.iter + 1 == self.max_iter:
            self.read_metrics()
        super().after_step()

    def read_metrics(self) -> None:
        """Check and record what the newest step measured, if that has not been done yet.

        Raises:
            UserError: it is not finite. The weights are those of before that step.
        """
        if self.unread is None:
            return
        step, self.unread = self.unread, None
        if self.copied is not None:
            self.copied.synchronize()
        metrics = dict(zip(step.names, step.values.tolist()))
        self._check_finite(metrics, step)
        self._record(metrics, step)

    def _check_finite(self, metrics: dict[str, float], step: _Metrics) -> None:
        """Stop every process together, before the weights are touched.

        All processes see the same reduced numbers, so none is left waiting for another.
        """
        # With a scaler an overflowing gradient is expected now and then, and its step is skipped.
        watched = {k: v for k, v in metrics.items() if k != "grad_norm" or not self.grad_scaler}
        bad = [f"{name}={value}" for name, value in watched.items() if not math.isfinite(value)]
        if not bad:
            return
        self._name_images(step, is_gradient_only=all(text.startswith("grad_norm") for text in bad))
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"training stopped at step {step.iter} before the weights were changed, because "
            f"{', '.join(bad[:3])}{more}: lower optimizer.lr, lengthen the warm-up, "
            "or set train.amp.enabled=False"
        )

    def _name_images(self, step: _Metrics, is_gradient_only: bool) -> None:
        """Log which images of this process it was; all of them if every loss is finite."""
        images = step.batch.suspects(step.values[len(step.names) :].tolist())
        if is_gradient_only:
            images = sum(step.batch.images, [])
        if images:
            names = ", ".join(images)
            logger.error("not finite in process %d, with the images %s", comm.get_rank(), names)

    def _record(self, metrics: dict[str, float], step: _Metrics) -> None:
        total = sum(value for name, value in metrics.items() if name != "grad_norm")
        # A skipped fp16 step has an infinite norm, which JSON cannot hold.
        kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
        now, self.storage.iter = self.storage.iter, step.iter
        self.storage.put_scalars(data_time=step.batch.data_time, total_loss=total, **kept)
        self.storage.iter = now

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer, hooks, random states and, in fp16, the gradient scaler.

        Every process takes part; what the main one gets holds the random states of all.
        """
        self.read_metrics()  # what is not finite must not be saved
        state = {**super().state_dict(), "rng": rng.gather_states()}
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; precision may differ from the run that wrote it."""
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        rng.restore(state_dict.get("rng"), self.iter + 1)


def skips_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer itself leaves out a step when its ``found_inf`` is 1, on its device.

    The protocol of torch's fused optimizers, made for its gradient scaler.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)
