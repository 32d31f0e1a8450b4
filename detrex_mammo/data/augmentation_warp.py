# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Augmentations that bend the image: elastic deformation and perspective.

Boxes are (N, 4) xyxy in continuous pixels: pixel i covers [i, i + 1). A box becomes the box of the
ellipse that fills it, moved with the tissue: masses are round, and bent corners would grow a box.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

from detrex_mammo.data.augmentation_checks import check_probability, check_range

# Points of an ellipse: its extent is found to a part in ten thousand.
NUM_POINTS = 256
# Largest change of the displacement from pixel to pixel; at 1 tissue would fold onto itself.
MAX_STRAIN = 0.8
# Each step leaves MAX_STRAIN of the error of the last.
NUM_STEPS = 40


class EllipseTransform(Transform):
    """A transform whose ``apply_coords`` moves points, and boxes by the ellipses in them."""

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        box = np.asarray(box, dtype=np.float64).reshape(-1, 4)
        angles = np.linspace(0, 2 * np.pi, NUM_POINTS, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        centres, halves = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) / 2
        points = centres[:, None] + halves[:, None] * circle
        moved = self.apply_coords(points.reshape(-1, 2)).reshape(points.shape)
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


class ElasticTransform(EllipseTransform):
    """Show at each pixel what lies ``field`` away from it.

    Args:
        field: (H, W, 2) float32 (x, y) in pixels, changing by less than 1 from pixel to pixel.
    """

    def __init__(self, field: np.ndarray):
        super().__init__()
        self.field = field

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        height, width = self.field.shape[:2]
        xs = self.field[..., 0] + np.arange(width, dtype=np.float32)
        ys = self.field[..., 1] + np.arange(height, dtype=np.float32)[:, None]
        return cv2.remap(img, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Where tissue at ``coords`` is shown: p with p + field(p) = coords, by fixed point."""
        coords = np.asarray(coords, dtype=np.float64).reshape(-1, 2)
        moved = coords
        for _ in range(NUM_STEPS if len(coords) else 0):
            moved = coords - self._field_at(moved)
        return moved

    def _field_at(self, points: np.ndarray) -> np.ndarray:
        """The field (N, 2) between pixels, whose centres lie at i + 1/2."""
        height, width = self.field.shape[:2]
        places = np.clip(points - 0.5, 0, (width - 1, height - 1))
        corner = np.minimum(places.astype(np.int64), (max(width - 2, 0), max(height - 2, 0)))
        (x, y), (right, down) = corner.T, (places - corner).T[..., None]
        x1, y1 = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
        upper = self.field[y, x] * (1 - right) + self.field[y, x1] * right
        lower = self.field[y1, x] * (1 - right) + self.field[y1, x1] * right
        return upper * (1 - down) + lower * down


class RandomElastic(Augmentation):
    """Press the breast a little otherwise: a smooth random displacement.

    Simard et al., ICDAR 2003: Gaussian noise, smoothed. Differs in two points: its strength is
    given as the displacement that comes out (unit noise, smoothed and multiplied by their alpha,
    has the root mean square ``alpha / (3.54 * sigma)``), and a field that would fold tissue is
    weakened to one that does not.

    Args:
        displacement: range of the root mean square displacement along an axis, in pixels.
        sigma: of the smoothing, in pixels: the distance over which the tissue moves together.
        prob: probability of doing anything.

    Raises:
        UserError: a range or ``prob`` is not possible.
    """

    def __init__(
        self,
        displacement: Sequence[float] = (1.0, 5.0),
        sigma: float = 40.0,
        prob: float = 0.5,
    ):
        super().__init__()
        self.displacement = check_range("RandomElastic", "displacement", displacement, 0)
        (self.sigma, _) = check_range("RandomElastic", "sigma", (sigma, sigma), 1, 10_000)
        self.prob = check_probability("RandomElastic", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        strength = np.random.uniform(*self.displacement)
        return ElasticTransform(smooth_field(image.shape[:2], strength, self.sigma))


def smooth_field(size: tuple[int, int], displacement: float, sigma: float) -> np.ndarray:
    """A random field (H, W, 2) float32 that folds nothing; see :class:`RandomElastic`."""
    height, width = size
    # Drawn on a coarse grid: finer than this, smoothed noise has no detail.
    pitch = max(1.0, sigma / 4)
    coarse = (int(height / pitch) + 2, int(width / pitch) + 2)
    noise = np.random.standard_normal((*coarse, 2)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma / pitch, borderType=cv2.BORDER_REFLECT)
    field = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC)
    rms = float(np.sqrt(np.mean(np.square(field, dtype=np.float64))))
    field *= np.float32(displacement / rms if rms else 0)
    steps = [np.square(np.diff(field, axis=axis)).sum(axis=-1).max(initial=0) for axis in (0, 1)]
    return field * np.float32(min(1.0, MAX_STRAIN / max(np.sqrt(sum(steps)), 1e-9)))


class PerspectiveTransform(EllipseTransform):
    """Stretch a quadrilateral of the image to the whole of it; the size stays.

    Args:
        height: of the image.
        width: of the image.
        corners: (4, 2) (x, y): what becomes the upper left, upper right, lower right and lower
            left corner.
    """

    def __init__(self, height: int, width: int, corners: np.ndarray):
        super().__init__()
        ends = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        self.matrix = cv2.getPerspectiveTransform(np.asarray(corners, np.float32), ends)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        # cv2 puts the centre of pixel i at i, we at i + 1/2.
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        matrix = np.linalg.inv(half) @ self.matrix @ half
        return cv2.warpPerspective(img, matrix, (img.shape[1], img.shape[0]))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=np.float64).reshape(-1, 2)
        moved = np.column_stack([coords, np.ones(len(coords))]) @ self.matrix.T
        return moved[:, :2] / moved[:, 2:]


class RandomPerspective(Augmentation):
    """Move each corner of the image inwards by a random share and stretch the rest to the size.

    What lies outside is cut off, lesions too.

    Args:
        scale: range of the share of height and of width, drawn for each corner and axis.
        prob: probability of doing anything.

    Raises:
        UserError: ``scale`` or ``prob`` is not in its range.
    """

    def __init__(self, scale: Sequence[float] = (0.05, 0.1), prob: float = 0.5):
        super().__init__()
        self.scale = check_range("RandomPerspective", "scale", scale, 0, 0.4)
        self.prob = check_probability("RandomPerspective", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        shares = np.random.uniform(*self.scale, size=(4, 2))
        ends = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        corners = np.where(ends == 0, shares, 1 - shares) * (width, height)
        return PerspectiveTransform(height, width, corners)
