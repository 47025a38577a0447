"""What the tool costs, against the limits of what it is built on."""
