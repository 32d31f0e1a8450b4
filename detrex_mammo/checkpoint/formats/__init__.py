# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Formats of checkpoints: a table of names each, and what else their files tell."""
