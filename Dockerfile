# Build:  docker build -t bids_dmrigen .                                        (CUDA)
#         docker build --build-arg TORCH_BACKEND=cpu -t bids_dmrigen:cpu .      (no GPU, a third of the size)
# Run:    docker run --rm --gpus all -v DATA:/data:ro -v OUT:/out bids_dmrigen /data /out participant
#
# The base is named by tag, so that Debian's and Python's security fixes come in; every package on it is pinned.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS environment
# cuda: the build that the package index has; cpu, cu126 and the like: other builds, by name.
ARG TORCH_BACKEND=cuda
# A folder mounted into the build, or a page, with builds of torch beside those of the package index.
ARG PIP_FIND_LINKS
# Where pip needs a configuration or certificates of the building machine, they come as secrets and leave no trace.
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# torch in a layer of its own: it is the largest and changes least. === leaves out the builds with a local name (+cpu).
# Files are copied, not bound: not every builder looks into bound ones for what has changed.
COPY constraints.txt /src/
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt \
    set -eu; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 -m venv /opt/venv; \
    version="$(sed -n 's/^torch==//p' /src/constraints.txt)"; \
    if [ "${TORCH_BACKEND}" = cuda ]; then \
        /opt/venv/bin/pip install --constraint /src/constraints.txt "torch===${version}"; \
    elif ! /opt/venv/bin/pip install --constraint /src/constraints.txt "torch==${version}+${TORCH_BACKEND}"; then \
        python3 -m venv /opt/uv; \
        /opt/uv/bin/pip install --constraint /src/constraints.txt uv; \
        /opt/uv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python \
            --constraint /src/constraints.txt --torch-backend="${TORCH_BACKEND}" "torch==${version}"; \
    fi
# What the code needs, without the code, which changes often; and, apart, what makes a package of it.
COPY pyproject.toml /src/
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt \
    set -eu; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    list='import sys, tomllib; project = tomllib.load(open("/src/pyproject.toml", "rb")); \
print(*project["project"]["dependencies"] if sys.argv[1] == "run" else project["build-system"]["requires"], sep="\n")'; \
    python3 -c "$list" run > /tmp/run.txt; \
    python3 -c "$list" build > /tmp/build.txt; \
    /opt/venv/bin/pip install --constraint /src/constraints.txt --requirement /tmp/run.txt; \
    python3 -m venv /opt/build; \
    /opt/build/bin/pip install --constraint /src/constraints.txt --requirement /tmp/build.txt

FROM environment AS package
ARG VERSION=0.1.0.dev0
COPY README.md LICENSE /src/
COPY bids_dmrigen /src/bids_dmrigen
# --root: what comes with the code stands apart from the rest of the environment, compiled, because a read-only root is not.
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" \
    /opt/build/bin/pip wheel --no-index --no-build-isolation --no-deps --wheel-dir /wheel /src \
    && /opt/venv/bin/pip install --no-index --no-deps --root /code /wheel/*.whl

FROM ${BASE}
COPY --from=environment /opt/venv /opt/venv
# A layer of its own: another version of the code shares all the others.
COPY --from=package /code/opt/venv /opt/venv
ARG VERSION=0.1.0.dev0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bids_dmrigen" \
      org.opencontainers.image.description="Diffusion models for diffusion MRI, as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/bids-dmrigen/bids_dmrigen" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    BIDS_DMRIGEN_IMAGE=bids_dmrigen:${VERSION}
# Process 1 ignores the usual TERM; on this the app stops, and says that it can go on.
STOPSIGNAL SIGINT
HEALTHCHECK CMD ["bids_dmrigen", "--version"]
ENTRYPOINT ["bids_dmrigen"]
