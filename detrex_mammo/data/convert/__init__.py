# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Public datasets as they are downloaded, and common formats, to and from one COCO JSON."""
