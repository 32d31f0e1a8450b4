# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Lesions of other training images, added to a mammogram with their boxes.

After Simple Copy-Paste, Ghiasi et al., https://arxiv.org/abs/2012.07177. Differs from it, because
a mammogram is a projection with a scale and its lesions have no masks:

- theirs puts an object's pixels over the image; ours adds the lesion's contrast over its local
  background to what lies there, as X-ray attenuation adds up, inside a feathered ellipse;
- theirs pastes anywhere, at any scale, a random subset of objects, and cuts the boxes that become
  hidden; ours pastes a few lesions, each at its physical size, inside breast tissue, on no other
  lesion.

Boxes are (N, 4) xyxy in continuous pixels of the crop: pixel i covers [i, i + 1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrex_mammo.data.augmentation import AreaResizeTransform, scaled_size
from detrex_mammo.data.augmentation_checks import check_probability
from detrex_mammo.data.augmentation_input import spacing_of
from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.cache import key_of
from detrex_mammo.data.columns import Columns, columns_of
from detrex_mammo.errors import UserError

# Radii in units of the box's ellipse: a lesion counts in full up to FULL, and not beyond END; its
# background is the ring from FULL to RING. A box's corners lie at 1.41.
FULL, END, RING = 1.15, 1.5, 1.9
# A lesion smaller than this, in pixels, is cut out as if it were this large.
MIN_HALF = 4.0
# A lesion keeps at least this share of its contrast, or the place is too bright for it.
MIN_CONTRAST_LEFT = 0.8
# Grey values by which a place may differ from where the lesion was: a muscle is no breast tissue.
MAX_STEP = 40.0
# A lesion is scaled by less than this factor, either way.
MAX_SCALE = 5.0
NUM_DONORS, NUM_PLACES = 10, 40
Reader = Callable[[Mapping[str, Any]], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Lesion:
    """A lesion without its background.

    Attributes:
        contrast: (h, w) float32 grey values above the local background, feathered to 0.
        weight: (h, w) float32 in [0, 1], 0 where nothing is pasted.
        box: (4,) xyxy in this patch.
        background: mean grey value of what surrounded it.
        category: class of the lesion.
    """

    contrast: np.ndarray
    weight: np.ndarray
    box: np.ndarray
    background: float
    category: int

    def scaled(self, down: float, across: float) -> "Lesion":
        """The lesion at another pixel size."""
        height, width = self.weight.shape
        resize = AreaResizeTransform(height, width, *scaled_size(height, width, down, across))
        return Lesion(
            resize.apply_image(self.contrast),
            resize.apply_image(self.weight),
            resize.apply_box(self.box[None])[0],
            self.background,
            self.category,
        )


class LesionCopyPaste:
    """Pastes lesions of other images of the training set; :meth:`attach` says of which.

    A lesion is taken from an image of the same view and dataset, if its surroundings lie in the
    breast and hold no other lesion. It keeps its size in mm where both images have a pixel
    spacing; otherwise its size relative to the crops, which are the breasts. It comes to a place
    about as bright as its own was. Nothing is pasted where no fitting lesion or place is found in
    a few tries. A lesion whose contrast is no more
    than texture's (a distortion, an asymmetry) is hardly seen where it was pasted: leave its class
    out by ``classes``.

    Random numbers are ``np.random``'s.

    Args:
        prob: probability that an image gets any; 0 turns it off.
        max_lesions: an image gets 1 to as many.
        same_dataset: only lesions of the image's own ``dataset``.
        same_view: only lesions of the image's own ``view``.
        classes: only lesions of these classes, from 0; of all if None.
        balance_classes: draw the class first, evenly: rare classes become frequent.

    Raises:
        UserError: a setting is not possible.
    """

    def __init__(
        self,
        prob: float = 0.5,
        max_lesions: int = 2,
        same_dataset: bool = True,
        same_view: bool = True,
        classes: Sequence[int] | None = None,
        balance_classes: bool = False,
    ):
        self.prob = check_probability("LesionCopyPaste", prob)
        if not isinstance(max_lesions, int) or max_lesions < 1:
            raise UserError(f"LesionCopyPaste got max_lesions={max_lesions!r}; use 1 or more")
        self.max_lesions = max_lesions
        self.same_dataset, self.same_view = same_dataset, same_view
        if classes is not None and not all(type(number) is int for number in classes):
            raise UserError(
                f"LesionCopyPaste got classes={classes!r}; give a list of their numbers, from 0"
            )
        self.classes = None if classes is None else sorted(classes)
        self.balance_classes = balance_classes
        self._dataset: Sequence[Mapping[str, Any]] | None = None

    def attach(self, dataset: Sequence[Mapping[str, Any]]) -> None:
        """Take lesions from this dataset: its records are read when one is pasted.

        Raises:
            UserError: it has no lesion of ``classes``.
        """
        if not self.prob:
            return
        columns = columns_of(dataset)
        self._dataset, self._columns = dataset, columns
        self._rows = self._group(columns)
        if not self._rows:
            raise UserError(
                f"LesionCopyPaste got classes={self.classes}, but the training set has no box of "
                "them: correct the classes, or leave copy_paste out"
            )

    def _group(self, columns: Columns) -> dict[tuple[int, int], np.ndarray]:
        """Rows of boxes by the number of their dataset and by class, as far as these matter."""
        images = np.repeat(np.arange(len(columns.num_boxes)), columns.num_boxes)
        datasets = columns.datasets[images] if self.same_dataset else np.zeros_like(images)
        categories = columns.box_classes
        wanted = np.ones(len(images), bool)
        if self.classes is not None:
            wanted = np.isin(categories, self.classes)
        keys = np.stack([datasets, categories if self.balance_classes else 0 * categories], 1)
        return {
            tuple(int(part) for part in key): np.flatnonzero(wanted & (keys == key).all(axis=1))
            for key in np.unique(keys[wanted], axis=0)
        }

    def __call__(
        self,
        record: Mapping[str, Any],
        pixels: np.ndarray,
        boxes: np.ndarray,
        classes: np.ndarray,
        read: Reader,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add lesions to one image.

        Args:
            record: of the image.
            pixels: (H, W) float32 in [0, 255], its crop; changed in place.
            boxes: (N, 4) xyxy in the crop.
            classes: (N,) int64.
            read: gives another record's pixels, boxes and classes in the same frame.

        Returns:
            tuple: pixels, and the boxes and classes with those of the pasted lesions behind.

        Raises:
            UserError: no dataset was attached, or an image cannot be read.
        """
        if not self.prob:
            return pixels, boxes, classes
        if self._dataset is None:
            raise UserError(
                "copy_paste has no dataset to take lesions from: call mapper.attach(dataset) first"
            )
        if np.random.uniform() >= self.prob:
            return pixels, boxes, classes
        breast = find_breast(pixels)
        for _ in range(np.random.randint(self.max_lesions) + 1 if breast.found else 0):
            found = self._lesion(record, pixels.shape, read)
            box = found and paste(pixels, boxes, breast.mask, found)
            if box is not None:
                boxes = np.concatenate([boxes, box[None]])
                classes = np.append(classes, found.category)
        return pixels, boxes, classes

    def _lesion(
        self, record: Mapping[str, Any], size: tuple[int, int], read: Reader
    ) -> Lesion | None:
        """A lesion of another image, at this one's scale."""
        drawn = self._draw(record)
        if drawn is None:
            return None
        donor, number = drawn
        pixels, boxes, classes = read(donor)
        lesion = cut_out(pixels, boxes, classes, number)
        here, there = spacing_of(record), spacing_of(donor)
        if here and there:
            scale = (there[0] / here[0], there[1] / here[1])
        else:
            scale = (math.sqrt(math.prod(size) / math.prod(pixels.shape)),) * 2
        if lesion is None or not all(1 / MAX_SCALE < factor < MAX_SCALE for factor in scale):
            return None
        return lesion.scaled(*scale)

    def _draw(self, record: Mapping[str, Any]) -> tuple[Mapping[str, Any], int] | None:
        """Another record, and the number of a box of it."""
        names = list(self._columns.dataset_names)
        name = record.get("dataset") or ""
        own = names.index(name) if self.same_dataset and name in names else 0
        groups = [rows for key, rows in self._rows.items() if key[0] == own]
        if not groups or (self.same_dataset and name not in names):
            return None
        for _ in range(NUM_DONORS):
            row = int(np.random.choice(groups[np.random.randint(len(groups))]))
            starts = self._columns.box_starts
            index = int(np.searchsorted(starts, row, side="right")) - 1
            donor = self._dataset[index]
            has_view = not self.same_view or donor.get("view") == record.get("view")
            if has_view and key_of(donor) != key_of(record):
                return donor, row - int(starts[index])
        return None


def cut_out(
    pixels: np.ndarray, boxes: np.ndarray, classes: np.ndarray, number: int
) -> Lesion | None:
    """One lesion of an image; None if it cannot be told from what surrounds it.

    Args:
        pixels: (H, W) float32.
        boxes: (N, 4) xyxy.
        classes: (N,).
        number: of the box.
    """
    box = boxes[number]
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, MIN_HALF)
    low = np.maximum(np.floor(centre - RING * half).astype(int), 0)
    high = np.minimum(np.ceil(centre + RING * half).astype(int), pixels.shape[::-1])
    xs, ys = (np.arange(low[axis], high[axis]) + 0.5 - centre[axis] for axis in (0, 1))
    radius = np.hypot(xs / half[0], ys[:, None] / half[1])
    patch = pixels[low[1] : high[1], low[0] : high[0]]
    breast = find_breast(pixels)
    tissue = breast.mask[low[1] : high[1], low[0] : high[0]]
    ring = (radius > FULL) & (radius < RING) & tissue
    others = np.delete(boxes, number, axis=0)
    reach = np.concatenate([centre - END * half, centre + END * half])
    is_whole = (reach[:2] >= 0).all() and (reach[2:] <= pixels.shape[::-1]).all()
    if not is_whole or not tissue[radius < END].all() or _overlaps(others, reach):
        return None
    # A plane through the ring: tissue gets thinner towards the skin.
    terms = np.stack(np.broadcast_arrays(1.0, xs / half[0], ys[:, None] / half[1]), axis=-1)
    plane, *_ = np.linalg.lstsq(terms[ring], patch[ring].astype(np.float64), rcond=None)
    fade = np.clip((END - radius) / (END - FULL), 0, 1)
    weight = (fade * fade * (3 - 2 * fade)).astype(np.float32)
    contrast = ((patch - terms @ plane) * weight).astype(np.float32)
    background = float(patch[ring].mean())
    return Lesion(contrast, weight, box - np.tile(low, 2), background, int(classes[number]))


def paste(
    pixels: np.ndarray, boxes: np.ndarray, tissue: np.ndarray, lesion: Lesion
) -> np.ndarray | None:
    """Add a lesion at a random place: inside the tissue, on no box, about as bright as its own.

    Args:
        pixels: (H, W) float32 in [0, 255]; changed in place.
        boxes: (N, 4) xyxy.
        tissue: (H, W) bool.
        lesion: at the scale of this image.

    Returns:
        np.ndarray: (4,) xyxy of the pasted lesion; None if no place was found.
    """
    height, width = lesion.weight.shape
    used = lesion.weight > 0
    if height > pixels.shape[0] or width > pixels.shape[1] or not used.any():
        return None
    rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    reach = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    for _ in range(NUM_PLACES):
        y = int(np.random.randint(pixels.shape[0] - height + 1))
        x = int(np.random.randint(pixels.shape[1] - width + 1))
        place = np.s_[y : y + height, x : x + width]
        if not tissue[place][used].all() or _overlaps(boxes, reach + (x, y, x, y)):
            continue
        if abs(pixels[place][used].mean() - lesion.background) > MAX_STEP:
            continue
        after = np.clip(pixels[place] + lesion.contrast, 0, 255)
        changed = np.abs(after - pixels[place]).sum()
        if changed >= MIN_CONTRAST_LEFT * np.abs(lesion.contrast).sum():
            pixels[place] = after
            return lesion.box + (x, y, x, y)
    return None


def _overlaps(boxes: np.ndarray, region: np.ndarray) -> bool:
    touches = (boxes[:, :2] < region[2:]).all(axis=1) & (boxes[:, 2:] > region[:2]).all(axis=1)
    return bool(touches.any())
