# An image for machines without accelerators: tokenizing, tests, evaluation of small models.
# From the checkout's root:
#
#   docker build -f launch/docker/cpu.Dockerfile --build-arg REVISION="$(git rev-parse HEAD)" \
#       -t IMAGE . && docker push IMAGE
#
# Dependencies are pinned with hashes in requirements-cpu.txt (launch/docker/lock.sh updates them).
FROM python:3.11-slim-bookworm

COPY launch/docker/requirements-cpu.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.txt

COPY pyproject.toml README.md LICENSE /t5x_lite/
COPY t5x_lite /t5x_lite/t5x_lite
COPY gin_configs /t5x_lite/gin_configs
RUN pip install --no-cache-dir --no-deps --no-build-isolation /t5x_lite \
    && useradd --create-home --uid 1000 runner

ARG REVISION=none
ENV T5X_LITE_REVISION=$REVISION PYTHONUNBUFFERED=1
ENV JAX_PLATFORMS=cpu
USER 1000
WORKDIR /home/runner
CMD ["t5x_lite", "--help"]
