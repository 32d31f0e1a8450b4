# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From files to network inputs. Nothing is imported here, so that each part loads alone."""
