# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Everything that is reported of one model on one data set, put together from the metrics."""
