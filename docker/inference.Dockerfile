# LlamaNet on the CPU: a node, and with another command every other part (gateway, ask, nodes, ...).
#
#   docker build -f docker/inference.Dockerfile -t llamanet .
#   docker run -v "$PWD/models:/models:ro" -e MODEL_PATH=/models/model.gguf -p 8000:8000 -p 8001:8001/udp llamanet
#
# All settings are variables (see `llamanet node --help`). What the node keeps, its key above all, is in /data.

FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# Not for the processor that compiles: the image runs on any x86-64 with AVX2, and on any 64-bit ARM.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
COPY pyproject.toml README.md LICENSE /src/
COPY llamanet /src/llamanet
RUN python3 -m venv /opt/llamanet \
    && /opt/llamanet/bin/pip install --no-cache-dir "/src[gateway]"

FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /data llamanet
COPY --from=build /opt/llamanet /opt/llamanet
ENV PATH=/opt/llamanet/bin:$PATH \
    DATA_DIR=/data
USER 10001
VOLUME ["/data", "/models"]
EXPOSE 8000/tcp 8001/udp 8080/tcp
STOPSIGNAL SIGTERM
# "starting" until the models are loaded, which for a large one that is yet to be pulled takes long; "healthy" from then on.
HEALTHCHECK --interval=30s --timeout=5s --start-period=1h --start-interval=5s --retries=3 \
    CMD ["llamanet", "control", "status", "--ready"]
ENTRYPOINT ["llamanet"]
CMD ["node"]
