# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the project asks of its own speed: every bar is judged in the run that measured it."""

from dataclasses import dataclass

from detrex_mammo.benchmark import engine, models, op
from detrex_mammo.benchmark.peers import COMPILED, DEFORMOPS, OFFICIAL, REFERENCE, TRANSFORMERS
from detrex_mammo.benchmark.results import Results, Row
from detrex_mammo.benchmark.statistics import Spread, times_better
from detrex_mammo.benchmark.units import RATE

Cell = tuple[str, str, str]  # case, quantity, candidate


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        mode: whose results it is judged on.
        device: "cpu" or "cuda".
        text: what it is about.
        ours: the row that is judged.
        theirs: the row that it is compared with; None for a bar in seconds.
        at_least: how many times better; in seconds without ``theirs``: at most.
        aim: the same, for the higher aim; None without one.
        as_share: tell the ratio the other way round, as a share of theirs.
    """

    mode: str
    device: str
    text: str
    ours: Cell
    theirs: Cell | None
    at_least: float
    aim: float | None = None
    as_share: bool = False


@dataclass(frozen=True)
class Verdict:
    """A bar with what was measured.

    Attributes:
        bar: the promise.
        ours: our row, theirs: the other one; None if not measured.
        ratio: how many times better; None for a bar in seconds, or if one side is missing.
        verdict: "met", "aim met", "not met" or "not measured".
    """

    bar: Bar
    ours: Row | None
    theirs: Row | None
    ratio: Spread | None
    verdict: str


def _op(device, text, case, quantity, ours, theirs, at_least, aim=None, **more) -> Bar:
    """Both rows in the same case."""
    cell = (case, quantity)
    return Bar("op", device, text, (*cell, ours), (*cell, theirs), at_least, aim, **more)


def _cpu_operator() -> list[Bar]:
    bars = []
    for form in op.FORMS:
        encoder, decoder = (op.case_name(p, form, "fp32") for p in (op.ENCODER, op.DECODER))
        for case, name, quantity, at_least, aim in (
            (encoder, "encoder", op.FORWARD, 30, 50),
            (encoder, "encoder", op.BOTH, 25, 40),
            (decoder, "decoder", op.FORWARD, 15, 25),
            (decoder, "decoder", op.BOTH, 10, 15),
        ):
            text = f"operator, {name}, {form}, {quantity}"
            bars.append(_op("cpu", text, case, quantity, "c", REFERENCE, at_least, aim))
        # The published core, which is transformers' own: our reference already needs a third less.
        text = f"operator, encoder, {form}, {op.MEMORY}"
        bars.append(_op("cpu", text, encoder, op.MEMORY, "c", TRANSFORMERS, 15, 20, as_share=True))
    case = op.case_name(op.ENCODER, "unfused", "fp32")
    for name, text, at_least in (("embedding_bag", "eager", 4.5), (COMPILED, "torch.compile", 15)):
        text = f"without a compiler, {text}, encoder, {op.FORWARD}"
        bars.append(_op("cpu", text, case, op.FORWARD, name, REFERENCE, at_least))
    for name, text, seconds in (
        (op.FIRST, "first use of the C kernel compiles in", 2.0),
        (op.CACHED, "cached start of the C kernel", 0.005),
    ):
        bars.append(Bar("op", "cpu", text, (op.START, "start", name), None, seconds))
    return bars


def _cpu_models() -> list[Bar]:
    bars = []
    for mode, quantity, ours, aim, patched in (
        ("inference", models.INFERENCE, 3, 4, 2.2),
        ("train", models.STEP, 4, 5, 3),
    ):
        for name, at_least, best in ((models.OURS, ours, aim), (models.PATCHED, patched, None)):
            cell = (models.case_name("fp32"), quantity)
            text = f"R50 two-stage, {quantity}: {name}"
            bars.append(
                Bar(mode, "cpu", text, (*cell, name), (*cell, TRANSFORMERS), at_least, best)
            )
    cell = (models.case_name("fp32"), models.MEMORY)
    text = f"R50 two-stage, training, {models.MEMORY}: {models.PATCHED}"
    ours, theirs = (*cell, models.PATCHED), (*cell, TRANSFORMERS)
    return [*bars, Bar("train", "cpu", text, ours, theirs, 1 / 0.55, as_share=True)]


def _gpu() -> list[Bar]:
    bf16, fp32 = (op.case_name(op.ENCODER, "unfused", dtype) for dtype in ("bf16", "fp32"))
    ours, theirs = (bf16, op.FORWARD, "triton"), (fp32, op.FORWARD, OFFICIAL)
    name = "operator, encoder, batch 2"
    both, official = (bf16, op.BOTH, "triton"), (fp32, op.BOTH, OFFICIAL)
    step = models.STEP
    return [
        Bar("op", "cuda", f"{name}, bf16 forward against the fp32 kernel", ours, theirs, 5),
        Bar("op", "cuda", f"{name}, bf16 forward", ours, None, 0.12e-3),
        Bar("op", "cuda", f"{name}, bf16 {op.BOTH} against the fp32 kernel", both, official, 3),
        _op("cuda", f"{name}, bf16 {op.BOTH}", bf16, op.BOTH, "triton", DEFORMOPS, 1.2),
        Bar(
            "train",
            "cuda",
            "R50 two-stage, batch 16, bf16 training step against fp32 with the official kernel",
            (models.case_name("bf16"), step, models.OURS),
            (models.case_name("fp32"), step, models.OURS_OFFICIAL),
            1.5,
            2.5,
        ),
    ]


def _engine() -> list[Bar]:
    case = engine.accumulation_case(engine.ACCUMULATED_SIZE)
    cells = [(case, engine.PEAK, engine.batches_name(n)) for n in (engine.ACCUMULATION, 1)]
    text = f"{case}: {engine.PEAK}, {cells[0][2]}"
    bars = [Bar("engine", "cpu", text, *cells, 1 / 1.15, as_share=True)]
    case = engine.checkpointing_case(models.SIZE)
    for quantity, at_least in ((engine.ACTIVATIONS, 2), (engine.STEP, 1 / 1.35)):
        ours, theirs = ((case, quantity, name) for name in (engine.JUDGED, engine.NONE))
        text = f"{case}: {quantity}, {engine.JUDGED}"
        bars.append(Bar("engine", "cpu", text, ours, theirs, at_least, as_share=True))
    case = engine.overhead_case(True, engine.TINY_IMAGE)
    text = f"{case}: an iteration {engine.OUTSIDE}"
    bars.append(Bar("engine", "cpu", text, (case, engine.ITERATION, engine.OUTSIDE), None, 2e-3))
    case = engine.overhead_case(False, models.SIZE)
    cells = [(case, engine.ITERATION, name) for name in (engine.OUTSIDE, engine.WHOLE)]
    text = f"{case}: an iteration {engine.OUTSIDE}"
    return [*bars, Bar("engine", "cpu", text, *cells, 1 / 0.03, as_share=True)]


BARS = (*_cpu_operator(), *_cpu_models(), *_gpu(), *_engine())


def judge(results: Results) -> list[Verdict]:
    """The bars of a run's mode and device, judged; none for a quick run, whose shapes are small."""
    if results.about["quick"]:
        return []
    place = results.about["mode"], results.about["device"]
    return [_judge(bar, results) for bar in BARS if (bar.mode, bar.device) == place]


def _judge(bar: Bar, results: Results) -> Verdict:
    ours = results.row(*bar.ours)
    theirs = results.row(*bar.theirs) if bar.theirs else None
    if bar.theirs is None:
        if ours is None or ours.spread is None:
            return Verdict(bar, ours, None, None, "not measured")
        met = ours.spread.median <= bar.at_least
        return Verdict(bar, ours, None, None, "met" if met else "not met")
    ratio = compare(ours, theirs)
    if ratio is None:
        return Verdict(bar, ours, theirs, None, "not measured")
    if bar.aim is not None and ratio.median >= bar.aim:
        return Verdict(bar, ours, theirs, ratio, "aim met")
    verdict = "met" if ratio.median >= bar.at_least else "not met"
    return Verdict(bar, ours, theirs, ratio, verdict)


def compare(ours: Row | None, theirs: Row | None) -> Spread | None:
    """How many times better one row is than another; None where one has no values."""
    if ours is None or theirs is None or not (ours.values and theirs.values):
        return None
    if min(ours.values) <= 0 or min(theirs.values) <= 0:
        return None
    return times_better(ours.values, theirs.values, ours.unit == RATE)
