"""``python -m mars_gguf`` lists the commands."""

from __future__ import annotations

from mars_gguf import __version__

COMMANDS = {
    "convert": "measure a model's refusal geometry and write it as a vector file",
    "chat": "chat with a steered model in the terminal",
    "evaluate": "measure what steering changes and costs, against simpler ways to steer",
    "server": "serve steered models behind the OpenAI API",
    "bench": "measure the tool's own cost against its limits",
    "demo": "see what steering does, on the small model of the package",
    "rpc_server": "lend this machine's devices to models on another one",
    "vectors": "check a vector file and print what it holds",
}


def main() -> None:
    print(f"mars-gguf {__version__}: refusal steering for quantized multimodal models\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m mars_gguf.{name:10} {purpose}")
    print("\nEach takes --help.")


if __name__ == "__main__":
    main()
