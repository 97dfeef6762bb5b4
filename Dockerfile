# Captions over HTTP: docker build -t blip_lite . && docker run -p 127.0.0.1:7860:7860 -v "$PWD/runs/shapes/best:/model:ro" blip_lite
# On a GPU: build with --build-arg TORCH=INDEX, the index that pytorch.org names for your CUDA; run with --gpus all.
FROM python:3.13-slim

ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url $TORCH
COPY pyproject.toml README.md LICENSE /src/
COPY blip_lite /src/blip_lite
RUN pip install --no-cache-dir "/src[serve]"

RUN useradd --create-home blip
USER blip
EXPOSE 7860
HEALTHCHECK --start-period=2m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["blip-lite", "serve", "--host", "0.0.0.0", "--port", "7860"]
CMD ["/model"]
