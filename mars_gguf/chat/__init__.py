"""Chat with a steered model in the terminal."""
