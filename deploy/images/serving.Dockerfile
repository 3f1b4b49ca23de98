# The API, without torch and faust: docker build -f deploy/images/serving.Dockerfile .
FROM python:3.11-slim

RUN useradd --system --create-home --uid 10001 tidegraph \
    && install -d -o tidegraph /var/lib/tidegraph
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt \
    'aiokafka[lz4,zstd]' click confluent-kafka cryptography faiss-cpu falcon granian jinja2 kafka-python \
    markupsafe matplotlib msgspec numpy polars prometheus-client pyjwt redis threadpoolctl uvloop

COPY tidegraph.py ./
COPY stream stream
COPY serving serving
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER tidegraph
VOLUME /var/lib/tidegraph
ENTRYPOINT ["python", "-m", "tidegraph"]
CMD ["serve"]
