from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (root / "mars_gguf/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
commands = ["bench", "chat", "convert", "demo", "evaluate", "rpc_server", "server", "vectors"]
present = [
    c
    for c in commands
    if (root / f"mars_gguf/{c}.py").exists() or (root / f"mars_gguf/{c}").is_dir()
]


class BuildPy(build_py):
    """Puts the demo model's vector, which a clone has in vectors/, into the package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            packaged = Path(self.build_lib, "mars_gguf/demo_model/vector.gguf")
            self.copy_file(str(root / "vectors/demo.gguf"), str(packaged))


setup(
    name="mars-gguf",
    version=version,
    description="Refusal steering for quantized multimodal models under llama-cpp-python",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildPy},
    packages=find_packages(include=["mars_gguf", "mars_gguf.*"]),
    package_data={
        "mars_gguf": ["py.typed"],
        "mars_gguf.convert": ["data/*"],
        "mars_gguf.evaluate": ["data/*"],
        "mars_gguf.demo_model": ["*.gguf", "*.jsonl", "*.json", "*.md", "demo/*", "neutral/*"],
    },
    ext_modules=[
        # Without a compiler the same is done in Python.
        Extension("mars_gguf.runtime._tap", ["mars_gguf/runtime/_tap.c"], optional=True)
    ],
    install_requires=[
        "llama-cpp-python>=0.3.36,<0.4",
        "gguf>=0.17",
        "filelock>=4",
        "numpy>=1.24",
        "pillow>=10.1",
        "markdown-it-py>=2.2",
        "matplotlib>=3.8",
        "prompt_toolkit>=3.0.40",
        "rich>=13",
        "tqdm>=4.66",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        "convert": ["torch>=2.4", "transformers>=5", "accelerate", "safetensors"],
        "server": ["llama-cpp-python[server]>=0.3.36,<0.4", "prometheus-client>=0.20"],
        "video": ["av>=12"],
        "parquet": ["pyarrow>=15"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6",
            "atheris>=2.3; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "mypy>=1.11",
            "ruff>=0.6",
            "openai>=1.40",
            "av>=12",
            "pyarrow>=15",
            "huggingface_hub",
        ],
    },
    entry_points={
        "console_scripts": [
            f"mars-gguf-{c} = mars_gguf.{c}{'.__main__' * (root / 'mars_gguf' / c).is_dir()}:main"
            for c in present
        ],
    },
)
