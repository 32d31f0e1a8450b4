#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Train or evaluate a lazy config: ``train_net.py --config-file F [flags] [key=value ...]``."""

from detrex_mammo.engine.main import main
from detrex_mammo.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
