"""The recipe of the next demo model: a larger world, freer pictures (../README.md)."""
