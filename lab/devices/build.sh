#!/usr/bin/env bash
# llama.cpp's shared libraries with other backends than the CPU's, from the very sources that
# llama-cpp-python is built from, so that both are of one version.
#
#   lab/devices/build.sh FOLDER [-DGGML_RPC=ON -DGGML_VULKAN=ON ...]
#   LLAMA_CPP_LIB_PATH=FOLDER/lib python -m lab.devices ...
#
# Vulkan needs its loader, a compiler of shaders and a driver; on Debian 13:
#   apt-get install mesa-vulkan-drivers libvulkan-dev glslc spirv-headers
# (mesa's lavapipe is a Vulkan device in software, so no GPU is needed.) Debian 12 has the same, but
# headers that are too old: take those of https://github.com/KhronosGroup/Vulkan-Headers (1.3.272 or
# later) and say where they are, -DVulkan_INCLUDE_DIR=VULKAN-HEADERS/include.
set -euo pipefail

folder=$(mkdir -p "${1:?the folder to build in}" && realpath "$1")
shift
version=$(python -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
sources=$folder/llama_cpp_python-$version
if [ ! -d "$sources" ]; then
    pip download -q --no-deps --no-binary llama-cpp-python -d "$folder" "llama-cpp-python==$version"
    tar -xzf "$sources.tar.gz" -C "$folder"
fi

# As pip builds it: Release, and the flag of the README.
CXXFLAGS="${CXXFLAGS--U__AMX_INT8__}" cmake -S "$sources" -B "$folder/build" \
    -DCMAKE_BUILD_TYPE=Release "${@:--DGGML_RPC=ON}"
cmake --build "$folder/build" --parallel --target llama mtmd

mkdir -p "$folder/lib"
find "$folder/build" -name '*.so*' -not -type d -exec cp -a {} "$folder/lib" \;
echo "llama-cpp-python $version: export LLAMA_CPP_LIB_PATH=$folder/lib"
