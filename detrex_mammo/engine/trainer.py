# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The training step: autocast, backward, clipping, a check that the loss is finite, update.

The step does not wait for the device, except where the model does (its matcher): a fused optimizer
is told on the device not to step on numbers that are not finite, and the host reads these numbers
one step later, right after the model has waited anyway.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from detrex_mammo.engine import rng
from detrex_mammo.engine.accumulation import Kept, LargeBatch, summed_losses
from detrex_mammo.engine.interruption import Signals
from detrex_mammo.engine.nonfinite import NanPolicy
from detrex_mammo.engine.optimizer import keep_implementation
from detrex_mammo.engine.sharding import clip_gradients, is_sharded, local, states_are_whole
from detrex_mammo.errors import UserError

_SIGNAL = "signal"  # among the numbers of a step


@dataclass(frozen=True)
class _Begun:
    """What a step changes before it is known to be whole.

    Attributes:
        step: its number.
        generators: states of torch's generators before it.
        statistics: what batch norms had gathered before it.
    """

    step: int
    generators: dict[str, torch.Tensor]
    statistics: list[torch.Tensor]


@dataclass
class _Metrics:
    """What one step measured; ``values`` may still be on their way to the host."""

    names: list[str]
    values: torch.Tensor  # of these names, then the total of each small batch of this process
    batch: LargeBatch
    begun: _Begun

    @property
    def iter(self) -> int:
        return self.begun.step


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
        nan_policy (str): see :class:`detrex_mammo.engine.nonfinite.NanPolicy`.
        nan_limit (int): see there.

    Attributes:
        signals: those that ask this process to leave.
        is_interrupted: some process has got one; known to all in the same step.
        is_stopped: set by a hook to end training after its step.
        unfinished: number of the step that would have to be done first if the run ended here, and
            what takes back what it has changed so far, if it has begun; None while weights and
            averages are changed.
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
        nan_policy: str = "stop",
        nan_limit: int = 10,
    ):
        super().__init__(model, data_loader, optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.amp_dtype = amp_dtype
        self.max_norm = math.inf if max_norm is None else float(max_norm)
        self.norm_type = float(norm_type)
        if not (self.max_norm > 0 and self.norm_type > 0):
            raise UserError(
                f"train.clip_grad.params has max_norm={max_norm} and norm_type={norm_type}, which "
                "must be above 0: train.clip_grad.enabled=False does not clip"
            )
        self.log_period = log_period
        self.accumulate = accumulate
        self.data_rng = rng.TorchStream()
        # Without a device to wait for there is nothing to put off.
        self.copied = torch.cuda.Event() if self.device.type == "cuda" else None
        self.unread: _Metrics | None = None
        keep_implementation(optimizer)
        states_are_whole(optimizer)
        self.grad_scaler = None
        if amp_dtype is torch.float16:
            self.grad_scaler = torch.amp.GradScaler(self.device.type)
        self.nan = NanPolicy(nan_policy, nan_limit, self.grad_scaler)
        self.signals = Signals()
        self.is_interrupted = self.is_stopped = False
        self.unfinished: tuple[int, Callable[[], None] | None] | None = None
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run steps ``start_iter`` to ``max_iter - 1``.

        As detectron2's, but an error is reported once, by the caller, and not logged here too.

        Raises:
            UserError: losses or gradients are not finite.
            Interrupted: a signal came; the run is saved.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, self.signals:
            try:
                self.before_train()
                steps = range(0) if self.is_stopped else range(start_iter, max_iter)
                for self.iter in steps:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.is_stopped:
                        break
                self.iter += 1  # tells after_train that training came to its end
            finally:
                try:
                    self.after_train()
                finally:
                    # Ends the loader's workers now; the garbage collector would wait for each.
                    self._data_loader_iter = None

    def run_step(self) -> None:
        """One optimizer step, on ``accumulate`` batches."""
        kept = [buffer.clone() for buffer in self.statistics]
        begun = _Begun(self.iter, rng.torch_states(self.device), kept)
        self.unfinished = (self.iter, lambda: self._take_back(begun))
        with summed_losses(self.model, self.accumulate > 1) as has_sums:
            batch = LargeBatch(self.accumulate, has_sums)
            for index in range(self.accumulate):
                is_last = index == self.accumulate - 1
                with self._exchange(is_last):
                    self._forward_backward(batch, is_first=index == 0, is_last=is_last)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        losses = batch.normalise(self.parameters)
        if hasattr(self, "after_backward"):  # a place for hooks that detectron2 0.6 lacks
            self.after_backward()
        grad_norm = clip_gradients(self.parameters, self.max_norm, self.norm_type)
        values = self._reduce(losses, grad_norm)
        self.unfinished = None
        is_finite = values.isfinite().all()
        self._update(is_finite)
        for buffer, before in zip(self.statistics, kept):  # a step that is left out changes nothing
            buffer.copy_(torch.where(is_finite, buffer, before))
        host = torch.cat((values, torch.stack(batch.totals))).to("cpu", non_blocking=True)
        self.unread = _Metrics([*losses, "grad_norm", _SIGNAL], host, batch, begun)
        if self.copied is None:
            self.read_metrics()
        else:
            self.copied.record()

    def _forward_backward(self, batch: LargeBatch, is_first: bool, is_last: bool) -> None:
        """Add the gradients of the loader's next batch."""
        start = time.perf_counter()
        with self.data_rng:
            items = next(self._data_loader_iter)
        batch.data_time += time.perf_counter() - start
        kept = Kept(items, rng.torch_states(self.device))
        enabled = self.amp_dtype is not None
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled):
            total = batch.add(items, self.model(items))
        # Without a device to wait for, only what can be the reason is held in memory.
        if self.copied is not None or is_last or not total.isfinite():
            batch.kept.append(kept)
        if is_first:
            self.read_metrics()  # of the step before
            self.optimizer.zero_grad(set_to_none=True)
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        if self.copied is None and not batch.kept and not self._has_finite_gradients():
            batch.kept.append(kept)  # its loss is finite, its gradient is not

    def _has_finite_gradients(self) -> bool:
        """Whether those of this process are; sharded ones are there after the exchange only."""
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else ()
        return all(bool(norm.isfinite()) for norm in norms)

    def _has_finite_weights(self) -> bool:
        """Whether those of this process are; an update may overflow where its gradient did not."""
        return all(bool(local(p.detach()).isfinite().all()) for p in self.parameters)

    def _exchange(self, is_last: bool) -> AbstractContextManager:
        """Processes exchange gradients in the backward pass of the last batch of a step."""
        if is_sharded(self.model):
            self.model.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last or comm.get_world_size() == 1 else self.model.no_sync()

    def _reduce(self, losses: dict[str, torch.Tensor], grad_norm: torch.Tensor) -> torch.Tensor:
        """Mean over the processes of each loss, the norm and a signal; one tensor on the device."""
        values = [v.detach().float() for v in losses.values()] + [grad_norm.float()]
        values = torch.stack([*values, values[0].new_tensor(float(self.signals.received))])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
            values /= comm.get_world_size()
        return values

    def _update(self, is_finite: torch.Tensor) -> None:
        """Step the optimizer, unless the numbers of this step are not finite.

        A gradient scaler's own step looks at the gradients only, not at the losses.
        """
        if skips_steps(self.optimizer):
            self.optimizer.found_inf = (~is_finite).float()
            self.optimizer.step()
            del self.optimizer.found_inf
        elif is_finite:  # waits for the device
            self.optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()  # halves the scale after an overflow

    def _take_back(self, begun: _Begun) -> None:
        """Undo what a step has changed before the weights."""
        rng.set_torch_states(begun.generators, self.device)
        for buffer, before in zip(self.statistics, begun.statistics):
            buffer.copy_(before)

    def after_step(self) -> None:
        """Run the hooks; those that write metrics find the newest ones."""
        if (self.iter + 1) % self.log_period == 0 or self.iter + 1 == self.max_iter:
            self.read_metrics()
        super().after_step()

    def read_metrics(self) -> None:
        """Check and record what the newest step measured, if that has not been done yet.

        Raises:
            UserError: it is not finite, and the policy is to stop. The weights are those of before
                that step.
        """
        if self.unread is None:
            return
        step, self.unread = self.unread, None
        if self.copied is not None:
            self.copied.synchronize()
        values = step.values.tolist()
        metrics = dict(zip(step.names, values))
        self.is_interrupted |= metrics.pop(_SIGNAL) > 0
        try:  # All processes see the same numbers, so all go on, or none.
            self.nan.judge(step.iter, metrics, step.batch, values[len(step.names) :])
        except UserError:
            # Its weights are those of before.
            self.unfinished = (step.iter, lambda: self._take_back(step.begun))
            raise
        now, self.storage.iter = self.storage.iter, step.iter
        losses = [value for name, value in metrics.items() if name != "grad_norm"]
        # JSON cannot hold what is not finite; after an overflow in fp16 that is the norm alone.
        kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if all(map(math.isfinite, losses)):
            kept["total_loss"] = sum(losses)
        self.storage.put_scalars(data_time=step.batch.data_time, **kept)
        self.storage.iter = now

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer, hooks, random states and, in fp16, the gradient scaler.

        Every process takes part; what the main one gets holds the random states of all.

        Raises:
            UserError: the weights are not finite; nothing could go on from them.
        """
        self.read_metrics()  # what is not finite must not be saved
        if not all(comm.all_gather(self._has_finite_weights())):
            raise UserError(
                f"the weights after step {self.iter} are not finite, so they are not saved: lower "
                "optimizer.lr and go on with --resume from the last checkpoint"
            )
        state = {**super().state_dict(), "rng": rng.gather_states(), "nan": self.nan.state_dict()}
        state["metrics"] = self._newest_metrics()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def _newest_metrics(self) -> dict[str, float]:
        """What writers are about to write of the newest step; a kill may keep them from it."""
        if not hasattr(self, "storage"):  # no step has been done
            return {}
        done = self.iter + 1
        if done % self.log_period and done != self.max_iter:
            return {}
        latest = self.storage.latest_with_smoothing_hint(self.log_period)
        return {name: float(v) for name, (v, step) in latest.items() if step == self.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; precision may differ from the run that wrote it."""
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.nan.load_state_dict(state_dict.get("nan", {}))
        rng.restore(state_dict.get("rng"), self.iter + 1)


def skips_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer itself leaves out a step when its ``found_inf`` is 1, on its device.

    The protocol of torch's fused optimizers, made for its gradient scaler.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)
