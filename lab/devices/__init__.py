"""Checks whether steering is exact on a device that llama.cpp computes on. `build.sh` builds
llama.cpp for some."""
