# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""INbreast's traps: names, points, plist, patients, images without an XML file."""

import plistlib

import pytest

from detrex_mammo.data.convert.inbreast import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    counts_of,
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
)

SQUARE = ["(5.5, 6.25)", "(15.5, 6.25)", "(10, 26.25)"]
NAMES = {
    "Mass": "mass",
    "Calcification": "calcification",
    "Calcifications": "calcification",
    "Cluster": "calcification cluster",
    "Spiculated Region": "spiculated region",
    "Spiculated region": "spiculated region",
    "Espiculated Region": "spiculated region",
    "Distortion": "architectural distortion",
    "Asymmetry": "asymmetry",
    "Assymetry": "asymmetry",
    "Unnamed": None,
    "Point 1": None,
    "Point 3": None,
}
BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(
        b'<!ENTITY a%d "%s">' % (i, b"&a%s;" % (str(i - 1).encode() if i else b"") * 10)
        for i in range(9)
    )
    + b"]><plist><dict><key>Images</key><string>&a8;</string></dict></plist>"
)


def region(name, points=SQUARE):
    return {"Name": name, "Area": 0.0, "NumberOfPoints": len(points), "Point_px": points, "Type": 9}


class Tree:
    def __init__(self, root):
        self.root = root
        self.folder = root / "INbreast Release 1.0"
        (self.folder / "AllXML").mkdir(parents=True)
        self.rows = [
            "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"
        ]

    def add(self, number, patient="c4b9", side="R", view="CC", regions=None, birads="2", row=None):
        name = f"{number}_{patient}_MG_{side}_{view}_ANON.dcm"
        write_dicom(self.folder / "AllDICOMs" / name, (60, 40), bits=14, PatientID="removed")
        if regions is not None:
            self.xml(number, plistlib.dumps({"Images": [{"ImageIndex": 0, "ROIs": regions}]}))
        shown = row or f"{side};{'MLO' if view == 'ML' else view}"
        self.rows.append(f"removed;removed;{shown};201001;{number};3;{birads}")

    def xml(self, number, data):
        (self.folder / "AllXML" / f"{number}.xml").write_bytes(data)

    def convert(self, **options):
        (self.folder / "INbreast.csv").write_text("\r\n".join(self.rows) + "\r\n")
        return convert(self.root, self.root / "out", **options)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def _files(dataset, *keys):
    return {file.split("/")[-1][:4]: rest for file, rest in images_of(dataset, *keys).items()}


def test_patient_side_view_density_and_birads(tree):
    tree.add("1001", "c4b9", "R", "CC", birads="4a")
    tree.add("1002", "c4b9", "L", "ML", birads="6")
    tree.add("1003", "77aa", "L", "CC")
    dataset = tree.convert()
    keys = ("patient_id", "study_id", "laterality", "view", "density", "birads", "bits_stored")
    assert _files(dataset, *keys) == {
        "1001": ("c4b9", "c4b9_201001", "R", "CC", "C", "4a", 14),
        "1002": ("c4b9", "c4b9_201001", "L", "MLO", "C", "6", 14),
        "1003": ("77aa", "77aa_201001", "L", "CC", "C", "2", 14),
    }
    assert reported(dataset, "kept") == {"images": 3, "images without XML, which are normal": 3}
    assert reported(dataset, "fixed") == reported(dataset, "dropped") == {}


def test_all_thirteen_names(tree):
    tree.add("1001", regions=[region(name) for name in NAMES], birads="5")
    dataset = tree.convert()
    found = [(row[3], row[1]) for row in boxes_of(dataset, "region_name")]
    assert found == [(name, category) for name, category in NAMES.items() if category]
    assert {row[2:] for row in boxes_of(dataset, "source", "birads")} == {
        ((5.5, 6.25, 10, 20), "polygon", "5")
    }
    assert reported(dataset, "dropped") == {"regions without a meaning (Unnamed, Point N)": 3}


