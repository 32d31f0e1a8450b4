# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A model card: YAML that the Hub's own library reads, and nothing in it that no file tells."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.card import model_card, write_card
from detrex_mammo.zoo.run_folder import read_run_folder
from tests.zoo.run_folders import write_by_hand


def card_of(folder: Path, **options) -> str:
    return model_card(read_run_folder(folder), **options)


def matter_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def facts_of(card: str) -> dict[str, str]:
    """Rows of the card's tables of two columns."""
    return dict(re.findall(r"^\| ([^|]+) \| ((?:[^|]|\\\|)+) \|$", card, re.MULTILINE))


def test_front_matter_and_the_library_that_reads_it(trained: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = card_of(trained, license_id="apache-2.0")
    matter = matter_of(card)
    assert matter["license"] == "apache-2.0" and matter["pipeline_tag"] == "object-detection"
    assert matter["library_name"] == "detrex_mammo" and "mammography" in matter["tags"]
    assert matter["datasets"] == [f"tiny_{trained.parent / 'coco.json'}"]
    read = hub.ModelCard(card, ignore_metadata_errors=False).data
    assert read.to_dict()["license"] == "apache-2.0"
    results = {result.metric_name: result for result in read.eval_results}
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    ap = results["AP (IoU 0.50 to 0.95, percent)"]
    assert ap.task_type == "object-detection" and ap.metric_type == "mAP"
    assert ap.metric_value == pytest.approx(last["bbox/AP"], abs=1e-3)
    name = "sensitivity at 1 false positive per image"
    assert results[name].metric_value == pytest.approx(last["froc/sens@1"], abs=1e-4)


def test_a_training_run_fills_its_card(trained: Path) -> None:
    card = card_of(trained)
    facts = facts_of(card)
    record = json.loads((trained / "run.json").read_text())
    session = record["sessions"][0]
    assert facts["images"] == "6" and facts["steps"] == "3" and facts["epochs"] == "1"
    assert facts["images a step"] == "2" and facts["seed"] == "42"
    assert facts["optimizer"].startswith("`AdamW(lr=0.0001, ")
    assert "weight_class=2.0" in facts["loss"] and facts["precision"] == "float32"
    assert facts["gradient clipping"] == "max_norm 0.1, norm_type 2.0"
    assert facts["started from"] == "random weights"
    assert facts["hardware of the training"].startswith(session["machine"]["cpu"])
    hours = round(session["seconds"] / 3600, 4)
    cores = session["machine"]["cores"]
    assert facts["hours of the training"].startswith(f"{hours:.2f}")
    assert facts["energy of the training"] == f"{hours * cores * 10 / 1000:.3g} kWh"
    assert "assumed" in facts["how energy and CO2 were found"]
    assert "two-stage" in facts["architecture"] and "not recorded" not in facts["preprocessing"]
    assert facts["license of the weights"] == "not recorded"
    for title in ("Architecture", "Training", "Evaluation", "Limitations", "Provenance"):
        assert f"\n## {title}\n" in card
    assert "| vendor | not recorded | 5 |" in card  # the five boxes of this data
    assert "6 images of 6 patients and 5 boxes" in card
    assert "Simulated" not in card
    assert not re.search(r"\b(None|nan)\b", card)


def test_a_card_of_the_evaluation_alone_does_not_know_hours(evaluated: Path) -> None:
    facts = facts_of(card_of(evaluated))
    assert facts["hours of the training"] == "not recorded"
    assert facts["energy of the training"] == "not recorded"
    assert facts["epochs"] == "1"  # the checkpoint tells
    assert "not recorded" not in facts["hardware of the evaluation"]


def test_codecarbons_figures_are_the_trainings(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "emissions.csv").write_text("emissions,energy_consumed\n0.25,1.5\n")
    facts = facts_of(card_of(run))
    assert facts["energy of the training"] == "1.5 kWh"
    assert facts["CO2 equivalent of the training"] == "0.25 kg"


def test_what_no_file_tells_is_not_recorded(tmp_path: Path) -> None:
    card = card_of(write_by_hand(tmp_path / "run"))
    facts = facts_of(card)
    for name in ("batch of the evaluation", "peak memory", "hardware of the evaluation", "date"):
        assert facts[name] == "not recorded"
    for name in ("checkpoint sha256", "annotations sha256", "command of the evaluation"):
        assert facts[name] == "not recorded"
    assert "FROC: not recorded" in card and "COCO's twelve numbers: not recorded" in card
    assert "vendor, view: not recorded" in card
    assert "12.5" not in card  # the AP that metrics.json reports is of an unknown cut
    matter = matter_of(card)
    assert matter["license"] == "unknown" and "model-index" not in matter
    assert "None" not in card


def test_simulated_lesions_are_told_first(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    froc = json.loads((run / "froc.json").read_text())
    (run / "froc.json").write_text(json.dumps({**froc, "note": "simulated lesions"}))
    card = card_of(run)
    matter = matter_of(card)
    assert "simulated-lesions" in matter["tags"]
    dataset = matter["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"].endswith(" (simulated lesions)")
    assert "**Simulated lesions.**" in card.split("## Architecture")[0]


def test_nothing_is_overwritten(evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "card.md"
    assert write_card(evaluated, out) == out
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists: remove it"):
        write_card(evaluated, out)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="there is no folder"):
        write_card(evaluated, tmp_path / "none" / "card.md")
    with pytest.raises(UserError, match="must be above 0"):
        write_card(evaluated, tmp_path / "other.md", watts=-1)
