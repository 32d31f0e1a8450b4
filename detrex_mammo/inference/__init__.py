# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Inference: from an image to boxes that a person or a system can read."""
