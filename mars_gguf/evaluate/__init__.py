"""Evaluation: which requests a model refuses, without steering and with it."""
