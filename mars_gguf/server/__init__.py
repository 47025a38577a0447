"""Steered models behind the OpenAI API that llama-cpp-python serves (``llama_cpp.server``)."""
