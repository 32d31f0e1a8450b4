# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
