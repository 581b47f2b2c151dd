# Build:  docker build -t bids_dmrigen .                                    (CUDA)
#         docker build --build-arg TORCH_BACKEND=cpu -t bids_dmrigen:cpu .  (no GPU)
# Run:    docker run --gpus all -v DATA:/data:ro -v OUT:/out bids_dmrigen /data /out participant
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_BACKEND=auto
# Where pip needs a configuration or certificates of the building machine, they come as secrets and leave no trace.
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt \
    --mount=type=bind,source=constraints.txt,target=/run/constraints.txt \
    set -eu; \
    if [ -f /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt SSL_CERT_FILE=/run/secrets/ca.crt; fi; \
    python3 -m venv /opt/venv; \
    torch="$(grep '^torch==' /run/constraints.txt)"; \
    if [ "${TORCH_BACKEND}" = cpu ] && /opt/venv/bin/pip install --no-cache-dir "${torch}+cpu"; then exit 0; fi; \
    /opt/venv/bin/pip install --no-cache-dir uv; \
    backend="${TORCH_BACKEND}"; if [ "${backend}" = auto ]; then backend=cu128; fi; \
    /opt/venv/bin/uv pip install --no-cache --python /opt/venv/bin/python --torch-backend="${backend}" "${torch}"; \
    /opt/venv/bin/pip uninstall --yes uv
# The other packages change rarely, the code often: two layers.
COPY pyproject.toml constraints.txt README.md LICENSE /src/
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt \
    set -eu; \
    if [ -f /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    mkdir -p /src/bids_dmrigen && touch /src/bids_dmrigen/__init__.py; \
    SETUPTOOLS_SCM_PRETEND_VERSION=0 /opt/venv/bin/pip install --no-cache-dir --constraint /src/constraints.txt /src; \
    /opt/venv/bin/pip uninstall --yes bids_dmrigen
ARG VERSION=0.1.0.dev0
COPY bids_dmrigen /src/bids_dmrigen
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt \
    set -eu; \
    if [ -f /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" /opt/venv/bin/pip install --no-cache-dir --no-deps /src

FROM ${BASE}
ARG VERSION=0.1.0.dev0
LABEL org.opencontainers.image.title="bids_dmrigen" \
      org.opencontainers.image.description="Diffusion models for diffusion MRI, as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    BIDS_DMRIGEN_IMAGE=bids_dmrigen:${VERSION}
HEALTHCHECK CMD ["bids_dmrigen", "--version"]
ENTRYPOINT ["bids_dmrigen"]
