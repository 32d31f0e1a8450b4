# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR for mammography, as a lazy-config plugin on detectron2."""

import warnings
from importlib.util import find_spec

__version__ = "0.1.0"

# fvcore scripts functions at import; a user of ours can do nothing about it.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)

if find_spec("detectron2") is None:  # it is not in the registry, so pip could not bring it along
    raise ModuleNotFoundError(
        "detrex_mammo needs detectron2 0.6 or newer, which is not installed: run "
        "`python tools/install_detectron2.py` in a clone of detrex_mammo (no compiler needed), or "
        "build it from https://github.com/facebookresearch/detectron2",
        name="detectron2",
    )
