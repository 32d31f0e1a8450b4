# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""C sources, compiled at first use by :mod:`detrex_mammo.ops.c_compiler`."""
