# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Convert a checkpoint of any project that publishes Deformable DETR, and back."""

import argparse
import logging

import yaml

from detrex_mammo.checkpoint.classes import POLICIES
from detrex_mammo.checkpoint.conversion import FORMATS, OURS
from detrex_mammo.checkpoint.convert_file import convert_file
from detrex_mammo.checkpoint.writing import TARGETS
from detrex_mammo.errors import UserError, run_tool

_EPILOG = """\
how each format was checked:
  huggingface    live models of transformers 5, both ways, in every test run; configs of version 4
  backbone       live models of torchvision, timm and transformers, in every test run
  official       written lists of names and shapes, in every test run; once, live, all five
                 variants of the published code at 11169a6: logits within 9e-6, boxes 9e-7
  mmdetection    the same lists; once, live, three variants of mmdetection 3.3.0: 6e-6, 6e-7
  detrex         the same lists; once, live, three variants of detrex's modules: 7e-6, 8e-7
  tao            the same lists; once, live, four models of TAO's modules, of one image each, as TAO
                 does not mask padding: 4e-6, 5e-7
Files of no other kind are known: Caffe2 backbones (detectron2's MSRA), mmdetection 2.x, encrypted
TAO files and TAO's GCViT are refused. So is a checkpoint that mmdetection's training wrote, because
it holds objects: make it one of weights with mmdetection's tools/model_converters/publish_model.py.
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file, Hugging Face folder, or URL")
    parser.add_argument("target", help="file to write; a folder for --to huggingface")
    parser.add_argument("--from", dest="from_format", choices=FORMATS, help="default: detected")
    parser.add_argument("--to", dest="to_format", choices=TARGETS, default=OURS)
    parser.add_argument(
        "--classes",
        choices=POLICIES,
        help="auto: COCO's 91 outputs become its 80 classes; keep: heads stay as they are "
        f"(default: auto for {OURS}, keep for others)",
    )
    parser.add_argument(
        "--assume",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings that the source does not tell, such as dc5=true or num_heads=4",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run the source model beside the converted one (default: where its library is there)",
    )
    return parser.parse_args(argv)


def main() -> None:
    """Convert what the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse()
    assume = {}
    for item in args.assume:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--assume has {item!r}, but must have key=value")
        try:
            assume[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--assume has {item!r}, whose value cannot be read") from error
    convert_file(
        args.source,
        args.target,
        args.from_format,
        args.to_format,
        assume,
        args.classes,
        args.verify,
    )


if __name__ == "__main__":
    run_tool(main)
