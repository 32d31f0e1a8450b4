# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Peak memory of a training step, predicted without computing anything.

The step runs on torch's fake tensors, which have shapes and lifetimes but no numbers. Every storage
that it makes is counted from its first use to its release, so that the sum at its highest is what
torch's allocator would hold. Not seen are the work spaces inside single kernels, and what the
process needs besides (Python, libraries, the CUDA context).
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrex_mammo.config import instantiate, without_pretrained
from detrex_mammo.engine.accumulation import summed_losses
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.lengths import positive
from detrex_mammo.engine.optimizer import build_optimizer
from detrex_mammo.engine.precision import amp_dtype
from detrex_mammo.errors import UserError
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.matcher import HungarianMatcher

# Of the prediction, measured on CPU in processes whose C library gives back what is freed
# (tests/engine/test_memory.py); one that keeps it held up to 45 % more.
ERROR = 0.1


@dataclass(frozen=True)
class PredictedPeak:
    """Bytes of tensors in one process.

    Attributes:
        weights: parameters and buffers.
        optimizer: its state.
        peak: most of all tensors at a time, these included, in one step after the first.
        besides: of ``peak``, what lies beside the step all the time: the average of the weights,
            and the copy of the gradients that processes exchange.
    """

    weights: int
    optimizer: int
    peak: int
    besides: int = 0

    @property
    def activations(self) -> int:
        """What the step adds: activations, gradients and what is computed with."""
        return self.peak - self.weights - self.optimizer - self.besides


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operators read or make, until they are released.

    Attributes:
        held: bytes now.
        highest: most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.highest = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator; count what it takes and what it returns."""
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, output)):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return output

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()

        def release(_: weakref.ref) -> None:
            del self._known[key]
            self.held -= size

        self._known[key] = weakref.ref(storage, release)
        self.held += size
        self.highest = max(self.highest, self.held)


def predict_peak(
    cfg: DictConfig, size: tuple[int, int], batch: int, num_processes: int = 1
) -> PredictedPeak:
    """Predict the peak of one training step of a run, in each of its processes.

    Args:
        cfg: of the run: its ``model``, ``optimizer``, ``train.freeze``, ``train.amp``,
            ``train.accumulate`` and ``train.ema`` are used.
        size: (height, width) of every image.
        batch: images at a time in one process.
        num_processes: of the run; each holds everything, but for a share of the images.

    Raises:
        UserError: the model cannot be run without numbers.
    """
    dtype = amp_dtype(cfg.train.amp)
    with torch.device("meta"):  # a model may copy parts of itself, which fake tensors cannot
        model = instantiate(without_pretrained(cfg.model)).train()
    freeze(model, cfg.train.freeze)
    _make_room(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        optimizer = build_optimizer(cfg.optimizer, model)
        images = [blank_image(size) for _ in range(batch)]
        # The gradients of the first batch wait for all others.
        rounds = min(positive(cfg.train, "accumulate"), 2)
        weights = sum(_bytes(t) for t in (*model.parameters(), *model.buffers()))
        try:
            with _nothing_matched(model), summed_losses(model), StorageCounter() as counter:
                for tensor in (*model.parameters(), *model.buffers()):
                    counter.count(tensor)
                step(model, optimizer, images, dtype)  # makes the optimizer's state
                counter.highest = counter.held
                step(model, optimizer, images, dtype, rounds)
        except UserError:
            raise
        except Exception as error:  # whatever a model makes of images of that size without numbers
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"memory of this model cannot be predicted, because a step of {size[0]}x{size[1]} "
                f"without numbers fails ({reason}): measure it with tools/train_net.py --dry-run"
            ) from error
        state = sum(_bytes(value) for value in _tensors_of(optimizer))
    besides = bytes_besides(cfg, model, num_processes)
    return PredictedPeak(weights, state, counter.highest + besides, besides)


def bytes_besides(cfg: DictConfig, model: nn.Module, num_processes: int) -> int:
    """Bytes that lie beside the training step: see :class:`PredictedPeak`."""
    total = 0
    if cfg.train.ema.enabled:
        total += sum(_bytes(value) for value in model.state_dict().values())
    if num_processes > 1:
        total += sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    return total


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Sequence[dict[str, Any]],
    dtype: torch.dtype | None,
    accumulate: int = 1,
    device: str = "cpu",
) -> None:
    """As in the trainer, without what needs no memory.

    Args:
        model: bare.
        optimizer: over its parameters.
        images: as the model takes them.
        dtype: of autocast; None for none.
        accumulate: how often the images are gone through.
        device: "cuda" or "cpu".
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number in range(accumulate):
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            total = sum(model(images).values())
        if number == 0:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        del total
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def blank_image(size: tuple[int, int]) -> dict[str, Any]:
    """An image without boxes: their share of the memory is that of a few rows of numbers."""
    truth = Instances(size)
    truth.gt_boxes, truth.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    return {"image": torch.zeros(3, *size), "instances": truth, "height": size[0], "width": size[1]}


@contextmanager
def _nothing_matched(model: nn.Module) -> Iterator[None]:
    """The matcher reads numbers, of which there are none."""
    none = np.zeros(0, dtype=np.int64)

    def match(outputs: Sequence[Any], targets: Sequence[Sequence[Any]]) -> list[Any]:
        return [[(none, none) for _ in images] for images in targets]

    matchers = [m for m in model.modules() if isinstance(m, HungarianMatcher)]
    for matcher in matchers:
        matcher.forward = match
    try:
        yield
    finally:
        for matcher in matchers:
            del matcher.forward


def _make_room(model: nn.Module) -> None:
    """As many denoising queries as there can be, for images without boxes too."""
    for module in model.modules():
        if isinstance(module, Denoising):
            module.room = module.boxes_per_group


def _tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()
