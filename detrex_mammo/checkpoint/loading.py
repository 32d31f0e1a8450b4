# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Read a checkpoint without running anything in it, and load it only if it fits."""

import difflib
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# torchvision's classifier and batch counters, which a detection backbone does not have.
_IMAGENET_EXTRA = re.compile(r"(stem\.)?fc\.(weight|bias)|.*\.num_batches_tracked")


@dataclass
class Mismatch:
    """Difference between a model's state dict and a file's.

    Attributes:
        missing: names only the model has.
        unexpected: names only the file has.
        mis_shaped: name -> (shape in the file, shape in the model).
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mis_shaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mis_shaped)

    def describe(self) -> str:
        """Counts and the first few names of each kind."""
        shapes = [f"{k} {list(a)} instead of {list(b)}" for k, (a, b) in self.mis_shaped.items()]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", shapes))
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in kinds
            if names
        )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file into plain data; nothing in it is executed.

    Args:
        path: a ``.pth`` of torch, or a detectron2 ``.pkl`` that holds numpy arrays only.

    Returns:
        dict: as stored; arrays of a ``.pkl`` become tensors.

    Raises:
        UserError: no such file, not a checkpoint, cut short, or it holds Python objects.
    """
    path = require_file(path)
    content = _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {str(path)!r} holds a {type(content).__name__}, not weights")
    return content


def require_file(path: str | Path) -> Path:
    """The path of a file that is there and not empty.

    Raises:
        UserError: with the nearest name in that folder.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist{_near_file(path)}")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {str(path)!r} is empty: copy or download it again")
    return path


def weights_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint: under ``model``, ``state_dict``, or the file itself.

    A ``module.`` in front of every name (DistributedDataParallel) is removed.
    """
    state: Any = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            state = checkpoint[key]
            break
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(map(str, list(checkpoint)[:8]))
        raise UserError(f"checkpoint {str(path)!r} holds no weights; its keys are: {keys}")
    if all(name.startswith("module.") for name in state):
        return {name[len("module.") :]: value for name, value in state.items()}
    return dict(state)


def compare(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mismatch:
    """What keeps a state dict from fitting a model."""
    own = model.state_dict()
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    return Mismatch(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mis_shaped=shapes,
    )


def load_weights(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    may_miss: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Load weights into a model if, and only if, they fit.

    Weights stored in half precision take the model's precision.

    Args:
        model: left untouched if anything does not fit.
        state: the file's state dict.
        path: for the error.
        may_miss: names of the model that the file need not have.

    Returns:
        list[str]: names that kept their values.

    Raises:
        UserError: names what is missing, unexpected and mis-shaped.
    """
    mismatch = compare(model, state)
    kept = [name for name in mismatch.missing if may_miss(name)]
    mismatch.missing = [name for name in mismatch.missing if not may_miss(name)]
    if mismatch:
        total = len(model.state_dict())
        raise UserError(
            f"checkpoint {str(path)!r} does not fit this model of {total} tensors: "
            f"{mismatch.describe()}{_class_hint(mismatch)}; use the config it was trained with"
        )
    model.load_state_dict(state, strict=False)
    return kept


def backbone_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Weights of a backbone-only file under our names, or None if the file holds more.

    A detectron2 ImageNet file names its tensors ``stem.conv1.weight``, ``res2.0.conv1.weight``;
    in the detector they stand under ``backbone.``.
    """
    state = {name: value for name, value in state.items() if not _IMAGENET_EXTRA.fullmatch(name)}
    if state and all(re.match(r"(stem|res\d+)\.", name) for name in state):
        return {f"backbone.{name}": value for name, value in state.items()}
    if state and all(name.startswith("backbone.") for name in state):
        return state
    return None


def _class_hint(mismatch: Mismatch) -> str:
    for name, (stored, own) in mismatch.mis_shaped.items():
        if re.fullmatch(r"class_embed\.\d+\.bias", name):
            return f"; the file has {stored[0]} class(es) and model.num_classes is {own[0]}"
    return ""


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"checkpoint {str(path)!r} holds a Python object ({found.group(1)}) beside its "
                "weights and is not opened, because that could run code: save its weights alone"
            ) from error
        raise _broken(path) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise _broken(path) from error


def _broken(path: Path) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"checkpoint {str(path)!r} ({size} bytes) is cut short or no checkpoint: "
        "copy or download it again"
    )


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of numpy arrays; any other object is refused, so no code can run."""

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a numpy array")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if "is not a numpy array" in str(error):
            raise UserError(f"checkpoint {str(path)!r} is not opened: it holds {error}") from error
        raise _broken(path) from error
    except (EOFError, ValueError, IndexError, KeyError, AttributeError, ImportError) as error:
        raise _broken(path) from error
    return _tensors(content)


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value


def _near_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    names = [file.name for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".pkl")]
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"; the nearest there is {near[0]!r}"
    return f"; {str(folder)!r} holds " + (", ".join(sorted(names)[:5]) or "no checkpoint")
