# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Read weights from a file, a folder or a URL without running anything that is in them."""

import argparse
import difflib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrex_mammo.config import shipped_root
from detrex_mammo.errors import UserError

_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".safetensors")
# Where checkpoints keep their weights, and what else is large in them.
WEIGHTS_KEYS = ("model", "state_dict", "model_state", "blobs")
_TRAINER_KEYS = ("trainer", "optimizer", "lr_scheduler", "optimizer_states", "scheduler")
# Names of weights inside a Hugging Face folder, in the order of preference.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_NO_ARRAY = "which is not a numpy array"


@dataclass
class Source:
    """Weights as they are stored, and all that lies beside them.

    Attributes:
        path: as given: a file, a folder or a URL.
        state: name on disk -> tensor.
        content: the rest: what a file holds beside its weights, ``config_json`` and
            ``processor_json`` of a Hugging Face folder.
        folder: the Hugging Face folder they are in, if it has a ``config.json``.
    """

    path: str
    state: dict[str, torch.Tensor]
    content: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def read_source(path: str | Path) -> Source:
    """Read weights.

    Args:
        path: a file (.pth, .pt, .bin, .pkl, .safetensors), a Hugging Face folder, or a URL of a
            file.

    Raises:
        UserError: nothing there, nothing that holds weights, cut short, or it holds objects.
    """
    local = Path(local_path(str(path)))
    if local.is_dir():
        files, folder = _files_of(local), local
    else:
        files = [require_file(local)]
        folder = local.parent
    is_named = local.is_dir() or files[0].name in _FOLDER_FILES
    folder = folder if is_named and (folder / "config.json").is_file() else None
    state: dict[str, torch.Tensor] = {}
    content: dict[str, Any] = {}
    for file in files:
        found = read_checkpoint(file)
        state.update(weights_of(found, file))
        content.update({k: v for k, v in found.items() if not isinstance(v, torch.Tensor)})
    for key in (*WEIGHTS_KEYS, *_TRAINER_KEYS):
        content.pop(key, None)
    if folder is not None:
        content["config_json"] = _read_json(folder / "config.json")
        if (folder / "provenance.json").is_file():  # our own writer's
            content["provenance"] = _read_json(folder / "provenance.json")
        if (folder / "preprocessor_config.json").is_file():
            content["processor_json"] = _read_json(folder / "preprocessor_config.json")
    return Source(str(path), state, content, folder)


def local_path(path: str) -> str:
    """A file for a path or URL (https://, detectron2://), downloaded once if need be.

    A path that does not exist here is looked for among the files that travel with the package.
    """
    if "://" not in path:
        given = os.path.expanduser(path)
        shipped = shipped_root() / path
        return str(shipped) if shipped.is_file() and not os.path.exists(given) else given
    from detectron2.utils.file_io import PathManager

    try:
        return PathManager.get_local_path(path)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"checkpoint {path!r} cannot be fetched ({reason}): download it elsewhere and give "
            "the file"
        ) from error


def source_sha256(path: str | Path) -> str | dict[str, str] | None:
    """SHA-256 of a file, or of each file of weights in a folder; None if there is none."""
    local = Path(local_path(str(path)))
    if local.is_dir():
        return {file.name: file_sha256(file) for file in _files_of(local)}
    return file_sha256(local) if local.is_file() else None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file into plain data; nothing in it is executed.

    Args:
        path: a ``.pth`` of torch, a ``.safetensors``, or a detectron2 ``.pkl`` of numpy arrays.

    Returns:
        dict: as stored; arrays of a ``.pkl`` become tensors.

    Raises:
        UserError: no such file, not a checkpoint, cut short, or it holds Python objects.
    """
    path = require_file(path)
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    content = _read_safely(readers.get(path.suffix, _read_torch), path)
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


def require_source(path: str | Path) -> None:
    """Check early that there is a file, or a folder with weights, to read.

    Raises:
        UserError: as :func:`read_source`.
    """
    if Path(path).is_dir():
        _files_of(Path(path))
    else:
        require_file(path)


def weights_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint: under one of ``WEIGHTS_KEYS``, or the file itself.

    A ``module.`` in front of every name (DistributedDataParallel) is removed.
    """
    candidates = [checkpoint.get(key) for key in WEIGHTS_KEYS] + [checkpoint]
    state = next((found for found in candidates if _is_state(found)), None)
    if state is None:
        keys = ", ".join(map(str, list(checkpoint)[:8])) or "none"
        raise UserError(f"checkpoint {str(path)!r} holds no weights; its keys are: {keys}")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value.detach() for name, value in state.items()}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _files_of(folder: Path) -> list[Path]:
    """The files with the weights of a Hugging Face folder: one, or the pieces of an index."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return [require_file(folder / name)]
        index = folder / f"{name}.index.json"
        if index.is_file():
            pieces = _read_json(index).get("weight_map")
            if not isinstance(pieces, Mapping) or not pieces:
                raise UserError(f"{str(index)!r} has no weight_map: copy or download it again")
            names = sorted({str(piece) for piece in pieces.values()})
            outside = [n for n in names if Path(n).name != n or n in ("", "..")]
            if outside:
                raise UserError(
                    f"{str(index)!r} names {outside[0]!r}, which is not a file of its folder"
                )
            return [require_file(folder / piece) for piece in names]
    held = ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"
    raise UserError(
        f"checkpoint folder {str(folder)!r} has neither {' nor '.join(_FOLDER_FILES)}; it holds "
        f"{held}: give a file, or a folder that save_pretrained wrote"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds a {type(content).__name__}, not settings")
    return content


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return _tensors(_ArraysOnly(file, encoding="latin1").load())


def _read_safely(read: Callable[[Path], Any], path: Path) -> Any:
    """What a reader gives; an object that it refused, or damage, is one sentence."""
    try:
        return read(path)
    except pickle.UnpicklingError as error:
        held = _object_in(str(error))
        if held:
            raise UserError(
                f"checkpoint {str(path)!r} is not opened, because that could run code: it holds "
                f"{held}"
            ) from error
        raise _broken(path) from error
    except Exception as error:  # whatever a reader raises, it is the file that cannot be read
        raise _broken(path) from error


def _object_in(message: str) -> str:
    """What an unpickler refused, and what to do about it; "" if the file is just damaged."""
    if _NO_ARRAY in message:
        return message
    found = re.search(r"GLOBAL ([\w.]+)", message)  # torch's words
    if found is None:
        return ""
    is_mmengine = found.group(1).startswith("mmengine.")
    advice = "keep its weights by mmdetection's tools/model_converters/publish_model.py"
    advice = advice if is_mmengine else "save its weights alone"
    return f"a Python object ({found.group(1)}) beside its weights: {advice}"


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
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, {_NO_ARRAY}")
        return super().find_class(module, name)


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    return value


def _near_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    names = [
        item.name
        for item in folder.iterdir()
        if item.suffix in _SUFFIXES or (item / "config.json").is_file()
    ]
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"; the nearest there is {near[0]!r}"
    return f"; {str(folder)!r} holds " + (", ".join(sorted(names)[:5]) or "no checkpoint")
