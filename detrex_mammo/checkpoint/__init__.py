# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Reading, converting, verifying and loading checkpoints."""

from detrex_mammo.checkpoint.load_model import load_model

__all__ = ["load_model"]
