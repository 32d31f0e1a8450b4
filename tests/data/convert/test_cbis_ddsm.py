# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CBIS-DDSM's traps, each in a miniature tree with its expected records."""

import csv

import numpy as np
import pytest

from detrex_mammo.data.convert.cbis_ddsm import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    counts_of,
    images_of,
    mask,
    reported,
    write_broken_dicoms,
    write_dicom,
)

SIZE, CROP = (60, 40), (30, 24)
NOISE = np.random.default_rng(0).integers(0, 65536, CROP).astype(np.uint16)
HEADER = (
    "patient_id,{density},left or right breast,image view,abnormality id,abnormality type,"
    "{kind},assessment,pathology,subtlety,image file path,cropped image file path,"
    "ROI mask file path"
)
KIND = {"Mass": "mass shape,mass margins", "Calc": "calc type,calc distribution"}


class Tree:
    """A download: tables and files of the old layout, or of today's one with ``is_new``."""

    def __init__(self, root, is_new=False):
        self.root, self.is_new, self.rows = root, is_new, {}

    def film(self, case, size=SIZE):
        self._write(case, f"9.1.{case}", {"000000.dcm": np.zeros(size, np.uint16)})
        return f"{case}/9.0/9.1.{case}/000000.dcm"

    def lesion(self, case, box, number=1, size=SIZE, swapped=False, mask_pixels=None, own=False):
        """Mask and crop of one lesion; returns the paths (crop, mask) that the table names.

        A mass's mask is 000001.dcm, or 000000.dcm if it is alone in its series (``own``).
        """
        folder = f"{case}_{number}"
        pixels = mask(size, box) if mask_pixels is None else mask_pixels
        is_mass = case.startswith("Mass")
        names = ("000000.dcm", "000001.dcm") if is_mass or own else ("000001.dcm", "000000.dcm")
        names = ("000000.dcm", "000000.dcm") if own else names
        uids = (f"9.2.{folder}", f"9.3.{folder}" if own else f"9.2.{folder}")
        contents = (pixels, NOISE) if swapped else (NOISE, pixels)
        for uid, name, content in zip(uids, names, contents):
            self._write(folder, uid, {name: content})
        return [f"{folder}/9.0/{uid}/{name}" for uid, name in zip(uids, names)]

    def _write(self, folder, uid, files):
        for name, pixels in files.items():
            path = f"CBIS-DDSM/{folder}/9.0/{_uid(uid)}/{name}"
            if self.is_new:
                name = "1-1.dcm" if name == "000000.dcm" else "1-2.dcm"
                path = f"CBIS-DDSM/{folder}/07-20-2016-DDSM-9/1.000000-x-{uid[-5:]}/{name}"
            write_dicom(
                self.root / path,
                pixels.astype(np.uint16),
                bits=16,
                PatientID=folder,
                SeriesInstanceUID=_uid(uid),
            )

    def row(self, case, film, crop, roi, **cells):
        part, patient, side, view = case.split("_P_")[0], *_name(case)
        kind = case[:4]
        film, crop, roi = (_uid_path(path) for path in (film, crop, roi))
        values = {
            "density": "2",
            "id": "1",
            "assessment": "4",
            "pathology": "MALIGNANT",
            "patient": patient,
            **cells,
        }
        self.rows.setdefault(part, []).append(
            [values["patient"], values["density"], side, view, values["id"], kind.lower(), "ROUND"]
            + ["OBSCURED", values["assessment"], values["pathology"], "5", film, crop]
            + [roi + "\n" if kind == "Mass" else roi]  # every mass row's last cell ends so
        )

    def add(self, case, box, **more):
        """A film with one lesion."""
        size = more.pop("film_size", SIZE)
        cells = more.pop("cells", {})
        self.row(case, self.film(case, size), *self.lesion(case, box, **more), **cells)

    def write(self):
        for part, rows in self.rows.items():
            kind, split = part.split("-")
            density = "breast_density" if kind == "Mass" else "breast density"
            name = f"{kind.lower()}_case_description_{'test' if split == 'Test' else 'train'}_set"
            with open(self.root / f"{name}.csv", "w", newline="") as file:
                header = HEADER.format(density=density, kind=KIND[kind])
                csv.writer(file).writerows([header.split(","), *rows])
        return self.root


def _uid(text):
    """A valid UID for a readable name."""
    return "9." + ".".join(str(ord(c)) for c in text[-12:])


def _uid_path(path):
    parts = path.split("/")
    return "/".join([*parts[:-2], _uid(parts[-2]), parts[-1]])


