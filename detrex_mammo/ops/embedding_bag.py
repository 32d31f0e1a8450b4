# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Placeholder until helper LADDER writes it."""
from detrex_mammo.ops.reference import ms_deform_attn_reference as ms_deform_attn_embedding_bag  # noqa: F401
