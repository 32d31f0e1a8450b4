# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A model from a file alone."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from detrex_mammo.checkpoint import load_model
from detrex_mammo.config import find_shipped
from detrex_mammo.errors import UserError
from tests.checkpoint.live_models import (
    images,
    live_model,
    write_huggingface,
    write_other,
)
from tests.modeling.hf_oracle import NUM_QUERIES

DEMO = find_shipped("projects/mammography/checkpoints/demo_small.pth")


def test_any_format_gives_a_detectron2_model(tmp_path: Path) -> None:
    theirs = live_model("two_stage", num_classes=91)
    paths = [
        write_huggingface(theirs, tmp_path / "folder", "folder"),
        write_other(theirs, tmp_path / "official.pth", "official"),
    ]
    detections = []
    for path in paths:
        model = load_model(path)
        assert not model.training
        assert model.checkpoint_classes["names"][0] == "person"
        inputs = [{"image": image, "height": 60, "width": 90} for image in images()]
        with torch.no_grad():
            detections.append([output["instances"] for output in model(inputs)])
    for one, other in zip(*detections):
        assert one.image_size == (60, 90)
        assert one.pred_classes.max() < 80
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
        torch.testing.assert_close(one.scores, other.scores)


def test_boxes_are_those_of_the_source_model(tmp_path: Path) -> None:
    """An official file of 91 outputs: every detection is one of the source's, within 1e-4."""
    theirs = live_model("two_stage", num_classes=91)
    model = load_model(write_other(theirs, tmp_path / "official.pth", "official"))
    image = images()[0]
    height, width = image.shape[-2:]
    with torch.no_grad():
        found = model([{"image": image, "height": 1, "width": 1}])[0]["instances"]
        expected = theirs(pixel_values=model.normalize(image)[None])
    scores = expected.logits[0].sigmoid()[:, model_rows(model)].flatten()
    best, index = scores.topk(len(found))
    torch.testing.assert_close(found.scores, best, rtol=0, atol=1e-5)
    assert found.pred_classes.tolist() == (index % 80).tolist()
    cx, cy, w, h = expected.pred_boxes[0][index // 80].unbind(-1)
    boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-4)


def model_rows(model) -> list[int]:
    return model.checkpoint_classes["ids"]


def test_our_own_file(tmp_path: Path) -> None:
    model = load_model(DEMO)
    assert model.checkpoint_classes == {
        "names": ["mass", "calcification cluster"],
        "ids": [1, 2],
    }
    output = model([{"image": torch.rand(3, 128, 96) * 255}])[0]["instances"]
    assert len(output) == 60


def rewritten(tmp_path: Path, **changes) -> Path:
    """The demo's checkpoint with another model in its config."""
    content = torch.load(DEMO, weights_only=True)
    config = yaml.safe_load(content["config"])
    config["model"].update(changes)
    torch.save({**content, "config": yaml.safe_dump(config)}, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "detrex_mammo.modeling.detector.torch.os.system",
        "detrex_mammo.modeling.backbone.build_resnet.__globals__",
        "builtins.exec",
    ],
)
def test_a_strangers_config_runs_nothing(target: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    attack = {"_target_": target, "command": f"touch {victim}"}
    for changes in (attack, {"criterion": attack}, {"backbone": {"x": [attack]}}):
        with pytest.raises(UserError, match="which is not run"):
            load_model(rewritten(tmp_path, **changes))
    assert not victim.exists()


def test_a_url(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    write_other(live_model("multi_scale"), tmp_path / "m.pth", "official")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        model = load_model(f"http://127.0.0.1:{server.server_port}/m.pth")
        server.shutdown()
    assert model.num_queries == NUM_QUERIES


@pytest.mark.parametrize("place", ["backbone", "criterion", "transformer"])
@pytest.mark.parametrize("reference", ["${evil}", "${oc.decode:'${evil}'}"])
def test_an_interpolation_hides_nothing(place: str, reference: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    content = torch.load(DEMO, weights_only=True)
    config = yaml.safe_load(content["config"])
    config["evil"] = {"_target_": "os.system", "command": f"touch {victim}"}
    config["model"][place] = reference
    torch.save({**content, "config": yaml.safe_dump(config)}, tmp_path / "m.pth")
    with pytest.raises(UserError):
        load_model(tmp_path / "m.pth")
    assert not victim.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_queries": "${nothing.there}"},
        {"num_queries": "${model.num_queries}"},
        {"transformer": 5},
        {"bogus": 1},
        {"num_queries": "many"},
        {"in_features": {}},
    ],
)
def test_a_damaged_config_is_one_sentence(changes, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(rewritten(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "none.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "r50.pth")
    with pytest.raises(UserError, match="backbone only"):
        load_model(tmp_path / "r50.pth")
    with pytest.raises(UserError, match="does not fit this model"):
        load_model(rewritten(tmp_path, num_classes=3))
