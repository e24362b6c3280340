# An image for NVIDIA GPUs: CUDA is in the Python packages; the host needs the driver (525 or later).
# From the checkout's root:
#
#   docker build -f launch/docker/gpu.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" \
#       -t IMAGE . && docker push IMAGE
#
# Dependencies are pinned with hashes in requirements-gpu.txt (launch/docker/lock.sh updates them).
FROM python:3.11-slim-bookworm

COPY launch/docker/requirements-gpu.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.txt

COPY pyproject.toml README.md LICENSE /t5x_lite/
COPY t5x_lite /t5x_lite/t5x_lite
COPY gin_configs /t5x_lite/gin_configs
RUN pip install --no-cache-dir --no-deps --no-build-isolation /t5x_lite \
    && useradd --create-home --uid 1000 runner

ARG REVISION=none
ENV T5X_LITE_REVISION=$REVISION PYTHONUNBUFFERED=1
ENV XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
USER 1000
WORKDIR /home/runner
CMD ["t5x_lite", "--help"]
