# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The sections of a model card; each is a function of the card's facts.

A fact that no file of the run holds is "not recorded".
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from detrex_mammo.evaluation.factors import IMAGE_FACTORS, sensitivity_by_factor
from detrex_mammo.evaluation.froc import FrocSettings
from detrex_mammo.zoo import text
from detrex_mammo.zoo.text import markdown

if TYPE_CHECKING:
    from detrex_mammo.zoo.card import CardFacts

UNKNOWN = "not recorded"
FPPI = 1.0  # false positives per image at which groups of lesions are compared
PAPER = "[paper](https://arxiv.org/abs/2010.04159)"


def summary(facts: "CardFacts") -> str:
    """Title, one sentence, and what the reader must not overlook."""
    entry = facts.entry
    classes = ", ".join(entry["classes"] or []) or f"classes {UNKNOWN}"
    verb = "trained with" if entry["kind"] == "trained" else "converted for"
    parts = [
        f"# {entry['name']}\n",
        f"{_variant(facts.run.config['model'])}; {verb} detrex_mammo. Detects: {classes}.\n",
    ]
    if facts.is_simulated:
        parts.append(
            "> **Simulated lesions.** The lesions of the evaluated data are simulated: no number "
            "below says anything about real ones.\n"
        )
    parts.append(
        "Not a medical device. Every entry below comes from the files of the run; what they do not "
        f'hold is "{UNKNOWN}".\n'
    )
    return "\n".join(parts)


def architecture(facts: "CardFacts") -> str:
    """What the network is."""
    model, size = facts.run.config["model"], facts.entry["model"]
    net = model.get("transformer") or {}
    shape = size["input_size"]
    at_size = f" for one image of {shape[0]}x{shape[1]} (height x width)" if shape else ""
    rows = [
        ["architecture", f"{_variant(model)} ({PAPER})" if net else _variant(model)],
        ["backbone", _backbone(model.get("backbone"))],
        ["feature levels", model.get("num_feature_levels")],
        ["layers, encoder / decoder", _pair(net, "num_encoder_layers", "num_decoder_layers")],
        ["width / heads", _pair(net, "embed_dim", "num_heads")],
        ["queries", model.get("num_queries")],
        ["parameters", _number(size["parameters"], "{:,}")],
        ["multiply-adds", _number(size["multiply_adds"], "{:.2f} G" + at_size, 1e-9)],
        ["classes", ", ".join(facts.entry["classes"] or []) or None],
        ["preprocessing", _preprocessing(facts.run.checkpoint_content.get("preprocessing"))],
    ]
    return _section("Architecture", _facts(rows))


def training(facts: "CardFacts") -> str:
    """Data and procedure, then hyperparameters."""
    told = facts.entry["training"]
    length = facts.run.record.get("training") or {}
    data = [f"{name}, annotations {_code(sha)}" for name, sha in (told["data"] or {}).items()]
    rows = [
        ["data", "<br>".join(data) or None],
        ["images", _number(length.get("images"), "{:,}")],
        ["started from", _start(facts.run.checkpoint_content.get("provenance") or {})],
        ["epochs", told["epochs"]],
        ["steps", _number(told["steps"], "{:,}")],
        ["command", text.command_text(told["command"], UNKNOWN)],
        ["commit", _code(told["commit"])],
    ]
    body = f"{_facts(rows)}\n### Hyperparameters\n\n{_facts(_hyperparameters(facts))}"
    return _section("Training", body)


def _hyperparameters(facts: "CardFacts") -> list[list[Any]]:
    config = facts.run.training_config
    schedule, optimizer = config.get("train") or {}, config.get("optimizer") or {}
    loader = (config.get("dataloader") or {}).get("train") or {}
    criterion = (config.get("model") or {}).get("criterion") or {}
    clip, amp = schedule.get("clip_grad"), schedule.get("amp")
    return [
        ["images a step", loader.get("total_batch_size")],
        ["augmentation", _augmentation(loader.get("mapper") or {})],
        ["optimizer", call_text(optimizer)],
        ["parameter groups", _rules(optimizer)],
        ["learning rate schedule", call_text(config.get("lr_multiplier"))],
        ["loss", call_text(criterion)],
        ["matching", call_text(criterion.get("matcher"))],
        ["gradient clipping", clip and (_pairs(clip["params"]) if clip["enabled"] else "none")],
        ["precision", amp and (amp["dtype"] if amp["enabled"] else "float32")],
        ["seed", facts.entry["training"]["seed"]],
    ]


