# The server on a CPU. --shm-size=2g is for Ray's object store; the API is open to the container's network: set BIREME_API_KEY.
#   docker build -t bireme . && docker run --rm --shm-size=2g -p 127.0.0.1:8000:8000 -e BIREME_API_KEY=secret bireme
FROM python:3.12-slim-bookworm

# A compiler stays in the image: native ops are built for the sources that are installed, when the image is made.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 bireme
WORKDIR /opt/bireme
COPY --chown=bireme . .
RUN chown bireme /opt/bireme
USER bireme
ENV RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
RUN make prepare

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT [".venv/bin/bireme", "serve", "--host", "0.0.0.0"]
CMD ["smollm2_cpu"]
