"""``python -m lab.bench.child TASK JSON`` does one task in a process of its own, and prints
the memory it took. Each task imports only what it is about."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def peak_bytes() -> int | None:
    """The most memory that this process had in use, shared pages and those of mapped files
    included; None where the system does not tell."""
    try:
        # Not getrusage: on Linux it counts what the parent had in use when it started this process.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except FileNotFoundError:
        try:
            import resource
        except ImportError:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def plain(
    model: str,
    prompt: str,
    options: dict[str, Any],
    mmproj: str | None = None,
    max_tokens: int = 16,
    rpc_servers: str | None = None,
) -> None:
    """Loads the model in llama-cpp-python and replies; to a prompt with a picture, with mmproj."""
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import MTMDChatHandler
    from PIL import Image

    if rpc_servers:
        from mars_gguf.runtime.rpc import use_servers

        use_servers(rpc_servers)
    handler = MTMDChatHandler(mmproj, verbose=options["verbose"]) if mmproj else None
    llama = Llama(model, chat_handler=handler, **options)
    pictures = [Image.new("RGB", (224, 224), "white")] if mmproj else []
    _reply(llama, prompt, pictures, max_tokens)


def steered(model: str, vector: str, prompt: str, options: dict[str, Any]) -> None:
    """Loads the model as SteeredLlama and replies, steered whatever the prompt is."""
    from dataclasses import replace

    from mars_gguf import SteeredLlama

    llama = SteeredLlama(model, vector=vector, **options)
    policy = llama.vectors["mars"].policy()
    with llama.using(replace(policy, gate="open", strength=1.0)):
        _reply(llama, prompt)


def priced(
    model: str,
    tokens: list[int],
    options: dict[str, Any],
    n_reply: int,
    vector: str | None = None,
    gate: Any = "shut",
    guard: Sequence[int] = (),
    rpc_servers: str | None = None,
) -> dict[str, float]:
    """Loads the model, and with a ``vector`` steers, its gate "shut" or "open" whatever the prompt
    is. Returns the seconds to the first token of a reply to ``tokens``, which a second model with
    one token of an answer to ``guard`` lets pass, and those for ``n_reply`` tokens after it."""
    from contextlib import ExitStack
    from dataclasses import replace

    from llama_cpp import Llama

    from lab.bench.replying import reply
    from mars_gguf import SteeredLlama

    if rpc_servers:
        from mars_gguf.runtime.rpc import use_servers

        use_servers(rpc_servers)
    guarding = Llama(model, **options) if guard else None
    with ExitStack() as stack:
        if vector is None:
            llama = Llama(model, **options)
        else:
            llama = SteeredLlama(model, vector=vector, **options)
            policy = llama.vectors["mars"].policy()
            stack.enter_context(llama.using(replace(policy, gate=gate, strength=1.0)))
        for n in (0, n_reply):  # warms up, then counts
            spent = reply(guarding, guard, 0)[0] if guarding is not None else 0.0
            first, rest = reply(llama, tokens, n)
    return {"first": spent + first, "reply": rest}


def _reply(llama: Any, prompt: str, pictures: Sequence[Any] = (), max_tokens: int = 16) -> None:
    from mars_gguf.media.images import user_message

    messages = [user_message(prompt, pictures)]
    llama.create_chat_completion(messages, max_tokens=max_tokens, temperature=0)


def convert(arguments: list[str]) -> None:
    """Runs the command mars_gguf.convert."""
    from mars_gguf.convert import __main__ as command

    command.main(arguments)


def direction(model: str, prompts: list[list[str]], output: str, options: dict[str, Any]) -> None:
    """Does what llama.cpp's cvector-generator does: the mean difference of the hidden states of
    pairs of text prompts after every block but the last, written as a control vector."""
    import gguf
    import numpy as np

    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.convert.prompts import Prompt

    extractor = GgufExtractor(model, **options)
    means = []
    for side in prompts:
        total = np.zeros((extractor.n_layer, extractor.n_embd))
        for _, session in extractor.sessions([Prompt(text) for text in side]):
            total += session.observe()[0].sum(0)
        means.append(total / len(side))
    difference = (means[0] - means[1]).astype(np.float32)
    writer = gguf.GGUFWriter(output, "controlvector")
    for layer in range(1, extractor.n_layer):
        writer.add_tensor(f"direction.{layer}", difference[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    extractor.close()


TASKS = {f.__name__: f for f in (plain, steered, priced, convert, direction)}


def main() -> None:
    name, arguments = sys.argv[1:]
    said = TASKS[name](**json.loads(arguments))  # type: ignore[operator]
    print(json.dumps((said or {}) | {"peak": peak_bytes()}))


if __name__ == "__main__":
    main()
