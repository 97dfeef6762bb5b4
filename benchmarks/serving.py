"""A load test of `app.py` on loopback: so many clients that each ask again as soon as they are answered, with requests
batched and one at a time, alternating.

python benchmarks/serving.py --photos DIR [--size base]        (needs blip_lite[demo])
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import arguments, checkpoint, photographs
from gradio_client import Client, handle_file

ROOT = Path(__file__).parent.parent
CLIENTS, REQUESTS = 8, 32


def load(url: str, photos: list[str]) -> tuple[list[float], float]:
    """Seconds that each request took, and requests a second in all."""
    clients = [Client(url, verbose=False) for _ in range(CLIENTS)]

    def ask(number: int) -> float:
        start = time.perf_counter()
        caption, _ = clients[number % CLIENTS].predict(
            handle_file(photos[number % len(photos)]), "", 5, 20, api_name="/caption"
        )
        assert "cannot be used" not in caption, caption
        return time.perf_counter() - start

    def client(number: int) -> list[float]:
        return [ask(i) for i in range(number, REQUESTS, CLIENTS)]

    ask(0)  # the first one waits for threads and buffers
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        seconds = [s for part in pool.map(client, range(CLIENTS)) for s in part]
    return seconds, REQUESTS / (time.perf_counter() - start)


def main() -> None:
    args = arguments(__doc__)
    photos = photographs(args.photos, 16)
    servers, urls = [], {}
    for batch in (8, 1):
        environment = {
            **os.environ,
            "BLIP_CKPT": str(checkpoint(args.size)),
            "BLIP_BATCH": str(batch),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")], stdout=subprocess.PIPE, text=True, env=environment
        )
        servers.append(server)
        assert server.stdout
        urls[batch] = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    try:
        found: dict[int, list[tuple[list[float], float]]] = {8: [], 1: []}
        for _ in range(args.repeats):
            for batch, url in urls.items():
                found[batch].append(load(url, photos))
        print(f"{CLIENTS} clients, {args.repeats} x {REQUESTS} requests, {args.size}, 5 beams, 20 tokens")
        print("| images at a time | requests/s | p50 | p95 | p99 |\n|---|---|---|---|---|")
        for batch, runs in found.items():
            p50, p95, p99 = np.percentile([s for seconds, _ in runs for s in seconds], [50, 95, 99])
            rates = [rate for _, rate in runs]
            print(
                f"| {batch} | {np.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f}) | {p50:.2f} s | {p95:.2f} s | {p99:.2f} s |"
            )
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main()