def _name(case):
    _, patient, side, view = (
        case.replace("_P_", "|P_")
        .replace("_LEFT_", "|LEFT|")
        .replace("_RIGHT_", "|RIGHT|")
        .split("|")
    )
    return patient, side, view


@pytest.fixture(params=["old", "new"])
def tree(request, tmp_path):
    return Tree(tmp_path, is_new=request.param == "new")


def _short(rows):
    """Case folder in place of the file's whole path."""
    return [(row[0].split("/")[1], *row[1:]) for row in rows]


def test_patient_side_view_split_density_and_box(tree):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20), cells={"density": "3"})
    tree.add("Mass-Test_P_00002_RIGHT_MLO", (1, 0, 39, 60), own=True)
    tree.add(
        "Calc-Training_P_00003_RIGHT_CC",
        (39, 59, 1, 1),
        cells={"pathology": "BENIGN_WITHOUT_CALLBACK", "assessment": "2", "density": "4"},
    )
    tree.add("Calc-Training_P_00004_LEFT_CC", (3, 4, 5, 6), cells={"density": "0"})
    dataset = convert(tree.write(), tree.root / "out")
    keys = ("patient_id", "laterality", "view", "density", "birads", "split", "bits_stored")
    images = _short([(file, *rest) for file, rest in images_of(dataset, *keys).items()])
    images.sort()
    assert images == [
        ("Calc-Training_P_00003_RIGHT_CC", "P_00003", "R", "CC", "D", "2", "train", 16),
        ("Calc-Training_P_00004_LEFT_CC", "P_00004", "L", "CC", None, "4", "train", 16),
        ("Mass-Test_P_00002_RIGHT_MLO", "P_00002", "R", "MLO", "B", "4", "test", 16),
        ("Mass-Training_P_00001_LEFT_CC", "P_00001", "L", "CC", "C", "4", "train", 16),
    ]
    boxes = _short(boxes_of(dataset, "pathology", "lesion_id", "source"))
    assert sorted(boxes) == [
        (
            "Calc-Training_P_00003_RIGHT_CC",
            "calcification",
            (39, 59, 1, 1),
            "benign_without_callback",
            "P_00003_R_calcification_1",
            "mask",
        ),
        (
            "Calc-Training_P_00004_LEFT_CC",
            "calcification",
            (3, 4, 5, 6),
            "malignant",
            "P_00004_L_calcification_1",
            "mask",
        ),
        (
            "Mass-Test_P_00002_RIGHT_MLO",
            "mass",
            (1, 0, 39, 60),
            "malignant",
            "P_00002_R_mass_1",
            "mask",
        ),
        (
            "Mass-Training_P_00001_LEFT_CC",
            "mass",
            (5, 10, 12, 20),
            "malignant",
            "P_00001_L_mass_1",
            "mask",
        ),
    ]
    assert reported(dataset, "dropped") == {}


def test_swapped_mask_is_found_by_its_pixels(tree):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20), swapped=True)
    tree.add("Calc-Training_P_00002_LEFT_CC", (6, 10, 12, 20), swapped=True)
    dataset = convert(tree.write(), tree.root / "out")
    assert [row[2] for row in boxes_of(dataset)] == [(6, 10, 12, 20), (5, 10, 12, 20)]
    swapped = reported(dataset, "fixed").get("masks and crops that were swapped", 0)
    assert swapped == (0 if tree.is_new else 2)  # the new names do not say which is which


def test_the_film_is_the_one_of_the_tables_series(tree):
    case = "Mass-Training_P_00001_LEFT_CC"
    tree._write(case, "9.0.another", {"000000.dcm": np.zeros((90, 60), np.uint16)})
    tree.add(case, (5, 10, 12, 20))
    tree._write(case, "9.9.another", {"000000.dcm": np.zeros((90, 60), np.uint16)})
    dataset = convert(tree.write(), tree.root / "out")
    assert [(i["height"], i["width"]) for i in dataset.images] == [SIZE]
    found = reported(dataset, "fixed").get("films not at the table's path, found by their series")
    assert found == (1 if tree.is_new else None)


@pytest.mark.parametrize("others", [0, 1])
def test_a_film_of_an_unknown_series_is_taken_if_it_is_alone(tree, others):
    case = "Mass-Training_P_00001_LEFT_CC"
    for number in range(others):
        tree._write(case, f"9.7.{number}", {"000000.dcm": np.zeros((90, 60), np.uint16)})
    film = tree.film(case).replace("9.1.", "9.8.")[:-12] + "x/000000.dcm"
    tree.row(case, film, *tree.lesion(case, (5, 10, 12, 20)))
    dataset = convert(tree.write(), tree.root / "out")
    assert len(dataset.annotations) == 1 - others
    reason = ("films of an unknown series, found by their folder", "lesions whose film is missing")
    assert reported(dataset, ("fixed", "dropped")[others]) == {reason[others]: 1}


