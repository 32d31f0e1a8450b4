# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dark picture with one image in one or two panels, and boxes with labels over them.

All positions are pixels of the picture, (x, y) from its top left corner.
"""

from collections.abc import Collection, Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

# Okabe and Ito's colours; every kind has its own dashes too, so colour never stands alone.
# kind: colour, dashes, text of the legend
KINDS = {
    "found": ("#56B4E9", "solid", "lesion found, and its prediction"),
    "hit": ("#56B4E9", "solid", "lesion found, and its prediction"),
    "again": ("#56B4E9", (0, (1, 2.5)), "further prediction on it"),
    "missed": ("#F0E442", (0, (1.5, 1.5)), "lesion missed"),
    "false": ("#FF8C42", (0, (5, 2)), "prediction elsewhere"),
    "plain": ("#56B4E9", "solid", "prediction"),
}
BACKGROUND, PANEL, TEXT, DIM_TEXT = "#16181B", "#000000", "#F2F2F2", "#A9AFB6"
DPI = 100
MARGIN, HEADER, FOOTER = 14, 68, 44
MIN_PANEL_WIDTH = 400
LINE_WIDTH = 1.3  # points
BOX_PADDING = 2.5  # pixels between a box and its line, so that the line hides nothing
LABEL_SIZE = 8.5  # points
BACKGROUND_LEVEL = 20.0  # of 255; darker is air
MIDDLE_GREY = 0.42  # of white; what a bright breast's median becomes


class Canvas:
    """The picture while it is drawn.

    Args:
        image: (H, W) or (H, W, 3) in [0, 255].
        num_panels: how often the image stands in it, side by side.
        panel_size: largest (height, width) of a panel.
        like: image whose brightness decides how this one is stretched; this one itself when None.
    """

    def __init__(
        self,
        image: np.ndarray,
        num_panels: int,
        panel_size: tuple[int, int],
        like: np.ndarray | None = None,
    ):
        height, width = image.shape[:2]
        self.num_panels = num_panels
        self.scale = min(panel_size[0] / height, panel_size[1] / width)
        picture = _resize(stretch(image, like), self.scale)
        self.shape = picture.shape[:2]
        self.panel_width = max(MIN_PANEL_WIDTH, self.shape[1])
        self.width = num_panels * (self.panel_width + MARGIN) + MARGIN
        self.height = HEADER + self.shape[0] + FOOTER
        self.figure = Figure((self.width / DPI, self.height / DPI), DPI, facecolor=BACKGROUND)
        self.agg = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, self.width)
        self.axes.set_ylim(self.height, 0)
        self.axes.set_autoscale_on(False)
        for column in range(num_panels):
            self._paste(column, picture)

    def title(self, text: str) -> None:
        """First line of the picture."""
        self._text(MARGIN, 23, text, size=12, weight="bold")

    def panel_title(self, column: int, name: str, detail: str) -> None:
        """The line over a panel."""
        x = MARGIN + column * (self.panel_width + MARGIN)
        drawn = self._text(x, HEADER - 16, name, size=10.5, weight="bold")
        right = drawn.get_window_extent(self.agg.get_renderer()).x1
        self._text(right + 10, HEADER - 16, detail, size=9, color=DIM_TEXT)

    def boxes(
        self, column: int, boxes: np.ndarray, kinds: Sequence[str], labels: Sequence[str]
    ) -> None:
        """Boxes with a label beside each.

        Args:
            boxes: (N, 4) xyxy pixels of the image as it was given.
            kinds: N keys of ``KINDS``.
            labels: N texts.
        """
        left, top = self._corner(column)
        drawn = np.asarray(boxes) * self.scale + np.array([left, top, left, top])
        drawn = drawn + BOX_PADDING * np.array([-1, -1, 1, 1])
        taken = [tuple(box) for box in drawn]
        for box, kind in zip(drawn, kinds, strict=True):
            self._box(box, kind)
        for box, kind, label in zip(drawn, kinds, labels, strict=True):
            taken.append(self._label(column, box, KINDS[kind][0], label, taken))

    def legend(self, kinds: Collection[str], note: str) -> None:
        """The line below: what the lines of these kinds mean, and a note at its right end."""
        y = self.height - FOOTER / 2
        x = MARGIN
        for colour, dashes, text in dict.fromkeys(KINDS[k] for k in KINDS if k in kinds):
            line = Line2D([x, x + 30], [y, y], color=colour, linestyle=dashes, linewidth=2)
            self.axes.add_line(line)
            drawn = self._text(x + 38, y, text, size=9)
            x = drawn.get_window_extent(self.agg.get_renderer()).x1 + 22
        self._text(self.width - MARGIN, y, note, size=9, align="right", weight="bold")

    def render(self) -> np.ndarray:
        """The picture, (h, w, 3) uint8 RGB."""
        self.agg.draw()
        return np.asarray(self.agg.buffer_rgba())[..., :3].copy()

    def _corner(self, column):
        """Top left corner of the image in a panel; narrow images stand in the middle."""
        left = MARGIN + column * (self.panel_width + MARGIN)
        return left + (self.panel_width - self.shape[1]) // 2, HEADER

    def _paste(self, column, picture):
        left, top = self._corner(column)
        extent = (left, left + self.shape[1], top + self.shape[0], top)
        self.axes.imshow(
            picture, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest",
            aspect="auto",
        )  # fmt: skip
        # imshow sets the limits to the image.
        self.axes.set_xlim(0, self.width)
        self.axes.set_ylim(self.height, 0)

    def _box(self, box, kind):
        colour, dashes, _ = KINDS[kind]
        rectangle = Rectangle(
            box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=colour, linewidth=LINE_WIDTH,
            linestyle=dashes,
        )  # fmt: skip
        outline = Stroke(linewidth=LINE_WIDTH + 1.4, foreground="black", alpha=0.55)
        rectangle.set_path_effects([outline, Normal()])
        self.axes.add_patch(rectangle)

    def _label(self, column, box, colour, text, taken):
        """Write a label where it covers least of boxes and labels; returns its xyxy."""
        drawn = self._text(0, 0, text, size=LABEL_SIZE, color=colour)
        drawn.set_bbox({"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5})
        extent = drawn.get_window_extent(self.agg.get_renderer())
        width, height = extent.width + 5, extent.height + 5
        left, top = self._corner(column)
        limits = (left, top, left + self.shape[1], top + self.shape[0])
        place = min(_places(box, width, height), key=lambda p: _cost(p, taken, limits))
        drawn.set_position((place[0] + 2.5, (place[1] + place[3]) / 2))
        return place

    def _text(self, x, y, text, size, color=TEXT, weight="normal", align="left"):
        return self.axes.text(
            x, y, text, fontsize=size, color=color, weight=weight, ha=align,
            va="center_baseline", parse_math=False,
        )  # fmt: skip


def stretch(image: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Grey values for the eye alone: never fed to a model, never measured.

    The brightest 0.2 % of what is not background become white. Where the breast is bright
    throughout (dense tissue, dark film), a gamma brings its median down to a middle grey, so that
    structure inside it is seen.

    Args:
        image: (H, W) or (H, W, 3) in [0, 255].
        like: image that is measured in its place, so that two can be compared.

    Returns:
        np.ndarray: same shape, uint8.
    """
    image = np.asarray(image, dtype=np.float32)
    like = image if like is None else np.asarray(like, dtype=np.float32)
    visible = like[:: max(1, like.shape[0] // 1000), :: max(1, like.shape[1] // 1000)]
    visible = visible[visible > BACKGROUND_LEVEL]
    if not visible.size:
        return np.clip(image + 0.5, 0, 255).astype(np.uint8)
    white = max(float(np.percentile(visible, 99.8)), 1.0)
    median = float(np.median(visible)) / white
    gamma = np.clip(np.log(MIDDLE_GREY) / np.log(min(median, 0.99)), 1.0, 2.5)
    return (np.clip(image / white, 0, 1) ** gamma * 255 + 0.5).astype(np.uint8)


def _resize(image, scale):
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _places(box, width, height):
    """Where a label can stand around a box: xyxy, the first is liked best."""
    x1, y1, x2, y2 = box
    gap = 2
    corners = [
        (x1, y1 - gap - height),
        (x1, y2 + gap),
        (x2 - width, y1 - gap - height),
        (x2 - width, y2 + gap),
        (x2 + gap, y1),
        (x1 - gap - width, y1),
        (x2 + gap, y2 - height),
        (x1 - gap - width, y2 - height),
    ]
    return [(x, y, x + width, y + height) for x, y in corners]


def _cost(place, taken, limits):
    """Area that a label covers of boxes and labels, and far more for what leaves the panel."""
    covered = sum(_overlap(place, other) for other in taken)
    area = (place[2] - place[0]) * (place[3] - place[1])
    return covered + 10 * (area - _overlap(place, limits))


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
