"""Chats with a steered model in the terminal."""
