# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The report of an evaluation: one HTML page that needs no network, and its tables as CSV."""
