# The stream worker, without torch: docker build -f deploy/images/stream.Dockerfile .
FROM python:3.11-slim

RUN useradd --system --create-home --uid 10001 tidegraph
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt \
    click confluent-kafka faust-streaming jinja2 kafka-python msgspec numpy polars \
    prometheus-client rich

COPY tidegraph.py ./
COPY stream stream
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER tidegraph
ENTRYPOINT ["python", "-m", "tidegraph"]
CMD ["stream"]
