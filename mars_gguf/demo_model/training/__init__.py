"""The recipe of the demo model (../MODEL_CARD.md)."""
