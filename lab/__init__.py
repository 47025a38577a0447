"""How test models are made. Not in the wheel: runs from the root of the repository."""
