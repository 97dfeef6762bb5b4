"""A load test of `blip-lite serve` on loopback: so many clients that each ask again as soon as they are answered, with
requests batched (8 images at a time) and one at a time, alternating.

python benchmarks/serving.py [--photos DIR] [--size base]        (needs blip_lite[serve])
"""

from __future__ import annotations

import http.client
import io
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import arguments, checkpoint, photographs
from PIL import Image

ROOT = Path(__file__).parent.parent


def pictures(folder: Path | None) -> list[bytes]:
    """16 photographs, or drawn scenes of 500 x 375 pixels as JPEG."""
    if folder:
        return [Path(path).read_bytes() for path in photographs(folder, 16)]
    from blip_lite.data.sources.shapes import draw_scene, scene_ids

    files = [io.BytesIO() for _ in range(16)]
    for file, scene in zip(files, scene_ids(16, 0), strict=True):
        draw_scene(scene, 500).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    return [file.getvalue() for file in files]


def load(port: int, images: list[bytes], clients: int, requests: int) -> tuple[list[float], float]:
    """Seconds that each request took, and requests a second in all."""

    def client(number: int) -> list[float]:
        connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
        for i in range(number, requests, clients):
            start = time.perf_counter()
            url = "/caption?num_beams=5&max_new_tokens=20"
            connection.request("POST", url, images[i % len(images)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            seconds.append(time.perf_counter() - start)
        return seconds

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = [s for part in pool.map(client, range(clients)) for s in part]
    return seconds, requests / (time.perf_counter() - start)


def main() -> None:
    args = arguments(__doc__)
    images, servers, ports = pictures(args.photos), [], {}
    for batch in (8, 1):
        command = [sys.executable, "-m", "blip_lite", "serve", str(checkpoint(args.size)), "--port", "0", "--no_page"]
        command += ["--batch_size", str(batch), "--timeout", "600", "--device", args.device, "--dtype", args.dtype]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        servers.append(server)
        assert server.stdout
        ports[batch] = next(int(m[1]) for line in server.stdout if (m := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        load(ports[batch], images, 1, 2)  # the first ones wait for threads and buffers
    try:
        where = f"{os.cpu_count()} cores" if args.device == "cpu" else args.device
        print(f"{args.size}, {where}, {args.dtype}, 5 beams, 20 tokens, {args.repeats} rounds\n", flush=True)
        print("| clients | images at a time | requests a second | p50 | p99 |\n|---|---|---|---|---|")
        for clients in (1, 8, 32):
            requests = max(16, 2 * clients) * (4 if args.size == "tiny" else 1)
            found: dict[int, list[tuple[list[float], float]]] = {8: [], 1: []}
            for _ in range(args.repeats):
                for batch, port in ports.items():
                    found[batch].append(load(port, images, clients, requests))
            for batch, runs in found.items():
                p50, p99 = np.percentile([s for seconds, _ in runs for s in seconds], [50, 99])
                rates = [rate for _, rate in runs]
                rate = f"{np.median(rates):.3g}"
                rate += f" ({min(rates):.3g} to {max(rates):.3g})" if args.repeats > 1 else ""
                at_a_time = "1" if batch == 1 else f"up to {batch}"
                print(f"| {clients} | {at_a_time} | {rate} | {p50:.3g} s | {p99:.3g} s |", flush=True)
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main()
