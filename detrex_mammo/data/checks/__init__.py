# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What is wrong with a dataset before a model learns it; ``tools/check_data.py``."""
