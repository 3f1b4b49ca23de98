# The learner: docker build -f deploy/images/learner.Dockerfile .
# Without a GPU add --build-arg PIP_EXTRA_INDEX_URL=..., the index of PyTorch's builds for the CPU: the
# usual index brings CUDA, about 3 GB.
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL
RUN useradd --system --create-home --uid 10001 tidegraph \
    && install -d -o tidegraph /var/lib/tidegraph
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt \
    click confluent-kafka cryptography kafka-python msgspec numba numpy polars prometheus-client redis \
    river torch

COPY tidegraph.py ./
COPY stream stream
COPY graph_store graph_store
COPY serving serving
COPY learner learner
# Compiled kernels are kept between starts.
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/var/lib/tidegraph/numba
USER tidegraph
VOLUME /var/lib/tidegraph
ENTRYPOINT ["python", "-m", "tidegraph"]
CMD ["learn"]
