# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checkpoints of a run: everything needed to go on, evaluate or predict, in one file."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from detrex_mammo.checkpoint.loading import (
    backbone_weights,
    load_weights,
    read_checkpoint,
    weights_of,
)
from detrex_mammo.config import shipped_root
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


class RunCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with our contents, whole files only, and strict loading.

    Args:
        model (nn.Module): wrapped in DistributedDataParallel or not.
        save_dir (str): the run's output folder.
        describe: returns what else goes into the file: ``config``, ``classes``,
            ``preprocessing``, ``provenance``; called at each save.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, such as ``trainer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str,
        describe: Callable[[], dict[str, Any]] = dict,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.describe = describe

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name.pth`` so that a kill at any point leaves a whole file behind."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), **self.describe()}
        content.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        content.update(extra)
        target = Path(self.save_dir) / f"{name}.pth"
        partial = target.with_suffix(".pth.partial")
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        self.tag_last_checkpoint(target.name)
        logger.info("saved %s", target)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` at a file, in one step."""
        tag = Path(self.save_dir) / "last_checkpoint"
        partial = tag.with_suffix(".partial")
        partial.write_text(last_filename_basename)
        os.replace(partial, tag)

    def keep_newest(self, count: int) -> None:
        """Delete all but the newest ``count`` periodic checkpoints, earlier starts included."""
        if not self.save_to_disk or count <= 0:
            return
        for old in sorted(Path(self.save_dir).glob("model_" + "[0-9]" * 7 + ".pth"))[:-count]:
            old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The content of the folder's newest checkpoint; None if there is none."""
        return read_checkpoint(self.get_checkpoint_file()) if self.has_checkpoint() else None

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Load all that :meth:`newest` read: weights and the state of every checkpointable."""
        path = self.get_checkpoint_file()
        load_weights(self.model, weights_of(checkpoint, path), path)
        for key, item in self.checkpointables.items():
            try:
                item.load_state_dict(checkpoint[key])
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{key} state of checkpoint {path!r} does not fit this config ({error}): "
                    "resume with the config it was written by"
                ) from error
        logger.info("resumed from %s", path)

    def load(self, path: str, checkpointables: Any = None, **unused: Any) -> dict[str, Any]:
        """Load weights to start from; see :func:`load_initial`. Trainer state is left alone."""
        return load_initial(self.model, path)


def load_initial(model: nn.Module, path: str, allow_backbone: bool = True) -> dict[str, Any]:
    """Load ``train.init_checkpoint`` into a model.

    Args:
        model: the bare model.
        path: file or URL; a file of a backbone alone fills only ``backbone.``.
        allow_backbone: False refuses such a file, as evaluation needs every weight.

    Returns:
        dict: the file's content.
    """
    local = local_path(path)
    checkpoint = read_checkpoint(local)
    state = weights_of(checkpoint, path)
    backbone = backbone_weights(state)
    if backbone is None:
        load_weights(model, state, path)
        logger.info("loaded all %d tensors from %s", len(state), path)
        return checkpoint
    if not allow_backbone:
        raise UserError(
            f"checkpoint {path!r} holds a backbone only, nothing to evaluate: "
            "set train.init_checkpoint to the weights of a whole model"
        )
    kept = load_weights(model, backbone, path, lambda name: not name.startswith("backbone."))
    logger.info(
        "loaded %d backbone tensors from %s; %d tensors outside the backbone start at random",
        len(backbone),
        path,
        len(kept),
    )
    return checkpoint


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
            f"train.init_checkpoint {path!r} cannot be fetched ({reason}): "
            "download it elsewhere and give the file"
        ) from error
