# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every step from file to network input is told, with figures known from how the file was made."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from detrex_mammo.data.augmentation import ResizeToFit
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.inspection import inspect, write_step
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

from .dicom_files import save_dicom
from .test_breast import phantom

ROOT = Path(__file__).resolve().parents[2]
NAMES = "file header stored_values padding modality_LUT window inversion breast crop flip".split()


def steps_of(path, frame=None, **settings):
    mapper = MammographyMapper(False, [ResizeToFit(64, 64)], Preprocessing(**settings))
    return {step.name.replace(" ", "_"): step for step in inspect(path, mapper, frame)}


@pytest.fixture
def path(tmp_path):
    """A right breast, MONOCHROME1 with padding, rescale and a window, said to be a left one."""
    pixels, _ = phantom(300, 200, side="right", label=False)
    stored = (4000 - pixels * 15).astype(np.uint16)
    stored[:10] = 4095
    return save_dicom(
        tmp_path,
        stored,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=4095,
        RescaleSlope="2",
        RescaleIntercept="-100",
        WindowCenter=[4000, 5000],
        WindowWidth=[8000, 10],
        ImageLaterality="L",
        ViewPosition="CC",
        Modality="MG",
    )


def test_every_step_of_a_dicom_file(path):
    steps = steps_of(path)
    assert list(steps) == [*NAMES, "network_input"]
    for name, expected in {
        "file": r"image.dcm' of \d+ bytes: MG, no presentation intent, 1 frame",
        "header": "laterality L, view CC, no spacing, no manufacturer",
        "stored_values": "Explicit VR Little Endian: 200 x 300, unsigned, 12 of 16 bits, ",
        "padding": r"stored values 4095 ... 4095 are no image: 3.3%",
        "modality_LUT": r"x 2 \+ -100, to",
        "window": "'auto', window number 0 of the file's 2: centre 4000, width 8000, LINEAR",
        "inversion": "MONOCHROME1, so inverted last; grey values",
        "breast": "chest wall on the right; WARNING: laterality is 'L'",
        "crop": r"of the image, 100.00% of the breast",
        "flip": "belongs on the left: mirrored",
        "network_input": r"3 equal channels of \d+ x 64 .* float32",
    }.items():
        assert re.search(expected, steps[name].text), steps[name].text
    without = {name for name, step in steps.items() if step.picture is None}
    assert without == {"file", "header", "modality_LUT"}
    for step in steps.values():
        assert step.picture is None or step.picture.dtype == np.uint8
    # Inverted but for the padding above; then the bright breast is turned to the left.
    before, after = (steps[name].picture[10:].astype(int) for name in ("window", "inversion"))
    np.testing.assert_allclose(before + after, 255, atol=1)
    assert after.std() > 20 and not steps["inversion"].picture[:10].any()
    assert steps["flip"].picture[:, :20].mean() > 2 * steps["flip"].picture[:, -20:].mean()


def test_pictures_and_frames(tmp_path):
    pixels, _ = phantom(300, 200)
    write_png16(tmp_path / "a.png", pixels)
    steps = steps_of(tmp_path / "a.png", window="tissue:1,99")
    assert list(steps) == ["file", "stored_values", *NAMES[5:6], *NAMES[7:], "network_input"]
    assert "200 x 300 uint16" in steps["stored_values"].text
    assert "no laterality to check" in steps["breast"].text
    stored = (pixels * 16).astype(np.uint16)
    dbt = save_dicom(tmp_path, np.stack([stored, stored // 2]))
    text = steps_of(dbt, frame=1, window="none")["stored_values"].text
    assert "frame 1 of 2" in text and f"... {stored.max() // 2}" in text
    with pytest.raises(UserError, match="2 frames: choose one"):
        steps_of(dbt)


def test_steps_before_a_failure_come_out(tmp_path):
    raw = save_dicom(
        tmp_path, np.array([[0, 9]], np.uint16), PresentationIntentType="FOR PROCESSING"
    )
    steps = inspect(raw, MammographyMapper(False))
    assert "FOR PROCESSING" in next(steps).text
    with pytest.raises(UserError, match="is FOR PROCESSING"):
        next(steps)


def test_large_pictures_are_written_small(path, tmp_path):
    steps = steps_of(path)
    assert write_step(tmp_path / "new", 1, steps["file"]) is None
    written = write_step(tmp_path / "new", 8, steps["breast"])
    assert written.name == "08_breast.png" and cv2.imread(str(written)).shape == (300, 200, 3)
    with pytest.raises(UserError, match="cannot be written"):
        write_step(path, 1, steps["breast"])


def test_the_tool(path, tmp_path):
    command = [sys.executable, "tools/inspect_dicom.py"]
    done = subprocess.run(
        [*command, str(path), "--out", str(tmp_path / "out"),
         "dataloader.train.mapper.preprocessing.window=minmax"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "policy 'minmax', smallest and largest pixel" in done.stdout
    assert len(list((tmp_path / "out").glob("*.png"))) == 8
    done = subprocess.run([*command, "none.dcm"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "does not exist" in done.stderr
