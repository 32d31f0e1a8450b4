# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Tables of names: how tensors are called on disk, and what they are called here.

A table is a list of rules, and it is data: ``theirs`` and ``ours`` are patterns with the same
fields in braces. ``{i}`` (any other letter too) is a number, ``{i+1}`` that number plus one,
``{p}`` weight or bias, ``{n}`` what a batch norm holds, ``{m}`` a linear layer of deformable
attention. Applied from left to right a table reads a file, from right to left it writes one.

Our side of a table has one class head and one box head for EACH decoder layer, as the published
files have; :mod:`detrex_mammo.checkpoint.heads` folds shared ones into one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

_FIELD = re.compile(r"\{([a-z])([+-]\d+)?\}")
_KINDS = {
    "p": "weight|bias",
    "n": "weight|bias|running_mean|running_var",
    "m": "sampling_offsets|attention_weights|value_proj|output_proj",
}


class Pattern:
    """A name with fields, matched whole."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        parts, end = [], 0
        for found in _FIELD.finditer(self.text):
            kind = _KINDS.get(found[1], r"\d{1,3}")  # no model has a thousand layers
            parts += [re.escape(self.text[end : found.start()]), f"(?P<{found[1]}>{kind})"]
            end = found.end()
        return re.compile("".join(parts) + re.escape(self.text[end:]))

    @cached_property
    def _offsets(self) -> dict[str, int]:
        return {field[1]: int(field[2] or 0) for field in _FIELD.finditer(self.text)}

    def match(self, name: str) -> dict[str, Any] | None:
        """Values of the fields, or None if the name is another."""
        found = self._expression.fullmatch(name)
        if found is None:
            return None
        values = {
            letter: value if letter in _KINDS else int(value) - self._offsets[letter]
            for letter, value in found.groupdict().items()
        }
        numbers = [value for letter, value in values.items() if letter not in _KINDS]
        return values if all(number >= 0 for number in numbers) else None

    def format(self, values: Mapping[str, Any]) -> str:
        """The name with these values in its fields."""
        return _FIELD.sub(
            lambda f: str(values[f[1]] if f[1] in _KINDS else values[f[1]] + int(f[2] or 0)),
            self.text,
        )


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
        theirs: pattern of the name on disk.
        ours: pattern of the name here.
        part: (index, count): their tensor is this slice of the rows of ours.
        when: attribute of :class:`Architecture` that says whether models have this tensor at all;
            empty for those that always do.
        optional: why a file may lack this name although the model has the tensor: it is a second
            copy, or another spelling. Copies that are there must agree bit by bit.
        written: whether it is written back.
    """

    theirs: str
    ours: str
    part: tuple[int, int] | None = None
    when: str = ""
    optional: str = ""
    written: bool = True

    @cached_property
    def patterns(self) -> tuple[Pattern, Pattern]:
        """Their pattern and ours."""
        return Pattern(self.theirs), Pattern(self.ours)


@dataclass(frozen=True)
class Dropped:
    """A name on disk (a regular expression) that has no place here, and why."""

    theirs: str
    why: str


@dataclass(frozen=True)
class Zeros:
    """A tensor that we have and they leave out because it is zero; ``like`` gives its length."""

    ours: str
    like: str
    why: str


Entry = Rule | Dropped | Zeros


@dataclass
class Renamed:
    """A file's tensors under our names, and what did not go through.

    Attributes:
        tensors: our name -> tensor.
        unexpected: their names that no rule knows.
        incomplete: our names of which only some parts are there, or parts of different shapes.
        disagreeing: our names whose copies differ.
        used: rules that matched.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    disagreeing: list[str] = field(default_factory=list)
    used: set[Rule] = field(default_factory=set)


def read(state: Mapping[str, torch.Tensor], table: Iterable[Entry]) -> Renamed:
    """Give a file's tensors our names.

    Raises:
        AssertionError: two rules of the table claim one name.
    """
    table = list(table)
    rules = [entry for entry in table if isinstance(entry, Rule)]
    dropped = [re.compile(entry.theirs) for entry in table if isinstance(entry, Dropped)]
    result, found = Renamed(), defaultdict(list)
    for name, tensor in state.items():
        hits = [(r, values) for r in rules if (values := r.patterns[0].match(name)) is not None]
        assert len(hits) <= 1, f"{name} matches {[rule.theirs for rule, _ in hits]}"
        if hits:
            rule, values = hits[0]
            found[rule.patterns[1].format(values)].append((rule, tensor))
            result.used.add(rule)
        elif not any(pattern.fullmatch(name) for pattern in dropped):
            result.unexpected.append(name)
    for name, pieces in found.items():
        _join(name, pieces, result)
    for entry in table:
        if isinstance(entry, Zeros):
            _fill(entry, result)
    return result


def write(state: Mapping[str, torch.Tensor], table: Iterable[Entry], architecture: Any) -> dict:
    """Give our tensors the names of a format.

    Args:
        state: our names, a head for each layer.
        table: the format's.
        architecture: tells which ``when`` hold.

    Returns:
        dict[str, Tensor]: their names; slices are copies, whole tensors are not.

    Raises:
        AssertionError: a tensor that the table does not know.
    """
    rules = [r for r in table if isinstance(r, Rule) and r.written and holds(r, architecture)]
    dropped = [re.compile(entry.theirs) for entry in table if isinstance(entry, Dropped)]
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        hits = [(r, values) for r in rules if (values := r.patterns[1].match(name)) is not None]
        for rule, values in hits:
            piece = tensor
            if rule.part:
                index, count = rule.part
                piece = tensor.chunk(count)[index].clone()
            result[rule.patterns[0].format(values)] = piece
        assert hits or any(p.fullmatch(name) for p in dropped), f"no rule writes {name}"
    return result


def holds(rule: Rule, architecture: Any) -> bool:
    """Whether models of an architecture have a rule's tensors."""
    return not rule.when or bool(getattr(architecture, rule.when))


def _join(name: str, pieces: list[tuple[Rule, torch.Tensor]], result: Renamed) -> None:
    """One tensor of ours from its parts or copies."""
    parts: dict[int, list[torch.Tensor]] = defaultdict(list)
    for rule, tensor in pieces:
        parts[rule.part[0] if rule.part else 0].append(tensor)
    count = next((rule.part[1] for rule, _ in pieces if rule.part), 1)
    if any(not _same(copies[0], copy) for copies in parts.values() for copy in copies[1:]):
        result.disagreeing.append(name)
    elif len(parts) < count or len({copies[0].shape for copies in parts.values()}) > 1:
        result.incomplete.append(name)
    elif count == 1:
        result.tensors[name] = parts[0][0]
    else:
        result.tensors[name] = torch.cat([parts[index][0] for index in range(count)])


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit by bit, NaN included."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _fill(entry: Zeros, result: Renamed) -> None:
    ours, like = Pattern(entry.ours), Pattern(entry.like)
    for name in list(result.tensors):
        values = like.match(name)
        if values is not None and ours.format(values) not in result.tensors:
            tensor = result.tensors[name]
            result.tensors[ours.format(values)] = tensor.new_zeros(tensor.shape[0])
