# LlamaNet on NVIDIA GPUs.
#
#   docker build -f docker/inference.cuda.Dockerfile -t llamanet-cuda .
#   docker run --gpus all -v "$PWD/models:/models:ro" -e MODEL_PATH=/models/model.gguf -p 8000:8000 -p 8001:8001/udp llamanet-cuda
#
# All layers go to the GPU (N_GPU_LAYERS=-1). CUDA_ARCHITECTURES bounds what is compiled for: 80 Ampere, 89 Ada, 90 Hopper.

ARG CUDA_VERSION=12.6.3

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-venv python3-dev \
    && rm -rf /var/lib/apt/lists/*
ARG CUDA_ARCHITECTURES="80;86;89;90"
# The driver's library is there only when the container runs.
ARG CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES} -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
COPY pyproject.toml README.md LICENSE /src/
COPY llamanet /src/llamanet
RUN python3 -m venv /opt/llamanet \
    && /opt/llamanet/bin/pip install --no-cache-dir "/src[gateway]"

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /data llamanet
COPY --from=build /opt/llamanet /opt/llamanet
ENV PATH=/opt/llamanet/bin:$PATH \
    DATA_DIR=/data \
    N_GPU_LAYERS=-1
USER 10001
VOLUME ["/data", "/models"]
EXPOSE 8000/tcp 8001/udp 8080/tcp
STOPSIGNAL SIGTERM
# "starting" until the models are loaded, which for a large one that is yet to be pulled takes long; "healthy" from then on.
HEALTHCHECK --interval=30s --timeout=5s --start-period=1h --start-interval=5s --retries=3 \
    CMD ["llamanet", "control", "status", "--ready"]
ENTRYPOINT ["llamanet"]
CMD ["node"]
