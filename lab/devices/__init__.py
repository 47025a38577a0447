"""Whether a device that llama.cpp computes on lets the residual stream be read and changed: outside
the package and CI, for whoever has such a device. `build.sh` builds llama.cpp for some."""
