#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Measure: ``benchmark.py {op,inference,train,data,records,evaluation,engine}``; ``table``."""

from detrex_mammo.benchmark.main import main
from detrex_mammo.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
