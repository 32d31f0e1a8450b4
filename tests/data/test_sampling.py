# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every rule of sampling, with numbers worked by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from detrex_mammo.data.columns import columns_of
from detrex_mammo.data.sampling import Sampling, fit_table
from detrex_mammo.errors import UserError


def columns(*images: tuple[str, str | None, list[int]]):
    """(dataset, patient, classes of its boxes) of each image; ids from 0."""
    return columns_of(
        [
            {
                "image_id": number,
                "dataset": dataset,
                "patient_id": patient,
                "annotations": [{"category_id": c} for c in classes],
            }
            for number, (dataset, patient, classes) in enumerate(images)
        ]
    )


SIX = columns(
    ("a", "1", [0]),
    ("a", "1", []),
    ("a", "2", [0, 0, 1]),
    ("b", "1", []),
    ("b", None, []),
    ("b", None, []),
)


def check(expected: list[float], data=SIX, epoch: int = 0, **settings) -> None:
    found = Sampling(**settings).repeats(data, epoch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert found.dtype == np.float64


def sentence(data=SIX, **settings) -> str:
    with pytest.raises(UserError) as caught:
        Sampling(**settings).repeats(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_rule_every_image_is_shown_once() -> None:
    check([1.0] * 6)
    assert Sampling().is_plain and not Sampling(negatives_per_positive=0).is_plain
    assert not Sampling(dataset_weights={"a": 1, "b": 1}).is_plain


def test_negatives_per_positive() -> None:
    """Two images with boxes stay at 1; four without share 2 * ratio."""
    check([1, 0.5, 1, 0.5, 0.5, 0.5], negatives_per_positive=1.0)
    check([1, 1.5, 1, 1.5, 1.5, 1.5], negatives_per_positive=3)
    check([1, 0, 1, 0, 0, 0], negatives_per_positive=0)


def test_ratio_becomes_the_natural_one() -> None:
    """Natural is 4 / 2 = 2; 0.5 + (2 - 0.5) * epoch / 3 is 0.5, 1, 1.5, 2, 2.

    Six images an epoch: with ratio r those with boxes get 6 / (1 + r) / 2 each, the others
    6 r / (1 + r) / 4.
    """
    settings = {"negatives_per_positive": 0.5, "natural_after_epochs": 3}
    check([2, 0.5, 2, 0.5, 0.5, 0.5], epoch=0, **settings)
    check([1.5, 0.75, 1.5, 0.75, 0.75, 0.75], epoch=1, **settings)
    check([1.2, 0.9, 1.2, 0.9, 0.9, 0.9], epoch=2, **settings)
    for epoch in (3, 4, 100):
        check([1.0] * 6, epoch=epoch, **settings)


def write(path: Path, *scores: tuple[int, float]) -> str:
    box = {"category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0]}
    path.write_text(json.dumps([{"image_id": i, "score": s, **box} for i, s in scores]))
    return str(path)


def test_hard_negatives(tmp_path: Path) -> None:
    """Without boxes are 1, 3, 4, 5; of these best scores are 0.2, 0.9, none, 0.8.

    A share of 0.3 of four is 1.2: two images, 3 and 5. Image 2 has the highest score of all, and
    a box. A share of 1 is four images, but 4 has no prediction.
    """
    file = write(
        tmp_path / "p.json", (1, 0.2), (3, 0.9), (3, 0.1), (5, 0.1), (5, 0.8), (2, 0.99), (77, 1.0)
    )
    check([1, 1, 1, 3, 1, 3], hard_negatives=file, hard_negative_factor=3, hard_negative_share=0.3)
    check([1, 4, 1, 4, 1, 4], hard_negatives=file, hard_negative_share=1)
    check([1, 1, 1, 4, 1, 1], hard_negatives=file)  # 10 % of four, rounded up


def test_hard_negatives_are_more_of_the_negatives_not_more_negatives(tmp_path: Path) -> None:
    """Weights 1, 3, 1, 1 of the four images share 2 * 1.5 = 3."""
    file = write(tmp_path / "p.json", (3, 0.9))
    settings = {"hard_negative_factor": 3, "negatives_per_positive": 1.5}
    check([1, 0.5, 1, 1.5, 0.5, 0.5], hard_negatives=file, **settings)


def test_file_of_hard_negatives_that_does_not_help_is_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path / "p.json", (2, 0.9))
    assert "no prediction on an image without boxes" in sentence(hard_negatives=file)


def test_class_balance() -> None:
    """Class 0 is in 9 images, class 1 in 4, class 3 in one; nine thirds of 1, 1.5 and 3.

    ``(9 / f)**0.5``: 1, 1.5, 3. An image has the factor of its rarest class, however many boxes.
    """
    data = columns(
        *[("", None, [0])] * 6,
        *[("", None, [0, 1])] * 2,
        ("", None, [1, 1, 1]),
        ("", None, [0, 1, 3, 0]),
        ("", None, []),
    )
    check([1] * 6 + [1.5, 1.5, 1.5, 3, 1], data, class_balance=0.5)
    check([1] * 6 + [2.25, 2.25, 2.25, 9, 1], data, class_balance=1)


def test_patient_balance() -> None:
    """Patients a/1 (two images), a/2, b/1 and two unknown: six images over five patients."""
    check([0.6, 0.6, 1.2, 1.2, 1.2, 1.2], patient_balance=True)


def test_dataset_weights() -> None:
    """Three images each; 1 : 3 of six is 1.5 and 4.5."""
    check([0.5] * 3 + [1.5] * 3, dataset_weights={"a": 1, "b": 3})
    check([2.0] * 3 + [0.0] * 3, dataset_weights={"a": 0.2, "b": 0})


def test_datasets_and_negatives_together() -> None:
    """a: 1 with boxes, 2 without; b: 2 with, 1 without. Weights 1 : 2, one negative a positive.

    Shares, with p of a's positives: a has 1/3, positives 1/2, so the others are 1/3 - p of a,
    1/2 - p and 1/6 + p of b. Scaling rows and columns keeps the odds ratio (1 * 1) / (2 * 2):
    4 p (1/6 + p) = (1/3 - p) (1/2 - p), or 3 p**2 + 1.5 p - 1/6 = 0, p = (sqrt(4.25) - 1.5) / 6.
    With the weights alone a has 2 of six images and b 4: positives 2/3 + 8/3. These 10/3 stay, and
    are one half of 20/3.
    """
    data = columns(
        ("a", None, [0]),
        ("a", None, []),
        ("a", None, []),
        ("b", None, [0]),
        ("b", None, [0]),
        ("b", None, []),
    )
    p = (-1.5 + math.sqrt(4.25)) / 6
    shares = [p, (1 / 3 - p) / 2, (1 / 3 - p) / 2, (1 / 2 - p) / 2, (1 / 2 - p) / 2, 1 / 6 + p]
    found = Sampling(dataset_weights={"a": 1, "b": 2}, negatives_per_positive=1).repeats(data)
    np.testing.assert_allclose(found, np.array(shares) * 20 / 3, rtol=0, atol=1e-4)


def test_shares_that_exclude_each_other_are_one_sentence() -> None:
    """All images with boxes are in a, which shall be a tenth; half of all shall have boxes."""
    message = sentence(dataset_weights={"a": 1, "b": 9}, negatives_per_positive=1)
    assert "not possible with the dataset_weights" in message


def test_table_that_fits_has_factors_of_one() -> None:
    table = np.array([[1.0, 2.0], [0.0, 4.0]])
    np.testing.assert_array_equal(
        fit_table(table, table.sum(axis=1), table.sum(axis=0)), [[1, 1], [0, 1]]
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"negatives_per_positive": -1}, "negatives_per_positive is -1, but must be at least 0"),
        ({"negatives_per_positive": math.nan}, "negatives_per_positive is nan"),
        ({"negatives_per_positive": True}, "negatives_per_positive is True"),
        ({"natural_after_epochs": 3}, "set both or neither"),
        (
            {"negatives_per_positive": 1, "natural_after_epochs": 0},
            "natural_after_epochs is 0, but must be above 0",
        ),
        ({"hard_negative_factor": 0.5}, "hard_negative_factor is 0.5, but must be at least 1"),
        ({"hard_negative_share": 0}, "must be above 0 and at most 1"),
        ({"class_balance": 1.5}, "class_balance is 1.5, but must be at least 0 and at most 1"),
        ({"class_balance": "sqrt"}, "class_balance is 'sqrt'"),
        ({"patient_balance": "yes"}, "patient_balance is 'yes'"),
        ({"dataset_weights": {"a": -1, "b": 1}}, "dataset_weights.a is -1"),
        ({"dataset_weights": {"a": 1, "b": 1, "c": 1}}, "names 'c', but"),
        ({"dataset_weights": {"a": 1}}, "leaves out 'b'"),
        ({"dataset_weights": {"a": 0, "b": 0}}, "one must be above 0"),
        ({"hard_negatives": "/no/such.json"}, "cannot be read"),
    ],
)
def test_impossible_setting_is_one_sentence(settings, expected: str) -> None:
    assert expected in sentence(**settings)


def test_data_that_a_rule_does_not_fit_is_one_sentence() -> None:
    healthy, ill = columns(("", None, []), ("", None, [])), columns(("", None, [0]))
    assert "is without boxes: set it to null" in sentence(healthy, negatives_per_positive=1)
    assert "has boxes: set it to null" in sentence(ill, negatives_per_positive=1)
    assert "no image has a box: set it to 0" in sentence(healthy, class_balance=0.5)