def test_mask_of_another_size_is_scaled_not_cut(tree):
    tree.add("Mass-Test_P_00145_LEFT_CC", (20, 45, 30, 36), size=(90, 60), film_size=(60, 40))
    dataset = convert(tree.write(), tree.root / "out")
    (box,) = boxes_of(dataset)
    np.testing.assert_allclose(box[2], (40 / 3, 30, 20, 24))
    assert reported(dataset, "fixed")["masks of another size than the film, scaled"] == 1


def test_mass_and_calcification_of_one_film_are_one_image(tree):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20))
    tree.add("Calc-Training_P_00001_LEFT_CC", (10, 30, 4, 6), film_size=(120, 80), size=(120, 80))
    dataset = convert(tree.write(), tree.root / "out")
    assert len(dataset.images) == 1
    found = {row[1]: row[2] for row in boxes_of(dataset)}
    scale = dataset.images[0]["height"] / 60
    assert found["mass"] == tuple(scale * v for v in (5, 10, 12, 20))
    assert found["calcification"] == tuple(scale / 2 * v for v in (10, 30, 4, 6))
    assert reported(dataset, "fixed")["films there twice, as Mass and as Calc, merged"] == 1


def test_a_film_whose_other_copy_is_missing_lacks_a_lesion(tree):
    tree.add("Mass-Training_P_00003_LEFT_CC", (1, 2, 3, 4))
    tree.add("Mass-Training_P_00004_LEFT_CC", (1, 2, 3, 4))
    calc = "Calc-Training_P_00003_LEFT_CC"
    tree.row(calc, f"{calc}/9.0/9.1.{calc}/000000.dcm", *tree.lesion(calc, (20, 22, 5, 6)))
    dataset = convert(tree.write(), tree.root)
    assert [image["patient_id"] for image in dataset.images] == ["P_00004"]
    assert reported(dataset, "dropped") == {
        "lesions whose film is missing": 1,
        "films with a lesion that has no box": 1,
    }


def test_several_lesions_of_a_film(tree):
    case = "Mass-Training_P_00001_LEFT_CC"
    film = tree.film(case)
    tree.row(case, film, *tree.lesion(case, (5, 10, 12, 20)), assessment="3")
    tree.row(case, film, *tree.lesion(case, (1, 2, 3, 4), number=2), id="2", assessment="5")
    dataset = convert(tree.write(), tree.root / "out")
    assert [i["birads"] for i in dataset.images] == ["5"]
    assert [row[2:] for row in boxes_of(dataset, "lesion_id", "birads")] == [
        ((5, 10, 12, 20), "P_00001_L_mass_1", "3"),
        ((1, 2, 3, 4), "P_00001_L_mass_2", "5"),
    ]


def test_the_patient_is_the_folders_and_a_lesion_is_one_in_both_views(tree):
    for view in ("CC", "MLO"):
        case = f"Mass-Training_P_00001_LEFT_{view}"
        tree.add(case, (5, 10, 12, 20), cells={"patient": case})
    dataset = convert(tree.write(), tree.root / "out")
    assert {image["patient_id"] for image in dataset.images} == {"P_00001"}
    assert [a["lesion_id"] for a in dataset.annotations] == ["P_00001_L_mass_1"] * 2
    assert reported(dataset, "fixed")["rows of another patient than their folder's"] == 2
    told = "no normal films: false positives are counted on abnormal ones only"
    assert reported(dataset, "kept")[told] == 1


@pytest.mark.parametrize("leak", ["repair", "report"])
def test_a_patient_of_both_splits(tree, leak):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20))
    tree.add("Mass-Training_P_00001_RIGHT_CC", (5, 10, 12, 20))
    tree.add("Calc-Test_P_00001_LEFT_CC", (10, 30, 4, 6))
    tree.add("Mass-Training_P_00002_LEFT_CC", (5, 10, 12, 20))
    dataset = convert(tree.write(), tree.root / "out", leak=leak)
    found = sorted((i["patient_id"], i["laterality"], i["split"]) for i in dataset.images)
    if leak == "repair":
        assert found == [
            ("P_00001", "L", "test"),
            ("P_00001", "R", "test"),
            ("P_00002", "L", "train"),
        ]
        assert len(dataset.annotations) == 4
        assert reported(dataset, "fixed")["patients of both splits, moved to the test set"] == 1
        return
    assert found == [
        ("P_00001", "L", "test"),
        ("P_00001", "L", "train"),
        ("P_00001", "R", "train"),
        ("P_00002", "L", "train"),
    ]
    # both copies of the film carry both lesions: none of them is a false negative
    assert len(dataset.annotations) == 6
    assert len({i["file_name"] for i in dataset.images}) == 4
    told = "patients of both splits, left there: the test set is not independent"
    assert reported(dataset, "kept")[told] == 1


