# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Side-by-side measurements of operator, inference, training and data: ``tools/benchmark.py``."""
