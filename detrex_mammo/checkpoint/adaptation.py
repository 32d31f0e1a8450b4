# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Start a model of other classes from trained weights: what to keep is named, and reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from detrex_mammo.checkpoint.classes import nearest_rows
from detrex_mammo.checkpoint.heads import HEAD
from detrex_mammo.errors import UserError

State = dict[str, torch.Tensor]
CLASS_POLICIES = ("same", "reinitialise", "by_name")


@dataclass(frozen=True)
class Policy:
    """What heads take from a checkpoint.

    Attributes:
        classes: "same": the outputs are the same classes in the same order; "reinitialise": they
            start afresh; "by_name": outputs of classes that both have are kept; or a mapping
            {class here: class there}, the others starting afresh.
        objectness: keep output 0 of a two-stage model's proposal head, whatever the classes.
        boxes: keep the box heads.
        min_share: refuse to start when a smaller share of the parameters comes from the file.
    """

    classes: str | Mapping[str, str] = "same"
    objectness: bool = True
    boxes: bool = True
    min_share: float = 0.9

    def __post_init__(self) -> None:
        if not _is_choice(self.classes):
            raise UserError(
                f"train.init.classes is {self.classes!r}, but must be one of "
                f"{', '.join(CLASS_POLICIES)} or a mapping {{class here: class in the checkpoint}}"
            )
        for name in ("objectness", "boxes"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(
                    f"train.init.{name} is {getattr(self, name)!r}, but must be true or false"
                )
        if self.classes == "same" and not self.objectness:
            raise UserError(
                "train.init.objectness is False, but train.init.classes keeps the heads as they "
                "are: set train.init.classes=reinitialise or by_name too"
            )
        if not isinstance(self.min_share, (int, float)) or not 0 <= self.min_share <= 1:
            raise UserError(f"train.init.min_share is {self.min_share!r}, but must be in [0, 1]")


def _is_choice(classes: object) -> bool:
    if isinstance(classes, Mapping):
        names = [*classes, *classes.values()]
        return bool(names) and all(isinstance(name, str) for name in names)
    return isinstance(classes, str) and classes in CLASS_POLICIES


@dataclass
class LoadReport:
    """How many parameters came from where.

    Attributes:
        parts: part of the model -> (parameters from the file, parameters in all).
        notes: a sentence for each choice.
        fresh_classes: the model's classes that start afresh, where their names are known.
    """

    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fresh_classes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of all parameters that came from the file."""
        total = sum(all_of for _, all_of in self.parts.values())
        return sum(kept for kept, _ in self.parts.values()) / max(total, 1)

    def describe(self) -> str:
        """One line for each part."""
        lines = [
            f"  {part:<12} {kept / 1e6:9.3f} of {total / 1e6:.3f} M parameters from the file"
            for part, (kept, total) in self.parts.items()
        ]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def adapt(
    state: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    policy: Policy,
    names: Sequence[str],
    stored_names: Sequence[str],
) -> tuple[State, LoadReport]:
    """Fit a checkpoint's heads to a model.

    Args:
        state: the checkpoint, by our names.
        own: the model's state dict, as it starts.
        policy: what to keep.
        names: the model's classes in the order of its outputs; empty if nobody knows.
        stored_names: the same of the checkpoint.

    Returns:
        tuple[dict, LoadReport]: weights that fit the model wherever ``state`` did but for its
        heads.

    Raises:
        UserError: classes cannot be told, or stand in another order.
    """
    _check_width(names, own, "data set")
    _check_width(stored_names, state, "checkpoint")
    result, fresh = dict(state), dict.fromkeys(own, 0)
    report = LoadReport()
    if policy.classes == "same":
        _check_order(names, stored_names, report)
    else:
        rows = _rows(policy.classes, names, stored_names)
        _adapt_class_heads(result, own, rows, policy.objectness, fresh, report)
        _say_rows(rows, names, stored_names, report)
    if not policy.boxes:
        for name in own:
            if name.startswith("bbox_embed."):
                result[name], fresh[name] = own[name], own[name].numel()
        report.notes.append("box heads start afresh")
    report.parts = _count(own, result, fresh)
    return result, report


def _check_width(names: Sequence[str], state: Mapping[str, torch.Tensor], whose: str) -> None:
    """Names are rows of the class heads: there must be one for each."""
    bias = state.get("class_embed.0.bias")
    if names and bias is not None and len(names) != bias.numel():
        raise UserError(
            f"the {whose} names {len(names)} class(es) ({', '.join(names[:5])}), but the class "
            f"heads have {bias.numel()} output(s)"
        )


def _adapt_class_heads(result, own, rows, objectness, fresh, report) -> None:
    heads = [name for name in own if (m := HEAD.fullmatch(name)) and m[1] == "class_embed"]
    if not heads:
        raise UserError(
            "train.init.classes is set, but this model has no class heads (class_embed)"
        )
    has_proposals = any(name.startswith("transformer.enc_output.") for name in own)
    last = max(int(HEAD.fullmatch(name)[2]) for name in heads)
    for name in heads:
        is_proposal = has_proposals and int(HEAD.fullmatch(name)[2]) == last
        kept = ({0: 0} if objectness else {}) if is_proposal else rows
        adapted = own[name].clone()
        stored = result.get(name)
        if stored is None or stored.dim() == 0 or stored.shape[1:] != adapted.shape[1:]:
            continue  # said as missing or mis-shaped when the weights are loaded
        for row, stored_row in kept.items():
            adapted[row] = stored[stored_row].to(adapted)
        result[name] = adapted
        fresh[name] = adapted.numel() - len(kept) * (adapted.numel() // len(adapted))
    if has_proposals:
        report.notes.append(f"objectness {'is kept' if objectness else 'starts afresh'}")


def _rows(
    classes: str | Mapping[str, str], names: Sequence[str], stored: Sequence[str]
) -> dict[int, int]:
    """Output here -> output in the checkpoint."""
    if classes == "reinitialise":
        return {}
    for whose, known in (("data set", names), ("checkpoint", stored)):
        if not known:
            raise UserError(
                f"train.init.classes is {classes!r}, but the {whose} does not tell its classes: "
                "use 'reinitialise'"
            )
    pairs = {name: name for name in names} if isinstance(classes, str) else dict(classes)
    here, there = nearest_rows(list(pairs), names), nearest_rows(list(pairs.values()), stored)
    rows = {here[a]: there[b] for a, b in pairs.items() if a in here and b in there}
    lost = [f"{a}: {b}" for a, b in pairs.items() if a not in here or b not in there]
    if lost and not isinstance(classes, str):
        raise UserError(
            f"train.init.classes has {lost[0]!r}, but the data set's classes are "
            f"{', '.join(names[:10])} and the checkpoint's {', '.join(stored[:10])}"
        )
    if not rows:
        raise UserError(
            f"train.init.classes is 'by_name', but no class of the data set "
            f"({', '.join(names[:5])}) is among the checkpoint's ({', '.join(stored[:5])}): "
            "use 'reinitialise'"
        )
    return rows


def _say_rows(rows, names, stored, report) -> None:
    kept = [f"{names[a]} <- {stored[b]}" for a, b in rows.items()]
    report.fresh_classes = [name for row, name in enumerate(names) if row not in rows]
    if kept:
        report.notes.append("classes kept: " + ", ".join(kept))
    if report.fresh_classes or not kept:
        afresh = ", ".join(report.fresh_classes) or "all"
        report.notes.append(f"classes that start afresh: {afresh}")


def _check_order(names: Sequence[str], stored: Sequence[str], report: LoadReport) -> None:
    """Same classes in another order would be learned, and evaluated, wrongly without a word."""
    here, there = [n.casefold() for n in names], [n.casefold() for n in stored]
    if not here or not there or here == there:
        return
    moved = [a for i, a in enumerate(here) if a in there and there.index(a) != i]
    if moved and len(here) == len(there):
        raise UserError(
            f"the checkpoint's classes are {', '.join(stored)}, the data set's {', '.join(names)}, "
            f"with {names[here.index(moved[0])]!r} at another place: set train.init.classes=by_name"
        )
    if len(here) == len(there):
        report.notes.append(
            f"classes are taken in their order although names differ: {', '.join(names[:5])} here, "
            f"{', '.join(stored[:5])} in the checkpoint"
        )


def _count(own, result, fresh) -> dict[str, tuple[int, int]]:
    parts: dict[str, tuple[int, int]] = {}
    for name, tensor in own.items():
        part = name.split(".")[0]
        kept = tensor.numel() - fresh[name] if name in result else 0
        before = parts.get(part, (0, 0))
        parts[part] = (before[0] + kept, before[1] + tensor.numel())
    return parts
