# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Training data as a config describes it, and runs of tools/train_net.py's main on it."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from omegaconf import OmegaConf

from detrex_mammo.data.loader import build_train_loader
from detrex_mammo.data.order import Order
from detrex_mammo.data.sampling import Sampling
from detrex_mammo.engine.loaders import (
    annotation_files,
    build_train_data,
    check_classes,
    dataset_names,
)
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import CONFIG, TinyMapper, read_lines, tiny_dataset

NUM_IMAGES, NUM_POSITIVES = 12, 4


def records(num_images: int = NUM_IMAGES) -> list[dict]:
    """Tiny images; the first four have boxes, of two classes; two datasets, patients of two."""
    found = tiny_dataset(num_images)
    for number, record in enumerate(found):
        record["annotations"] = [{"category_id": int(number == 0)}] * (number < NUM_POSITIVES)
        record["dataset"], record["patient_id"] = "ab"[number % 2], str(number // 3)
    return found


class NoisyMapper(TinyMapper):
    """A mapper whose images are different each time."""

    def __call__(self, item: dict) -> dict:
        mapped = super().__call__(item)
        mapped["image"] = mapped["image"] + 0.1 * torch.randn(mapped["image"].shape)
        return mapped


class AttachedMapper(TinyMapper):
    """A mapper that asks for the dataset."""

    def attach(self, dataset: list[dict]) -> None:
        self.attached = dataset


def write_config(folder: Path, output: str = "run") -> str:
    """The tiny config with this package's loader."""
    text = CONFIG.format(output=folder / output)
    start, stop = text.index("train=L("), text.index("test=L(")
    ours = (
        "train=L(build_train_loader)(dataset=L(records)(), mapper=L(NoisyMapper)(),"
        " sampling=L(Sampling)(), total_batch_size=4, num_workers=0),\n    "
    )
    text = text[:start] + ours + text[stop:]
    imports = (
        "from detrex_mammo.data.loader import build_train_loader\n"
        "from detrex_mammo.data.sampling import Sampling\n"
        "from tests.engine.test_loaders import NoisyMapper, records\n"
    )
    path = folder / "config.py"
    path.write_text(imports + text)
    return str(path)


def run(folder: Path, *arguments: str, output: str = "run") -> Path:
    config = write_config(folder, output)
    main(["--config-file", config, "dataloader.evaluator=null", *arguments])
    return folder / output


def node(**more):
    settings = {"total_batch_size": 4, "num_workers": 0, **more}
    return L(build_train_loader)(dataset=L(records)(), mapper=L(TinyMapper)(), **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_has_the_augmentation_of_an_uninterrupted_one(
    num_workers: int, tmp_path: Path
) -> None:
    """Noise is in every image, so that every loss shows it; stopped in the second epoch."""
    workers = f"dataloader.train.num_workers={num_workers}"
    whole = run(tmp_path, "train.max_iter=8", output="whole")
    run(tmp_path, workers, "train.max_iter=4")
    resumed = run(tmp_path, workers, "--resume", "train.max_iter=8")
    for key in ("total_loss", "grad_norm"):
        losses = read_lines(resumed / "metrics.json", key)
        assert losses == read_lines(whole / "metrics.json", key) and len(set(losses)) == 8


@pytest.mark.parametrize(
    ("settings", "num_images", "steps"),
    [
        ([], 12, 3),
        (["negatives_per_positive=1.0"], 8, 2),  # 4 with boxes and 4 without
        (["negatives_per_positive=1.0", "natural_after_epochs=2"], 12, 3),
        (["class_balance=1"], 14, 4),  # classes in 1 and 3 images: one image three times
        (["patient_balance=true"], 12, 3),
        (["dataset_weights={a: 1, b: 3}"], 12, 3),
        (["hard_negatives={file}", "hard_negative_factor=5"], 16, 4),  # one image five times
    ],
)
def test_run_with_each_rule(settings, num_images: int, steps: int, tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps([{"image_id": 7, "score": 0.9, "category_id": 1, "bbox": [0] * 4}]))
    rules = [f"dataloader.train.sampling.{text}".replace("{file}", str(file)) for text in settings]
    folder = run(tmp_path, "train.epochs=1", *rules)
    assert len(read_lines(folder / "metrics.json", "total_loss")) == steps
    assert f"{num_images} images, batch 4" in (folder / "log.txt").read_text()


def test_run_with_a_token_budget(tmp_path: Path) -> None:
    """Two epochs in two sittings; 100 pixels are three images of 6x5 or two of 6x6."""
    settings = ("token_budget=100", "max_padding=0.0")
    arguments = [f"dataloader.train.{text}" for text in settings]
    steps = build_train_data(node(token_budget=100, max_padding=0.0), 42).iters_per_epoch
    assert 5 <= steps <= 12
    folder = run(tmp_path, "train.epochs=1", *arguments)
    assert len(read_lines(folder / "metrics.json", "total_loss")) == steps
    assert f"{steps} steps an epoch" in (folder / "log.txt").read_text()
    run(tmp_path, "train.epochs=2", "--resume", *arguments)
    assert len(read_lines(folder / "metrics.json", "total_loss")) == 2 * steps


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("sampling.negatives_per_positives=1", "negatives_per_positive'"),
        ("sampling.negatives_per_positive=-1", "negatives_per_positive is -1"),
        ("sampling.dataset_weights={c: 1}", "names 'c'"),
        ("token_budget=big", "token_budget is 'big'"),
        ("total_batch_size=0", "must be above 0 and a multiple of"),
        ("num_workers=-1", "dataloader.train.num_workers is -1; give the processes"),
    ],
)
def test_wrong_setting_of_a_run_is_one_sentence(setting: str, expected: str, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, f"dataloader.train.{setting}")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_steps_of_an_epoch_show_every_image() -> None:
    """12 images in fives: three steps. With a budget of 100 pixels: at most 3 of 30, 2 of 36."""
    fixed = build_train_data(node(total_batch_size=5), seed=1)
    assert (fixed.num_images, fixed.batch_size, fixed.iters_per_epoch) == (12, 5, 3)
    budget = build_train_data(node(token_budget=100), seed=1)
    batches = list(islice(budget.loader, budget.iters_per_epoch))
    assert (budget.num_images, budget.batch_size) == (12, round(12 / len(batches)))
    assert sorted(item["image_id"] for batch in batches for item in batch) == list(range(12))
    assert max(map(len, batches)) == 3
    batches = islice(fixed.loader, 3)
    assert {item["image_id"] for batch in batches for item in batch} == set(range(12))


