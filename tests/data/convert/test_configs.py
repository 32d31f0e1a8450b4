# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A data set's config says what its converter writes: files, folders, number and names of classes.

Each is held against its own miniature tree, so that neither can change without the other.
"""

import ast
import re
from pathlib import Path

import pytest

from detrex_mammo.config import load_config
from detrex_mammo.data.convert import omidb
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.registry import CONVERTERS, load
from detrex_mammo.data.split import SplitOptions, split_dataset
from tests.data.convert import (
    test_bcs_dbt,
    test_cbis_ddsm,
    test_csaw_cc,
    test_csaw_s,
    test_dmid,
    test_embed,
    test_inbreast,
    test_mini_mias,
    test_vindr,
)

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = "projects/mammography/configs/deformable_detr_r50_two_stage_{}_50ep.py"


def cbis_ddsm(root):
    tree = test_cbis_ddsm.Tree(root)
    tree.add("Mass-Training_P_00001_LEFT_CC", (5, 10, 12, 20))
    tree.add("Calc-Test_P_00002_LEFT_CC", (5, 10, 12, 20))
    return tree.write()


def inbreast(root):
    tree = test_inbreast.Tree(root)
    for number, patient in ((1001, "c4b9"), (1002, "77aa")):
        tree.add(str(number), patient, regions=[test_inbreast.region("Mass")])
    tree.convert()  # writes the table
    return root


def vindr_mammo(root):
    tree = test_vindr.Tree(root)
    tree.add("a", ("['Mass']", "BI-RADS 5", (2, 3, 12, 23)))
    tree.add("b", study="s2", split="test")
    return tree.write()


def mini_mias(root):
    return test_mini_mias._write(root, ["mdb001", "mdb005"])


def embed(root):
    tree = test_embed.Tree(root)
    for number in range(2):
        tree.add(f"a{number}", "[[3, 2, 23, 12]]", 1)
        tree.images[-1][0] = f"e{number}"
    tree.convert()
    return root


def csaw_s(root):
    test_csaw_s._write(root, (2, 3, 10, 20))
    test_csaw_s._write(root, (2, 3, 10, 20), image="150_0", folder="test_data/annotator_1")
    return root


def csaw_cc(root):
    tree = test_csaw_cc.Tree(root)
    for number in "78":
        tree.add(f"a{number}.dcm", number, 1, "Left", box=(2, 3, 10, 20))
    tree.convert()
    return root


def dmid(root):
    boxes = {1: [(5, 70, 14, 16)], 2: [(5, 7, 14, 16)]}
    return test_dmid._write(root, ["IMG001 F CIRC B", "IMG002 F CALC+CIRC M"], [1, 2], boxes)


def bcs_dbt(root):
    tree = test_bcs_dbt.Tree(root)
    tree.add("DBT-P1", "lcc", (3, 2, 3, 10, 20, "cancer"))
    tree.add("DBT-P2", "lcc", (3, 2, 3, 10, 20, "benign"), split="validation")
    tree.add("DBT-P3", "lcc", (3, 2, 3, 10, 20, "benign"), split="test")
    tree.convert()
    return root


TREES = {
    "cbis-ddsm": cbis_ddsm,
    "inbreast": inbreast,
    "vindr-mammo": vindr_mammo,
    "mini-mias": mini_mias,
    "embed": embed,
    "csaw-s": csaw_s,
    "csaw-cc": csaw_cc,
    "dmid": dmid,
    "bcs-dbt": bcs_dbt,
}


def config_of(converter):
    """A data set's config, its docstring, and (root, out) of the command in it."""
    name = {"omi-db": "omidb"}.get(converter, converter.replace("-", "_"))
    path = ROOT / CONFIGS.format(name)
    text = ast.get_docstring(ast.parse(path.read_text())).replace("\\\n", " ")
    found = re.search(rf"prepare_data.py {converter} --root (\S+)\s+--out (\S+)\n", text)
    assert found, text
    assert f"--config-file {CONFIGS.format(name)}" in " ".join(text.split())
    return load_config(str(path)), text, found.groups()


def assert_classes(config, text, names):
    assert config.model.num_classes == len(names)
    told = " ".join(re.search(r"Classes: (.*?)\.\n", text, re.S).group(1).split())
    assert told == ", ".join(names)
    assert "Not trained here." in text and "Data: " in text


def names_of(dataset: Dataset):
    return [category["name"] for category in dataset.to_coco()["categories"]]


@pytest.mark.parametrize("converter", TREES)
def test_a_config_says_what_its_converter_writes(converter, tmp_path):
    config, text, (root, out) = config_of(converter)
    module = load(converter)
    (tmp_path / "root").mkdir()
    dataset = module.convert(TREES[converter](tmp_path / "root"), tmp_path / "out")
    assert_classes(config, text, names_of(dataset))
    files = {
        path.relative_to(tmp_path / "out").as_posix() for path in dataset.write(tmp_path / "out")
    }
    if files == {"annotations.json"}:
        command = re.search(r"prepare_data.py split (\S+)\s+--out (\S+)\n", text)
        assert command.group(1) == f"{out}/annotations.json"
        folder = command.group(2).removeprefix(f"{out}/")
        split_dataset(
            [tmp_path / "out/annotations.json"], tmp_path / "out" / folder, SplitOptions(val=0.5)
        )
        files = {f"{folder}/{p.name}" for p in (tmp_path / "out" / folder).glob("*.json")}
    for loader in (config.dataloader.train, config.dataloader.test):
        assert loader.dataset.json_file.removeprefix(f"{out}/") in files
        image_root = out if getattr(module, "WRITES_IMAGES", False) else root
        assert loader.dataset.image_root == image_root
        image = tmp_path / ("out" if image_root == out else "root") / dataset.images[0]["file_name"]
        assert image.is_file()
    names = [loader.dataset.name for loader in (config.dataloader.train, config.dataloader.test)]
    assert len(set(names)) == 2


def test_the_config_of_omi_db_without_its_package():
    config, text, _ = config_of("omi-db")
    assert_classes(config, text, list(omidb.CATEGORIES))


def test_every_set_with_boxes_has_a_config_and_a_row_in_the_readme():
    sets = [
        name for name in CONVERTERS if name not in ("voc", "kitti", "yolo", "csv", "coco", "rsna")
    ]
    assert sorted(sets) == sorted([*TREES, "omi-db"])
    page = (ROOT / "projects/mammography/README.md").read_text()
    for name in sets:
        path = Path(CONFIGS.format({"omi-db": "omidb"}.get(name, name.replace("-", "_"))))
        assert f"| `{path.name}` |" in page
    assert "RSNA" in page
