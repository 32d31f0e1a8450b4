# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention as one function with several backends.

``python -m detrex_mammo.ops`` says which of them work here.
"""

from detrex_mammo.ops.dispatch import (
    BACKENDS,
    choose_backend,
    ms_deform_attn,
    ms_deform_attn_fused,
    why_not,
)
from detrex_mammo.ops.huggingface import patch_transformers, unpatch_transformers
from detrex_mammo.ops.reference import ms_deform_attn_reference

__all__ = [
    "BACKENDS",
    "choose_backend",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_reference",
    "patch_transformers",
    "unpatch_transformers",
    "why_not",
]
