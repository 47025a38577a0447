"""The server: steered models behind the OpenAI API, as ``llama_cpp.server`` has it."""
