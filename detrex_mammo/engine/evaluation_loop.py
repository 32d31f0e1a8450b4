# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One pass over a test set: with progress, and left within seconds when a signal comes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from detrex_mammo.engine import interruption
from detrex_mammo.errors import UserError
from detrex_mammo.progress import Progress

logger = logging.getLogger(__name__)
# Written by detectron2 where a kill finds it half done; our own evaluators' files are whole.
DETECTRON2_FILE = "instances_predictions.pth"


class WatchedLoader:
    """A test loader that shows how far it is, and ends early once the run is asked to leave.

    Args:
        loader: of this process's share; yields lists of images.
        title: of the progress.
    """

    def __init__(self, loader: Any, title: str):
        self.loader, self.title = loader, title

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        signals, world = interruption.current(), comm.get_world_size()
        sampler = getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)
        total = len(sampler) if hasattr(sampler, "__len__") else None
        title = self.title if world == 1 else f"{self.title} (one of {world} processes)"
        with Progress(title, total, tell=logger.info) as loop:
            batches = iter(self.loader)
            while not signals.is_asked():
                try:
                    batch = next(batches, None)
                except RuntimeError:
                    if signals.received:  # it went to the processes that load, too
                        return
                    raise
                if batch is None:
                    return
                yield batch
                loop.update(len(batch))


class LeavingEvaluator(DatasetEvaluator):
    """An evaluator that a signal ends, and that scores no predictions of NaN.

    pycocotools would take a box of NaN for a hit.

    Args:
        evaluator: does the work.
        folders: that it writes to.
    """

    def __init__(self, evaluator: DatasetEvaluator, folders: Sequence[Path] = ()):
        self.evaluator, self.folders = evaluator, folders
        self.problem = ""

    def reset(self) -> None:
        """Forget all predictions."""
        self.problem = ""
        self.evaluator.reset()

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take what the model says of some images."""
        for item, output in zip(inputs, outputs):
            if not self.problem and not _is_finite(output):
                self.problem = str(item.get("file_name") or item.get("image_id"))
        if not self.problem:
            self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        """The evaluator's numbers.

        Raises:
            Interrupted: in every process, if any was asked to leave.
            UserError: in every process, if there are predictions of NaN.
        """
        interruption.leave_if_asked()  # an early end of the loop is not scored
        problem = next(filter(None, comm.all_gather(self.problem)), None)
        if problem is not None:
            raise UserError(
                f"what the model says of the image {problem!r} is not finite and cannot be scored: "
                "look for NaN in that image and in the weights (they may have diverged)"
            )
        try:
            with interruption.main_process_works():
                return self.evaluator.evaluate()
        except interruption.Interrupted:
            for folder in self.folders if comm.is_main_process() else ():
                (folder / DETECTRON2_FILE).unlink(missing_ok=True)
            raise


def _is_finite(output: Any) -> bool:
    """Whether scores and boxes are, of a prediction in detectron2's form."""
    found = output.get("instances") if isinstance(output, Mapping) else None
    if not isinstance(found, Instances):
        return True
    fields = found.get_fields()
    boxes = fields.get("pred_boxes")
    values = [fields.get("scores"), getattr(boxes, "tensor", boxes)]
    return all(bool(value.isfinite().all()) for value in values if isinstance(value, Tensor))


def run_evaluator(
    model: nn.Module,
    loader: Any,
    evaluator: DatasetEvaluator,
    title: str = "evaluation",
    folders: Sequence[Path] = (),
) -> dict[str, Any]:
    """detectron2's loop over a test loader, with our progress in the place of its own.

    Args:
        model: put into evaluation mode meanwhile.
        loader: of this process's share.
        evaluator: gets what the model says.
        title: of the progress.
        folders: that the evaluator writes to.

    Raises:
        Interrupted: in every process, if any was asked to leave.
        UserError: in every process, if the model says NaN.
    """
    talk = logging.getLogger(inference_on_dataset.__module__)
    talk.addFilter(_is_no_progress)
    try:
        watched = WatchedLoader(loader, title)
        return inference_on_dataset(model, watched, LeavingEvaluator(evaluator, folders)) or {}
    finally:
        talk.removeFilter(_is_no_progress)


def _is_no_progress(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Inference done ")
