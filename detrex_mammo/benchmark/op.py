# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The operator alone: time, memory, first start, and cost against image size and queries."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detrex_mammo import ops
from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.memory import peak_of
from detrex_mammo.benchmark.operator_inputs import Inputs, Problem, make_inputs
from detrex_mammo.benchmark.peers import REFERENCE, Operator, find_operator, find_operators
from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.timing import Candidate, one_line
from detrex_mammo.ops.c_compiler import CACHE_VARIABLE

ENCODER, DECODER = Problem("encoder", 800, 1333), Problem("decoder", 800, 1333, queries=300)
QUICK_ENCODER, QUICK_DECODER = Problem("encoder", 64, 96), Problem("decoder", 64, 96, queries=20)
# Different levels with the same kernels: what is compiled and loaded is so before memory is read.
TINY = Problem("encoder", 64, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMS = ("unfused", "fused")
FORWARD, BOTH, MEMORY = "forward", "forward + backward", "extra memory, forward + backward"
SIZE_CURVE, QUERY_CURVE = "by image size, encoder", "by queries, decoder"
START, FIRST, CACHED = "start of the C kernel", "first use, compiles", "later start, cached"
# A result this far from the reference is no result; bf16 keeps 8 bits, and 16 samples are summed.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
CURVE_ROUNDS = START_ROUNDS = 3


def run(session: Session) -> None:
    """Measure everything about the operator."""
    operators, missing = find_operators(session.device)
    session.results.add_missing(missing)
    batch = 2 if session.device == "cuda" else 1
    problems = (QUICK_ENCODER, QUICK_DECODER) if session.quick else (ENCODER, DECODER)
    problems = tuple(replace(problem, batch=batch) for problem in problems)
    dtypes = ("fp32", "bf16") if session.device == "cuda" else ("fp32",)
    for problem in problems:
        for dtype in dtypes:
            for form in FORMS:
                _compare(session, operators, problem, form, dtype)
    # A process for each takes seconds: one will do to try the program.
    weighed = operators[:1] if session.quick else operators
    for dtype in dtypes:
        for form in FORMS[:1] if session.quick else FORMS:
            _compare_memory(session, weighed, problems[0], form, dtype)
    if "c" not in missing and session.device == "cpu":
        _measure_starts(session)
    _draw_curves(session, operators, problems)


def case_name(problem: Problem, form: str, dtype: str) -> str:
    """As in the tables: "encoder, fused, fp32"."""
    return f"{problem.name}, {form}, {dtype}"


def forward_call(operator: Operator, inputs: Inputs, form: str) -> Callable[[], Tensor]:
    """The forward pass as in inference."""
    function = getattr(operator, form)
    value, *rest = getattr(inputs, form)

    def call() -> Tensor:
        with torch.no_grad():
            return function(value, inputs.shapes, *rest)

    return call


def backward_call(operator: Operator, inputs: Inputs, form: str) -> Callable[[], Any]:
    """Forward and backward, with the gradients of value, places and weights."""
    function = getattr(operator, form)
    value, *rest = (tensor.detach() for tensor in getattr(inputs, form))
    learned = [value, *rest[-2:]]
    for tensor in learned:
        tensor.requires_grad_()

    def call() -> Any:
        out = function(value, inputs.shapes, *rest)
        return torch.autograd.grad(out, learned, inputs.grad_output)

    return call


def _compare(
    session: Session, operators: Sequence[Operator], problem: Problem, form: str, dtype: str
) -> None:
    inputs = make_inputs(problem, session.device, DTYPES[dtype])
    case = case_name(problem, form, dtype)
    usable = _agreeing(session, operators, inputs, form, dtype, case)
    rounds = session.rounds(20 if session.device == "cuda" else 7)
    forwards = [_candidate(o, forward_call(o, inputs, form)) for o in usable]
    session.compare(case, FORWARD, forwards, rounds)
    both = [_candidate(o, backward_call(o, inputs, form)) for o in usable if o.trains]
    session.compare(case, BOTH, both, rounds)


def _candidate(operator: Operator, call: Callable[[], Any]) -> Candidate:
    """Called twice before it counts: the first call may compile."""
    return Candidate(operator.name, call, operator.around, warmup=2)


def _agreeing(
    session: Session,
    operators: Sequence[Operator],
    inputs: Inputs,
    form: str,
    dtype: str,
    case: str,
) -> list[Operator]:
    """Those that take the dtype and give what the reference gives; the others get a row."""
    usable = [operator for operator in operators if DTYPES[dtype] in operator.dtypes]
    expected = next(o for o in usable if o.name == REFERENCE)
    expected = forward_call(expected, inputs, form)().float()
    agreeing = []
    for operator in usable:
        try:
            with operator.around():
                output = forward_call(operator, inputs, form)().float()
            difference = (output - expected).abs().max()
            wrong = not difference <= TOLERANCE[dtype]  # also when it is NaN
            error = f"differs from the reference by {difference:.2g}" if wrong else ""
        except Exception as raised:  # whatever a peer raises: the others are still measured
            error = one_line(raised)
        if error:
            session.say(f"{operator.name} is left out: {error}")
            session.results.add(Row(case, FORWARD, operator.name, error=error))
        else:
            agreeing.append(operator)
    return agreeing


def _compare_memory(
    session: Session, operators: Sequence[Operator], problem: Problem, form: str, dtype: str
) -> None:
    """Bytes of one forward and backward pass above its inputs."""
    case = case_name(problem, form, dtype)
    session.say(f"{case}, {MEMORY}")
    for operator in operators:
        if not operator.trains or DTYPES[dtype] not in operator.dtypes:
            continue
        row = Row(case, MEMORY, operator.name, unit="B")
        try:
            if session.device == "cuda":
                row.values.append(extra_memory(operator, problem, form, session.device, dtype))
            else:
                sizes = {"height": problem.height, "width": problem.width}
                row.values.append(
                    in_child(
                        child_memory,
                        name=operator.name,
                        form=form,
                        threads=session.threads,
                        **sizes,
                    )
                )
        except Exception as error:  # whatever a peer raises: the others are still measured
            row.error = str(error) if isinstance(error, ChildError) else one_line(error)
        session.results.add(row)


def extra_memory(operator: Operator, problem: Problem, form: str, device: str, dtype: str) -> int:
    """Bytes above the inputs that one forward and backward pass needs at most."""
    tiny = make_inputs(replace(TINY, batch=problem.batch), device, DTYPES[dtype])
    inputs = make_inputs(problem, device, DTYPES[dtype])
    with operator.around():
        backward_call(operator, tiny, form)()
        return peak_of(backward_call(operator, inputs, form), device).extra


def child_memory(name: str, form: str, threads: int, height: int, width: int) -> int:
    """:func:`extra_memory` of an encoder on the CPU, for a process of its own."""
    torch.set_num_threads(threads)
    problem = Problem("encoder", height, width)
    return extra_memory(find_operator(name, "cpu"), problem, form, "cpu", "fp32")


def _measure_starts(session: Session) -> None:
    """First use with an empty cache, and a later start with what it left there."""
    session.say(f"{START}: {FIRST}; {CACHED}")
    for number in range(1 if session.quick else session.rounds(START_ROUNDS)):
        with tempfile.TemporaryDirectory(prefix="detrex_mammo_benchmark_") as folder:
            for name in (FIRST, CACHED):
                row = Row(START, "start", name)
                try:
                    row.values.append(in_child(child_start, {CACHE_VARIABLE: folder}))
                    session.say(f"  {number + 1}: {name} {row.values[-1]:.4g} s")
                except ChildError as error:
                    row.error = str(error)
                session.results.add(row)


def child_start() -> float:
    """Seconds that the first call of the C kernel takes longer than the second one."""
    value, *rest = make_inputs(TINY).unfused

    def seconds() -> float:
        start = time.perf_counter()
        ops.ms_deform_attn(value, TINY.shapes, None, *rest, "c")
        return time.perf_counter() - start

    with torch.no_grad():
        return seconds() - seconds()


def _draw_curves(
    session: Session, operators: Sequence[Operator], problems: tuple[Problem, Problem]
) -> None:
    """Forward and backward, fused, against the image's size and the number of queries."""
    encoder, decoder = problems
    dtype = "bf16" if session.device == "cuda" else "fp32"
    trained = [o for o in operators if o.trains and DTYPES[dtype] in o.dtypes]
    scales = (0.5, 1) if session.quick else (0.25, 0.5, 1, 1.5)
    counts = (10, 20) if session.quick else (100, 300, 1000, 3000, 10000)
    rounds = session.rounds(CURVE_ROUNDS)
    points = [
        (SIZE_CURVE, replace(encoder, height=int(encoder.height * s), width=int(encoder.width * s)))
        for s in scales
    ] + [(QUERY_CURVE, replace(decoder, queries=count)) for count in counts]
    for curve, problem in points:
        inputs = make_inputs(problem, session.device, DTYPES[dtype])
        x = problem.queries or problem.height * problem.width / 1e6
        candidates = [_candidate(o, backward_call(o, inputs, "fused")) for o in trained]
        session.compare(f"{curve}, fused, {dtype}", BOTH, candidates, rounds, x=x)
