# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every impossible probability or range of an augmentation is one sentence with its name."""

import math

import pytest

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.augmentation_checks import check_probability, check_range
from detrex_mammo.data.augmentation_geometry import LesionSafeCrop, RandomAffine
from detrex_mammo.data.augmentation_photometric import RandomBlur, RandomNoise
from detrex_mammo.data.augmentation_resize import RandomScale, ResizeShortEdge, ResizeToSpacing
from detrex_mammo.data.augmentation_tile import LesionTile
from detrex_mammo.data.augmentation_warp import RandomElastic, RandomPerspective
from detrex_mammo.data.copy_paste import LesionCopyPaste
from detrex_mammo.errors import UserError


@pytest.mark.parametrize(
    "build,words",
    [
        (lambda: RandomIntensity(prob=1.5), "RandomIntensity got prob=1.5; a probability"),
        (lambda: RandomIntensity(gamma=[0, 1]), r"gamma=\[0, 1\]; .* 0 < low <= high"),
        (lambda: RandomIntensity(contrast=[1.2, 0.8]), r"contrast=\[1.2, 0.8\]; .* 0 <= low"),
        (lambda: RandomIntensity(offset=[-300, 0]), "offset=.* -255 <= low <= high <= 255"),
        (lambda: RandomNoise(gaussian=[-1, 2]), r"RandomNoise got gaussian=\[-1, 2\]"),
        (lambda: RandomNoise(quantum=[3]), r"RandomNoise got quantum=\[3\]"),
        (lambda: RandomNoise(prob=-0.1), "RandomNoise got prob=-0.1"),
        (lambda: RandomBlur(sigma=[0, 1]), r"RandomBlur got sigma=\[0, 1\]"),
        (lambda: RandomBlur(prob="half"), "RandomBlur got prob='half'"),
        (lambda: RandomElastic(displacement=[-1, 1]), "RandomElastic got displacement"),
        (lambda: RandomElastic(sigma=0), "RandomElastic got sigma"),
        (lambda: RandomElastic(prob=2), "RandomElastic got prob=2"),
        (lambda: RandomPerspective(scale=[0.1, 0.6]), "RandomPerspective got scale=.* <= 0.4"),
        (lambda: RandomPerspective(prob=math.nan), "RandomPerspective got prob=nan"),
        (lambda: RandomScale(scale=[0, 1]), "RandomScale got scale"),
        (lambda: RandomScale(prob=7), "RandomScale got prob=7"),
        (lambda: ResizeToSpacing(0, 10, 10), "ResizeToSpacing got mm_per_pixel=0"),
        (lambda: ResizeToSpacing(0.1, 0, 10), "ResizeToSpacing got .*max_height=0"),
        (lambda: ResizeToSpacing(0.1, 9, 9, [2, 1]), "ResizeToSpacing got scale_range"),
        (lambda: ResizeShortEdge([]), r"ResizeShortEdge got short_edges=\[\]"),
        (lambda: ResizeShortEdge([0, 5]), "ResizeShortEdge got"),
        (lambda: ResizeShortEdge(5, 0), "ResizeShortEdge got .*max_size=0"),
        (lambda: LesionTile(0, 5), "LesionTile got height=0"),
        (lambda: LesionTile(5, 5, lesion_prob=2), "LesionTile got lesion_prob=2"),
        (lambda: RandomAffine(shear=50), "RandomAffine got shear=50"),
        (lambda: RandomAffine(translate=1), "RandomAffine got .*translate=1"),
        (lambda: RandomAffine(degrees="ten"), r"degrees='ten'; it is a number in \[0, 180\]"),
        (lambda: RandomAffine(scale=[1.0]), r"RandomAffine got scale=\[1.0\]; .* pair"),
        (lambda: LesionSafeCrop(min_share=0), r"min_share=0; it is a number in \(0, 1\]"),
        (lambda: LesionSafeCrop(prob=True), "LesionSafeCrop got prob=True"),
        (lambda: ResizeToFit("big", 5), "ResizeToFit got height='big'; a size"),
        (lambda: ResizeToFit(5, 5.5), "ResizeToFit got width=5.5; a size"),
        (lambda: ResizeToFit(5, 5, scale_range=[1]), "ResizeToFit got scale_range"),
        (lambda: ResizeToFit(5, 5, aspect_jitter=1), r"aspect_jitter=1; .* in \[0, 1\)"),
        (lambda: ResizeToSpacing("fine", 9, 9), "ResizeToSpacing got mm_per_pixel='fine'"),
        (lambda: ResizeShortEdge("long"), "ResizeShortEdge got short_edges='long'"),
        (lambda: LesionTile("high", 5), "LesionTile got height='high'"),
        (lambda: LesionCopyPaste(classes=["mass"]), r"classes=\['mass'\]; give a list of their"),
        (lambda: LesionCopyPaste(prob=None), "LesionCopyPaste got prob=None"),
        (lambda: LesionCopyPaste(max_lesions=0), "LesionCopyPaste got max_lesions=0"),
    ],
)
def test_impossible_settings(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_what_is_possible_is_returned_as_numbers():
    assert check_probability("A", 1) == 1.0 and check_probability("A", 0.0) == 0.0
    assert check_range("A", "b", (1, 1), 1, 1) == (1.0, 1.0)
    for values in ([math.nan, 1], [0, math.inf], None, 3, ["a", "b"], [1, 2, 3]):
        with pytest.raises(UserError, match="A got b="):
            check_range("A", "b", values)
