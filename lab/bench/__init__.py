"""The benchmark: the costs of the tool, against the limits of what it is built on."""