@pytest.mark.parametrize("points", ["skip", "pad", "ignore"])
def test_calcifications_of_one_point(tree, points):
    regions = [region("Calcification", ["(20.0, 30.0)"]), region("Cluster")]
    regions.append(region("Calcification", ["(0.0, 0.0)"]))  # the box leaves the image
    tree.add("1001", regions=regions)
    dataset = tree.convert(points=points, point_size=6)
    cluster = ("calcification cluster", (5.5, 6.25, 10, 20), "polygon", 0, None)
    found = [row[1:] for row in boxes_of(dataset, "source", "iscrowd", "ignore")]
    if points == "skip":
        assert found == [cluster]
        assert reported(dataset, "dropped") == {"calcification: points without area": 2}
        return
    flags = (1, 1) if points == "ignore" else (0, None)
    assert found == [
        ("calcification", (17, 27, 6, 6), "point", *flags),
        cluster,
        ("calcification", (0, 0, 3, 3), "point", *flags),
    ]
    assert reported(dataset, "fixed") == {
        "calcification: points made boxes": 2,
        "boxes cut at the image's border": 1,
    }


def test_table_that_contradicts_the_file_name(tree):
    tree.add("1001", side="R", row="L;CC")
    dataset = tree.convert()
    assert _files(dataset, "laterality") == {"1001": ("R",)}
    assert sum(reported(dataset, "fixed").values()) == 1


def test_damaged_and_hostile_files_are_one_line_each(tree):
    tree.add("1000", regions=[region("Mass")])
    bad = {
        "1001": BOMB,
        "1002": b"",
        "1003": plistlib.dumps({"Images": [{"ROIs": [region("Mass")]}]})[:200],
        "1004": plistlib.dumps({"Images": 3}),
        "1005": b"<plist>" + b"<array>" * 20000,
        "1006": plistlib.dumps({"Images": []}, fmt=plistlib.FMT_BINARY),
        "1007": b'<!DOCTYPE p SYSTEM "file:///etc/passwd" [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b"<plist><dict><key>Images</key><string>&x;</string></dict></plist>",
    }
    for number, data in bad.items():
        tree.add(number)
        tree.xml(number, data)
    for number, points in (("1010", ["__import__('os').system('false')"]), ("1011", ["(1, e)"])):
        tree.add(number, regions=[region("Mass", points), region("Mass")])
    tree.add("1012", regions=[region("Mass", [])])
    tree.add("1008", regions=[region("Sausage"), region("Mass")])
    tree.add("1009", regions=[region("Mass")])
    (tree.folder / "AllDICOMs/1009_c4b9_MG_R_CC_ANON.dcm").write_bytes(b"")
    (tree.folder / "AllDICOMs/other.dcm").write_bytes(b"")
    tree.xml("4711", b"")
    dataset = tree.convert()
    assert sorted(_files(dataset)) == ["1000", "1008"]
    assert [row[1] for row in boxes_of(dataset)] == ["mass", "mass"]
    assert reported(dataset, "dropped") == {
        "images whose XML cannot be read": 10,
        "regions of an unknown name 'Sausage'": 1,
        "images: file is empty": 1,
        "regions of an image that cannot be read": 1,
        "files not named as INbreast's": 1,
        "XML files without an image": 1,
    }


def test_each_damaged_dicom_is_one_line(tree):
    expected = write_broken_dicoms(tree.root)
    for number, name in enumerate(expected, 1001):
        tree.add(str(number), regions=[region("Mass")])
        target = tree.folder / f"AllDICOMs/{number}_c4b9_MG_R_CC_ANON.dcm"
        (tree.root / name).replace(target)
    tree.add("2000", regions=[region("Mass")])
    dataset = tree.convert()
    assert list(_files(dataset)) == ["2000"] and len(dataset.annotations) == 1
    assert reported(dataset, "dropped") == {
        **counts_of(expected),
        "regions of an image that cannot be read": len(expected),
    }


def test_without_table(tree):
    tree.add("1001", regions=[region("Mass")])
    dataset = convert(tree.root, tree.root / "out")
    assert _files(dataset, "density", "birads") == {"1001": (None, None)}
    assert len(dataset.annotations) == 1


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no DICOM of INbreast"):
        convert(tmp_path, tmp_path)