def test_one_type_or_pathology_as_class(tree):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20))
    tree.add(
        "Calc-Test_P_00001_RIGHT_CC", (5, 10, 2, 2), cells={"pathology": "BENIGN_WITHOUT_CALLBACK"}
    )
    only = convert(tree.write(), tree.root / "out", types=("mass",))
    assert [row[1] for row in boxes_of(only)] == ["mass"]
    assert [i["split"] for i in only.images] == ["train"]  # mass alone does not leak
    both = convert(tree.root, tree.root / "out", category="pathology")
    assert sorted(row[1] for row in boxes_of(both)) == ["benign", "malignant"]


def test_a_film_with_a_lesion_of_no_class_is_no_negative(tree):
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20), cells={"pathology": "?"})
    tree.write()
    assert len(convert(tree.root, tree.root).annotations) == 1
    assert convert(tree.root, tree.root, category="pathology").images == []


def test_damaged_and_hostile_rows_are_one_line_each(tree):
    good = "Mass-Training_P_00009_LEFT_CC"
    tree.add(good, (5, 10, 12, 20))
    film = tree.film("Mass-Training_P_00001_LEFT_CC")
    crop, roi = tree.lesion("Mass-Training_P_00001_LEFT_CC", (1, 1, 5, 5))
    case = "Mass-Training_P_00001_LEFT_CC"
    tree.row(case, "../../../etc/0/passwd", crop, roi)
    tree.row(case, film, "x/9/9/a.dcm", "Mass-Training_P_00001_LEFT_CC_1/../../../0/x.dcm")
    tree.row("Mass-Training_P_00002_LEFT_CC", film.replace("00001", "00002"), crop, roi)
    black = "Mass-Training_P_00003_LEFT_CC"
    tree.add(black, (0, 0, 0, 0))
    no_mask = "Mass-Training_P_00004_LEFT_CC"
    tree.row(no_mask, tree.film(no_mask), "x/9/9/a.dcm", "x/9/9/b.dcm")
    cut = "Mass-Training_P_00005_LEFT_CC"
    tree.add(cut, (5, 5, 5, 5))
    tree.write()
    for path in tree.root.rglob("*.dcm"):
        if f"{cut}/" in path.as_posix():
            path.write_bytes(b"")
    dataset = convert(tree.root, tree.root / "out")
    assert _short(boxes_of(dataset)) == [(good, "mass", (5, 10, 12, 20))]
    dropped = reported(dataset, "dropped")
    assert dropped.pop("images: file is empty") == 1
    assert dropped == {
        "rows with a path that is none of CBIS-DDSM": 1,
        "films with a lesion that has no box": 3,
        "lesions whose film is missing": 1,
        "lesions without a mask (mask without a lesion)": 1,
        "lesions without a mask (none of two values and of the film's size)": 2,
        "lesions whose film cannot be read": 1,
    }


def test_each_damage_of_a_film_is_one_line(tree):
    """A lesion is one line, too; the film's own reason stands beside it."""
    expected = write_broken_dicoms(tree.root)
    good = "Mass-Training_P_00099_LEFT_CC"
    tree.add(good, (5, 10, 12, 20))
    for number, name in enumerate(expected):
        case = f"Mass-Training_P_0000{number}_LEFT_CC"
        tree.add(case, (5, 10, 12, 20))
        (film,) = (tree.root / f"CBIS-DDSM/{case}").rglob("*.dcm")
        (tree.root / name).replace(film)
    dataset = convert(tree.write(), tree.root / "out")
    assert _short(boxes_of(dataset)) == [(good, "mass", (5, 10, 12, 20))]
    assert reported(dataset, "dropped") == {
        **counts_of(expected),
        "lesions whose film cannot be read": len(expected),
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        convert(tmp_path / "no", tmp_path)
    with pytest.raises(UserError, match="holds no table of CBIS-DDSM"):
        convert(tmp_path, tmp_path)
