# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Evaluation: COCO's metrics and FROC, from a running model or from a predictions file.

Figures, rules, intervals and the report (``assess``, ``report``) need numpy and scipy; ``coco``,
``froc_evaluator`` and ``evaluators`` need detectron2; ``froc_plot`` needs matplotlib, ``hardware``
torch. Nothing is imported here, so that each can be used without the others' dependencies.
"""
