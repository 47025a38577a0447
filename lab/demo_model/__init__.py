"""The recipe of the demo model (mars_gguf/demo_model/MODEL_CARD.md)."""
