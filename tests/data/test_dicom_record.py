# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Patient, side, view and spacing from proper tags and from where sites really write them."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from detrex_mammo.data import dicom_record
from detrex_mammo.data.dicom_record import describe

from .dicom_files import make_dicom

PIXELS = np.zeros((2, 3), np.uint16)


def described(**tags):
    return describe(make_dicom(PIXELS, **tags))


def test_nothing_known_is_none():
    assert described() == {
        "patient_id": None,
        "study_id": None,
        "laterality": None,
        "view": None,
        "pixel_spacing": None,
        "manufacturer": None,
        "bits_stored": 12,
        "photometric": "MONOCHROME2",
    }


def test_proper_tags():
    record = described(
        PatientID="A-17",
        StudyInstanceUID="1.2.3",
        ImageLaterality="R",
        ViewPosition="XCCL",
        PixelSpacing=[0.07, 0.08],
        Manufacturer="GE",
    )
    assert record["patient_id"] == "A-17" and record["study_id"] == "1.2.3"
    assert record["laterality"] == "R" and record["view"] == "XCCL"
    assert record["pixel_spacing"] == [0.07, 0.08] and record["manufacturer"] == "GE"


@pytest.mark.parametrize(
    "patient_id,patient,side,view",
    [
        ("Mass-Test_P_00173_LEFT_CC", "P_00173", "L", "CC"),
        ("Calc-Training_P_01234_RIGHT_MLO_1", "P_01234", "R", "MLO"),
        ("ML-LEFT-0042", "ML-LEFT-0042", None, None),  # an id is no description elsewhere
    ],
)
def test_cbis_folder_names(patient_id, patient, side, view):
    record = described(PatientID=patient_id)
    assert (record["patient_id"], record["laterality"], record["view"]) == (patient, side, view)


@pytest.mark.parametrize(
    "text,side,view",
    [
        ("LCC", "L", "CC"),
        ("RMLO", "R", "MLO"),
        ("R MLO", "R", "MLO"),
        ("L-CC Tomosynthesis", "L", "CC"),
        ("Right breast MLO", "R", "MLO"),
        ("LLM", "L", "LM"),
        ("LM", None, "LM"),
        ("full mammogram images", None, None),
        ("MLO at rest", None, "MLO"),
        ("SUCCESS", None, None),
    ],
)
def test_series_descriptions(text, side, view):
    record = described(SeriesDescription=text)
    assert (record["laterality"], record["view"]) == (side, view)


def test_patient_orientation_with_a_view_but_not_with_directions():
    assert described(PatientOrientation="MLO", Laterality="L")["view"] == "MLO"
    record = described(PatientOrientation=["P", "L"])
    assert record["view"] is None and record["laterality"] is None


def test_tags_win_over_texts():
    record = described(ImageLaterality="L", ViewPosition="CC", SeriesDescription="RMLO")
    assert (record["laterality"], record["view"]) == ("L", "CC")


def test_view_code_sequence():
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "R-10226", "medio-lateral oblique"
    assert described(ViewCodeSequence=[item])["view"] == "MLO"
    item.CodeValue = "somebody's own"
    assert described(ViewCodeSequence=[item])["view"] == "MLO"


def test_view_codes_are_those_of_the_standard():
    """pydicom carries the context group of mammography views, CID 4014."""
    found = {}
    for name in codes.cid4014.dir():
        code = getattr(codes.cid4014, name)
        if code.value in dicom_record._VIEW_CODES:
            found[code.meaning.lower()] = dicom_record._VIEW_CODES[code.value]
    assert found == {k: v for k, v in dicom_record._VIEW_MEANINGS.items() if k != "medio-lateral"}


def test_spacing_falls_back_and_refuses_nonsense():
    assert described(ImagerPixelSpacing=[0.1, 0.1])["pixel_spacing"] == [0.1, 0.1]
    both = described(PixelSpacing=[0.07, 0.07], ImagerPixelSpacing=[0.1, 0.1])
    assert both["pixel_spacing"] == [0.07, 0.07]
    assert described(PixelSpacing=[0, 0], ImagerPixelSpacing=[0.1, 0.1])["pixel_spacing"] == [
        0.1,
        0.1,
    ]
    assert described(PixelSpacing=[0, 0])["pixel_spacing"] is None
    assert described(NominalScannedPixelSpacing=[0.05, 0.05])["pixel_spacing"] == [0.05, 0.05]
