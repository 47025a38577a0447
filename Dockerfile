# An image of the server. docs/CONTAINER.md says how it is built and used.
# DEVICE is cpu or cuda: docker build --build-arg DEVICE=cuda .
ARG DEVICE=cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:12.8.1

# With compilers. The code is made for processors with AVX2, not for the one that builds, so that
# the image runs elsewhere; that leaves AMX out, too.
FROM ${PYTHON_IMAGE} AS build-cpu
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*

FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS build-cuda
# The driver comes with the machine that runs the image.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CUDA=ON -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# llama-cpp-python first: a change of mars-gguf does not build it again.
# hadolint ignore=DL3006
FROM build-${DEVICE} AS build
RUN python3 -m venv /opt/mars-gguf
ENV PATH="/opt/mars-gguf/bin:$PATH" PIP_NO_CACHE_DIR=1
RUN pip install "llama-cpp-python[server]>=0.3.36,<0.4" "huggingface_hub>=1"
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in /src/
COPY vectors/demo.gguf /src/vectors/
COPY mars_gguf /src/mars_gguf
RUN pip install "/src[server,video]"

FROM ${PYTHON_IMAGE} AS base-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

FROM ${CUDA_IMAGE}-runtime-ubuntu24.04 AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM base-${DEVICE}
COPY --from=build /opt/mars-gguf /opt/mars-gguf
# Models are read from /models; what is fetched from a hub is kept in /cache.
RUN mkdir /models /cache && chown 10001:10001 /cache
ENV PATH="/opt/mars-gguf/bin:$PATH" PYTHONUNBUFFERED=1 \
    HOME=/cache HF_HOME=/cache/huggingface HOST=0.0.0.0 PORT=8000
USER 10001:10001
WORKDIR /models
VOLUME ["/cache"]
EXPOSE 8000
# A large model takes its time to load.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --start-interval=5s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(r.Request(f\"http://127.0.0.1:{os.environ['PORT']}/v1/models\", headers={'Authorization': f\"Bearer {os.environ.get('API_KEY')}\"}), timeout=9)"]
ENTRYPOINT ["mars-gguf"]
CMD ["server"]
