"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# A fork changes this line; nothing else names the place.
URL = "https://github.com/keras-vd/keras-vd"
OWNER, NAME = URL.split("/")[-2:]

ROOT = Path(__file__).parent
VERSION = (ROOT / "keras_vd" / "version.py").read_text().split('"')[-2]
# Paths inside the repository lead nowhere from a package index.
README = (ROOT / "README.md").read_text(encoding="utf-8")
README = re.sub(r"(?<=\]\()(?=docs/\S+\.png)", f"{URL}/raw/v{VERSION}/", README)
README = re.sub(
    r"(?<=\]\()(?=[\w/]+\.(md|bib|cff)\))", f"{URL}/blob/v{VERSION}/", README
)

TENSORFLOW = ["tensorflow>=2.21"]
BENCHMARKS = ["matplotlib>=3.8", "psutil>=5.9"]
# Libraries that `python -m benchmarks` compares with, where they are there.
PEERS = [
    "bayesian-torch>=0.5",
    "blitz-bayesian-pytorch>=0.2.8",
    "edward2>=0.0.2",
    "scipy>=1.11",  # edward2 imports it undeclared
]
EXAMPLES = [
    "importlib_resources",  # tensorflow-datasets imports it undeclared
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "tensorflow-datasets>=4.9.6",
]
DOCS = [
    "furo>=2025.12",
    "latex2mathml>=3.77",
    "matplotlib>=3.8",
    "myst-nb>=1.4",
    "scikit-learn>=1.4",
    "sphinx>=9",
    "sphinx-design>=0.7",
    "sphinxcontrib-bibtex>=2.6",
]
RUNTIMES = [
    "ai-edge-litert>=2.3",
    "onnx>=1.23",
    "onnxruntime>=1.31",
    "tf2onnx>=1.17",
]
ARCHIVE = ["constriction>=0.5"]
HUB = ["keras-hub>=0.26"]  # the first one with embeddings of Keras
TENSORBOARD = ["tensorboard>=2.16"]
TFP = ["tensorflow-probability[tf]>=0.25"]

setup(
    name="keras-vd",
    version=VERSION,
    description=(
        "Keras layers that learn which of their weights can go: variational "
        "dropout, sparse variational dropout and relatives"
    ),
    long_description=README,
    long_description_content_type="text/markdown",
    author="keras_vd contributors",
    url=URL,
    project_urls={
        "Documentation": f"https://{OWNER}.github.io/{NAME}/",
        "Source": URL,
        "Issues": f"{URL}/issues",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
    },
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "keras",
        "variational dropout",
        "sparsity",
        "pruning",
        "model compression",
        "Bayesian neural networks",
        "uncertainty",
        "tensorflow",
        "jax",
        "pytorch",
    ],
    packages=find_packages(include=["keras_vd", "keras_vd.*"]),
    package_data={"keras_vd": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=["keras>=3.10", "numpy>=1.26", "rich>=13"],
    extras_require={
        "tensorflow": TENSORFLOW,
        "jax": ["jax>=0.10"],
        "torch": ["torch>=2.1"],
        "examples": EXAMPLES,
        "runtimes": RUNTIMES,
        "archive": ARCHIVE,
        "benchmarks": BENCHMARKS,
        "peers": [*PEERS, *TFP],
        "docs": [*TENSORFLOW, *ARCHIVE, *DOCS, *HUB],
        "hub": HUB,
        "tensorboard": TENSORBOARD,
        "tfp": TFP,
        "test": [
            *TENSORFLOW,
            *ARCHIVE,
            *BENCHMARKS,
            *EXAMPLES,
            *RUNTIMES,
            *TENSORBOARD,
            *TFP,
            "hypothesis>=6.100",
            "mpmath>=1.3",
            "mypy>=1.10",
            "pandas>=2.2",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "pyyaml>=6",
            "ruff>=0.8",
            "scipy>=1.11",
            "setuptools>=77",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Typing :: Typed",
    ],
)