def test_start_is_counted_in_steps_of_the_loader() -> None:
    def ids(start_iter: int, count: int) -> list[list[int]]:
        data = build_train_data(node(token_budget=100), 1, start_iter)
        return [[item["image_id"] for item in batch] for batch in islice(data.loader, count)]

    assert ids(7, 4) == ids(0, 11)[7:]


def test_detectron2_s_loader_still_gets_a_sampler() -> None:
    given = L(build_detection_train_loader)(
        dataset=L(records)(), mapper=L(TinyMapper)(), total_batch_size=5,
        aspect_ratio_grouping=False, num_workers=0,
    )  # fmt: skip
    whole, late = build_train_data(given, 3), build_train_data(given, 3, start_iter=2)
    assert (whole.num_images, whole.batch_size, whole.iters_per_epoch) == (12, 5, 3)
    batches = [[item["image_id"] for item in batch] for batch in islice(whole.loader, 5)]
    assert [[i["image_id"] for i in batch] for batch in islice(late.loader, 3)] == batches[2:]


def test_sampler_of_the_config_s_own_is_used() -> None:
    only = L(Order)(dataset=L(records)(), seed=9, sampling=L(Sampling)(negatives_per_positive=0))
    data = build_train_data(node(sampler=only), seed=1)
    assert {item["image_id"] for item in next(iter(data.loader))} == set(range(4))


def test_mapper_that_mixes_images_gets_the_dataset() -> None:
    given = node()
    given.mapper = L(AttachedMapper)()
    assert build_train_data(given, 0).mapper.attached == records()


def test_names_of_a_dataset_of_parts(tmp_path: Path) -> None:
    parts = {"inbreast": {"json_file": "a.json"}, "vindr": {"json_file": "b.json"}}
    mixed = OmegaConf.create({"dataset": {"name": "mixed_names", "parts": parts}})
    assert dataset_names(mixed) == ["mixed_names"]
    file = tmp_path / "a.json"
    file.write_text("{}")
    MetadataCatalog.get("mixed_names").set(json_files={"x": str(file), "y": "/no/such.json"})
    assert annotation_files(["mixed_names"]) == {"mixed_names/x": str(file)}
    assert "mixed_names" not in DatasetCatalog.list()


def named_dataset(name: str, classes: list[str]) -> str:
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(thing_classes=classes)
    return name


@pytest.mark.parametrize("classes", [["cyst", "mass"], ["mass", "lump"]])
def test_classes_in_another_order_or_half_renamed_are_refused(classes: list[str]) -> None:
    """Scored by place, a mass would count as a cyst: all figures fall without a word."""
    model = torch.nn.Module()
    model.num_classes = 2
    check_classes(model, [named_dataset("order_train", ["mass", "cyst"])])
    with pytest.raises(UserError) as caught:
        check_classes(model, [named_dataset("order_val", classes)])
    text = str(caught.value)
    assert "'order_val' has the classes " + ", ".join(classes) in text and "mass, cyst" in text
    check_classes(model, [named_dataset("order_val", ["mass", "cyst"])])


def test_classes_with_none_of_the_names_are_taken_in_order(caplog) -> None:
    model = torch.nn.Module()
    model.num_classes = 1
    check_classes(model, [named_dataset("order_train", ["mass"])])
    check_classes(model, [named_dataset("order_val", ["lesion"])])
    assert "in this order" in caplog.text
