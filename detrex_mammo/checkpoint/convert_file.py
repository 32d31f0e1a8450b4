# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Convert a checkpoint to another file: read, rename, verify, write."""

import datetime
import importlib.metadata
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrex_mammo.checkpoint.conversion import OURS, Converted, convert
from detrex_mammo.checkpoint.reading import Source, read_source, source_sha256
from detrex_mammo.checkpoint.verification import Verification, verify, why_not
from detrex_mammo.checkpoint.writing import require_free, save
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def convert_file(
    source_path: str,
    target: str | Path,
    from_format: str | None = None,
    to_format: str = OURS,
    assume: Mapping[str, Any] | None = None,
    class_policy: str | None = None,
    check: bool | None = None,
) -> Converted:
    """Convert a checkpoint.

    Args:
        source_path: file, Hugging Face folder or URL.
        target: file to write, or folder for "huggingface"; must not exist.
        from_format: None detects it.
        to_format: one of ``writing.TARGETS``.
        assume: settings that the source does not tell.
        class_policy: "auto" or "keep"; by default COCO's 91 outputs are made 80 for our own files
            and kept for others.
        check: verify by running the source model: None where its library is installed.

    Raises:
        UserError: see :func:`convert`, :func:`verify` and :func:`save`; then nothing is written.
    """
    require_free(target)
    source = read_source(source_path)
    policy = class_policy or ("auto" if to_format == OURS else "keep")
    converted = convert(source, from_format, assume, policy)
    if converted.format == to_format == OURS:
        raise UserError(
            f"{source_path!r} is in this project's format already: use it as it is, or make it "
            "small with tools/publish_checkpoint.py"
        )
    _report(source, converted)
    verification = _verify(source, converted, check)
    save(converted, target, to_format, provenance(source, converted, verification))
    logger.info("wrote %s (%s)", target, to_format)
    return converted


def provenance(
    source: Source, converted: Converted, verification: Verification | str
) -> dict[str, Any]:
    """Where converted weights come from, as plain values."""
    before = source.content.get("provenance")
    return {
        "source": {
            "file": source.path,
            "sha256": source_sha256(source.path),
            "format": converted.format,
        },
        "converter": f"detrex_mammo {importlib.metadata.version('detrex_mammo')}",
        "date": datetime.date.today().isoformat(),
        "notes": list(converted.notes),
        "verification": (
            verification.to_dict()
            if isinstance(verification, Verification)
            else {"passed": None, "reason": verification}
        ),
        **({"earlier": before} if _is_plain(before) else {}),
    }


def _is_plain(value: Any) -> bool:
    """Whether a stranger's provenance is a mapping of plain values, which JSON can hold."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, Mapping)


def _verify(source: Source, converted: Converted, check: bool | None) -> Verification | str:
    """The verification, or why there is none."""
    reason = "not asked for (--no-verify)" if check is False else why_not(converted)
    if reason and check:
        raise UserError(f"--verify is not possible: {reason}")
    if reason:
        logger.warning("not verified: %s", reason)
        return reason
    result = verify(source, converted)
    verdict = "verified" if result.checks_names else "model verified, names by their table alone"
    logger.info("%s: %s", verdict, result.describe())
    return result


def _report(source: Source, converted: Converted) -> None:
    architecture = converted.architecture
    count = sum(tensor.numel() for tensor in converted.state.values()) / 1e6
    what = f"Deformable DETR, {architecture.variant}" if architecture else "a backbone"
    logger.info(
        "read %s: %s format, %s, %d tensors, %.1f M numbers, %s",
        source.path,
        converted.format,
        what,
        len(converted.state),
        count,
        f"{architecture.num_classes} classes" if architecture else "no heads",
    )
    for note in converted.notes:
        logger.info("note: %s", note)
