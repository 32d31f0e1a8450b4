# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Model zoo and model card, written from the files that runs leave behind."""
