# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Training and evaluation of lazy configs: what tools/train_net.py calls."""

import warnings

# fvcore and detectron2 0.6 script functions at import; newer torch says so at every start.
warnings.filterwarnings("ignore", message="`torch.jit.script")
# detectron2 0.6 gathers results between processes with a class that torch renames.
warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
warnings.filterwarnings("ignore", message="torch.meshgrid")