def speeds(facts: "CardFacts") -> str:
    """Speeds, sizes, times, hardware, energy."""
    entry, energy = facts.entry, facts.energy
    speed, told = entry["speed"], entry["training"]
    of = f" ({speed['peak_memory_of']})" if speed["peak_memory_of"] else ""
    rows = [
        ["checkpoint size", _number(entry["checkpoint"]["bytes"], "{:.1f} MB", 1e-6)],
        ["images/s of the evaluation, with reading", _number(speed["images_per_second"], "{:.1f}")],
        ["images/s of the model alone", _number(speed["model_images_per_second"], "{:.1f}")],
        ["batch of the evaluation", speed["batch_size"]],
        ["hardware of the evaluation", text.hardware_text(speed, UNKNOWN)],
        ["peak memory", _number(speed["peak_memory_bytes"], "{:.2f} GB" + of, 1e-9)],
        ["hardware of the training", told["hardware"]],
        ["processes of the training", told["processes"]],
        ["hours of the training", _number(told["hours"], "{:.2f}, evaluations included")],
        ["energy of the training", energy and f"{energy.kwh:.3g} kWh"],
        ["CO2 equivalent of the training", energy and f"{energy.kg:.3g} kg"],
        ["how energy and CO2 were found", energy and energy.method],
    ]
    return _section("Speed, size, time, energy", _facts(rows))


def evaluation(facts: "CardFacts") -> str:
    """COCO's twelve, FROC, classes and the groups of lesions."""
    entry = facts.entry
    parts = [f"Evaluated on {text.data_text(entry['data'], UNKNOWN)}.\n"]
    coco = text.coco_table(entry["coco"], UNKNOWN)
    parts.append(coco or f"COCO's twelve numbers: {UNKNOWN}.\n")
    if entry["class_ap"]:
        rows = [[name, text.number(ap, "{:.1f}", "-")] for name, ap in entry["class_ap"].items()]
        parts.append(markdown(rows, ["class", "AP, percent"]))
    froc = entry["froc"]
    parts.append(text.froc_table(froc, UNKNOWN) if froc else f"FROC: {UNKNOWN}.\n")
    parts += ["### Factors\n", _factors(facts)]
    return _section("Evaluation", "\n".join(parts))


def _factors(facts: "CardFacts") -> str:
    """Sensitivity in groups of lesions, at one threshold for all."""
    run = facts.run
    if run.froc is None or run.annotations is None or run.predictions is None:
        return f"Sensitivity by class, lesion size, {', '.join(IMAGE_FACTORS)}: {UNKNOWN}.\n"
    overall = run.froc["overall"]
    settings = FrocSettings.from_dict(overall)
    cells = [
        [row.factor, row.group, str(row.num_lesions), f"{row.num_found / row.num_lesions:.3f}"]
        for row in sensitivity_by_factor(run.annotations, run.predictions, settings, FPPI)
    ]
    head = f"One score threshold for all groups: {FPPI:g} false positive per image over all data."
    return f"{head}\n\n{markdown(cells, ['factor', 'group', 'lesions', 'sensitivity'])}"


def limitations(facts: "CardFacts") -> str:
    """What follows from the facts, and what nobody has looked at."""
    return _section("Limitations", "".join(f"- {line}\n" for line in _limits(facts)))


def _limits(facts: "CardFacts") -> Iterator[str]:
    images = facts.run.annotations["images"] if facts.run.annotations is not None else []
    data = facts.entry["data"]
    if facts.is_simulated:
        yield "The lesions are simulated; performance on real ones is unknown."
    if images:
        patients = {image.get("patient_id") for image in images} - {None}
        of = f" of {len(patients)} patient{'s' * (len(patients) != 1)}" if patients else ""
        yield f"The evaluation rests on {len(images):,} images{of} and {data['boxes']:,} boxes."
    lacking = [
        name for name, key in IMAGE_FACTORS.items() if not any(image.get(key) for image in images)
    ]
    if lacking:
        yield f"Performance by {' and '.join(lacking)} is unknown: the data do not tell."
    yield "One run with one seed: how much the numbers vary from run to run was not measured."
    if facts.energy is None:
        yield "The energy of the training is unknown: the files do not tell what it took."
    yield "No clinical use was evaluated; thresholds must be chosen anew for any other data."


