"""What the distribution holds and needs; the tools' settings are in pyproject.toml.

`ldm` is a namespace package, so that it merges with a training repository's own `ldm/` folder: its packages are found,
never listed. The distribution has another name, because `ldm` on PyPI is somebody else's.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

README = Path(__file__).parent / "README.md"


class build_py_and_configs(build_py):
    """Packs configs/ as ldm/configs too, where `ldm.checkpoint` looks for the released models' YAML files."""

    def run(self):
        super().run()
        if not self.editable_mode:  # there, the checkout's own are found
            for source in Path("configs").rglob("*.yaml"):
                target = Path(self.build_lib, "ldm", source)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_source_files(self):
        return [*super().get_source_files(), *map(str, Path("configs").rglob("*.yaml"))]


setup(
    name="latent-diffusion-sampler",
    version="0.1.0",
    description="A DDIM sampler that latent-diffusion repositories take in with one import, and a small model to try",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # "." makes an editable install one path entry, which Python merges with other `ldm/` folders like any checkout.
    package_dir={"": "."},
    packages=find_namespace_packages(include=["ldm", "ldm.*"], exclude=["*.__pycache__"]),
    cmdclass={"build_py": build_py_and_configs},
    package_data={"ldm.assets": ["*.safetensors", "*.txt.gz", "LICENSE*"]},
    # The lower bounds are tried by hand; constraints.txt has the versions that every test run uses.
    install_requires=["torch>=2.4", "numpy>=1.26", "tqdm>=4.64", "omegaconf>=2.3"],
    extras_require={
        "scripts": ["pillow>=10.1"],
        "train": ["lightning>=2.4"],
        # Bulk sampling on a cluster; pyarrow, which it brings, also reads and writes parquet without one.
        "ray": ["ray[data]>=2.50"],
        "web": ["gradio>=6"],
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.7",
            "einops>=0.6",
            "lightning>=2.4",
            "ray[data]>=2.50",
            "gradio>=6",
            "playwright>=1.50",
            "diffusers>=0.30",
            "transformers>=5",
            "pillow>=10.1",
            "safetensors>=0.4.3",
            "setuptools>=64",
        ],
        # accelerate: diffusers loads at its best with it.
        "bench": ["diffusers>=0.30", "transformers>=5", "accelerate>=1", "matplotlib>=3.8", "ray[data]>=2.50"],
        "lint": ["ruff>=0.5"],
    },
)
