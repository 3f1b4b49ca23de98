# What reads the table, without torch and Kafka: docker build -f deploy/images/serving.Dockerfile .
FROM python:3.11-slim

RUN useradd --system --create-home --uid 10001 tidegraph
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt click msgspec numpy polars redis

COPY tidegraph.py ./
COPY stream stream
COPY serving serving
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER tidegraph
ENTRYPOINT ["python", "-m", "tidegraph"]
CMD ["embeddings", "--help"]