def provenance(facts: "CardFacts") -> str:
    """Where the numbers come from."""
    entry = facts.entry
    file, digest = entry["config"]["file"], entry["config"]["sha256"]
    source = [["converted from", _pairs(entry["source"])]] if entry["kind"] == "converted" else []
    rows = [
        ["checkpoint sha256", _code(entry["checkpoint"]["sha256"])],
        *source,
        ["annotations sha256", _code(entry["data"]["sha256"])],
        ["config", f"{f'{file}; ' if file else ''}config.yaml {_code(digest)}"],
        ["command of the evaluation", text.command_text(entry["command"], UNKNOWN)],
        ["commit of the evaluation", _code(entry["commit"])],
        ["versions", _pairs(entry["versions"])],
        ["date", entry["date"]],
        ["license of the weights", facts.license],
    ]
    return _section("Provenance", _facts(rows))


SECTIONS = (summary, architecture, training, speeds, evaluation, limitations, provenance)


def call_text(node: Any) -> str | None:
    """A lazy node as ``Name(argument=value, ...)``, without the nodes inside it."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return None
    name = str(node["_target_"]).rpartition(".")[2]
    plain = {k: v for k, v in node.items() if k != "_target_" and not isinstance(v, Mapping)}
    return f"`{name}({', '.join(f'{k}={v}' for k, v in plain.items())})`"


def _variant(model: Mapping[str, Any]) -> str:
    if "with_box_refine" not in model:
        return str(model.get("_target_", UNKNOWN)).rpartition(".")[2]
    levels = model.get("num_feature_levels")
    parts = ["Deformable DETR", "single-scale" if levels == 1 else f"{levels} feature levels"]
    parts += ["DC5"] if (model.get("backbone") or {}).get("dc5") else []
    parts += ["iterative box refinement"] if model["with_box_refine"] else []
    parts += ["two-stage"] if model.get("two_stage") else []
    return ", ".join(parts)


def _backbone(backbone: Any) -> str | None:
    if isinstance(backbone, Mapping) and "depth" in backbone:
        return f"ResNet-{backbone['depth']}, {call_text(backbone)}"
    return call_text(backbone)


def _pair(node: Mapping[str, Any], first: str, second: str) -> str | None:
    return f"{node[first]} / {node[second]}" if first in node and second in node else None


def _pairs(node: Any) -> str | None:
    """ "name value, name value"; None without any."""
    if not isinstance(node, Mapping) or not node:
        return None
    return ", ".join(f"{key} {value}" for key, value in node.items())


def _preprocessing(spec: Any) -> str | None:
    return _pairs({k: v for k, v in spec.items() if k != "_target_"}) if spec else None


def _augmentation(mapper: Mapping[str, Any]) -> str | None:
    branches = mapper.get("branches") or [mapper.get("augmentations") or []]
    texts = [", ".join(call_text(step) or UNKNOWN for step in branch) for branch in branches]
    return "<br>or ".join(filter(None, texts)) or None


def _rules(optimizer: Mapping[str, Any]) -> str | None:
    rules = (optimizer.get("params") or {}).get("rules") or []
    return "; ".join(f"`{_pairs(rule)}`" for rule in rules) or None


def _start(told: Mapping[str, Any]) -> str | None:
    """What training started from; None if the checkpoint does not tell."""
    if "init_checkpoint" not in told:
        return None
    source = told["init_checkpoint"]
    return f"{source['file']}, sha256 {_code(source['sha256'])}" if source else "random weights"


def _number(value: Any, pattern: str, scale: float | None = None) -> str:
    return text.number(value, pattern, UNKNOWN, scale)


def _code(value: str | None) -> str:
    return text.code(value, UNKNOWN)


def _facts(rows: list[list[Any]]) -> str:
    return markdown([[name, UNKNOWN if v is None else str(v)] for name, v in rows], ["", ""])


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"
