"""Pictures and films: read, drawn, and put into chat messages."""
