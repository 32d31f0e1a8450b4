# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sources of the compiled kernels; nothing here is imported before a kernel is needed."""
