# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Whole pictures of each kind, and one of each damage with the reason that a report must give."""

from pathlib import Path

import numpy as np

from tests.data.convert.trees import write_dicom, write_picture, write_wrong_syntax

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)


def write_good(folder: Path) -> list[str]:
    """An image of 40 x 30 (height, width) of each kind of file; returns the names, sorted."""
    for name in ("good.png", "good.jpg", "good.tif"):
        write_picture(folder / name, NOISE)
    write_picture(folder / "deep.png", NOISE.astype(np.uint16) * 257)
    write_dicom(folder / "good.dcm", (40, 30), PatientID="p9", ViewPosition="MLO")
    names = sorted(path.name for path in folder.iterdir() if path.suffix not in (".txt", ".xml"))
    return names


def write_bad(folder: Path) -> dict[str, str]:
    """Files that are no usable image; returns each one's reason."""
    write_picture(folder / "whole.png", NOISE)
    data = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "bad_empty.png").write_bytes(b"")
    (folder / "bad_cut.png").write_bytes(data[: len(data) // 2])
    (folder / "bad_text.jpg").write_text("no picture at all")
    write_picture(folder / "bad_dot.png", (1, 1))
    write_dicom(folder / "bad_raw.dcm", (40, 30), PresentationIntentType="FOR PROCESSING")
    write_dicom(folder / "bad_frames.dcm", np.zeros((2, 40, 30), np.uint16))
    write_wrong_syntax(folder / "bad_syntax.dcm", (40, 30))
    return {
        "bad_empty.png": "images: file is empty",
        "bad_cut.png": "images: pixel data are cut off",
        "bad_text.jpg": "images: no picture, or damaged",
        "bad_dot.png": "images: smaller than 16 pixels",
        "bad_raw.dcm": "images: raw FOR PROCESSING image",
        "bad_frames.dcm": "images: DICOM file of several frames",
        "bad_syntax.dcm": "images: transfer syntax does not fit the pixel data",
    }


def assert_reported(dataset, bad: dict[str, str], folder: str = "") -> None:
    """Each bad file has exactly one line of the report, and no image."""
    for name, reason in bad.items():
        assert dataset.report.counts["dropped"][reason] == list(bad.values()).count(reason), reason
        examples = dataset.report.examples["dropped", reason]
        assert any(example.endswith(folder + name) for example in examples), (name, examples)
    assert not [i for i in dataset.images if i["file_name"].rpartition("/")[2] in bad]
