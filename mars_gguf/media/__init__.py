"""Reads pictures and films within bounds, draws, and makes chat messages of both."""
