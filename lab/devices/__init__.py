"""Checks whether a device that llama.cpp computes on lets the residual stream be read and changed.

It is outside the package and the gate, for whoever has such a device. `build.sh` builds llama.cpp
for some.
"""
