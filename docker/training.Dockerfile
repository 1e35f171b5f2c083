# syntax=docker/dockerfile:1
# Image of the training programs: they read a data set and write a bundle. No service code.
#   docker build -f docker/training.Dockerfile -t automr-training .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD/data:/data:ro" -v "$PWD/model_store/bundles:/bundles" \
#     automr-training training.pipeline --data /data/books --out /bundles/books

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
    "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['train'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="automr-training" \
      org.opencontainers.image.description="Trains the bundles that automr serves"
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY model_store ./model_store
COPY training ./training
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["training.pipeline", "--help"]
