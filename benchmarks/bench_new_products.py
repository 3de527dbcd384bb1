"""Products that arrive one by one while the stream runs: how long until each can be read online, and what a kill costs.

    python -m benchmarks.bench_new_products                # 200 products, one every 1.5 s
    python -m benchmarks.bench_new_products --kills 2      # the same, and kill -9 of the stream twice on the way

It needs a home with a live space (`make demo` makes one) and works on a copy of it. Every 25th record is poisoned. A
product counts as servable when its profile and its vector are read from the online store by another process: this one.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from moonlake.embeddings import releases
from moonlake.lake.lake import Lake
from moonlake.lake.product_events import ProductEvent, submit
from moonlake.settings import Settings

LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 180.0
POISONED_EVERY = 25


class Stream:
    """The stream in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        """Start the stream, and wait until it listens."""
        command = [sys.executable, "-u", "-m", "cli.app", "product", "watch"]
        environment = {**os.environ, **self.settings.environment()}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        while "listening" not in (line := self.process.stdout.readline()):
            if not line:
                raise SystemExit(f"the stream ended with status {self.process.wait()}")

    def kill(self) -> None:
        """Kill the stream and its JVM."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Watcher(threading.Thread):
    """Looks in the online store for products that were submitted, and notes when each is there with its vector."""

    def __init__(self, settings: Settings) -> None:
        from moonlake.feast_delta.store import feature_store

        super().__init__(daemon=True)
        self.store, self.space_id = feature_store(settings), releases.live(Lake(settings)).space_id
        self.sent: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Look, again and again."""
        while True:
            for product_id in sorted(self.sent.keys() - self.seconds.keys()):
                if self._is_servable(product_id):
                    self.seconds[product_id] = time.monotonic() - self.sent[product_id]
            time.sleep(LOOK_SECONDS)

    def _is_servable(self, product_id: str) -> bool:
        content_id = self._read("product_profile_v1:product_content_id", product_id=product_id)
        if not isinstance(content_id, str):
            return False
        return bool(self._read("content_embedding_v1:vector", content_id=content_id, space_id=self.space_id))

    def _read(self, feature: str, **keys: str) -> object:
        found = self.store.get_online_features([feature], [keys]).to_dict()
        return found[feature.partition(":")[2]][0]


def hand_in_one_by_one(lake: Lake, watcher: Watcher, count: int, gap: float, at: dict[int, Callable[[], None]]) -> int:
    """The number of poisoned records beside `count` good ones. `at`: calls before a product, by its number."""
    draw = np.random.default_rng(0)
    poisoned = 0
    for number in range(count):
        at.get(number, lambda: None)()
        due = time.monotonic() + gap
        if number % POISONED_EVERY == 0:
            _hand_in(lake, f"poisoned-{number}", "{not json" if number % 2 else json.dumps({"title": "x" * 2_000}))
            poisoned += 1
        picture = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (96, 72, 3), np.uint8)).save(picture, "JPEG")
        images = {"front.jpg": base64.b64encode(picture.getvalue()).decode()}
        product_id = f"arriving-{number:04}"
        watcher.sent[product_id] = time.monotonic()
        _hand_in(lake, product_id, json.dumps({"title": f"oak chair {number}", "price_cents": 100, "images": images}))
        time.sleep(max(0.0, due - time.monotonic()))
    return poisoned


def _hand_in(lake: Lake, product_id: str, payload: str) -> None:
    now = datetime.now(UTC)
    submit(lake, [ProductEvent(product_id, product_id, "upsert", payload, "bench", now)], written_at=now)


def check(lake: Lake, count: int, poisoned: int, before: dict[str, int]) -> None:
    """Stop with a message if anything was lost or doubled."""
    arrivals = Counter(lake.read("product_arrivals")["outcome"].to_pylist())
    products = [one for one in lake.read("products")["product_id"].to_pylist() if one.startswith("arriving-")]
    vectors = lake.read("embeddings", ["content_id", "space_id"])
    distinct = len(set(zip(*(vectors[name].to_pylist() for name in vectors.column_names), strict=True)))
    images = lake.read("product_images", ["image_id"])["image_id"].to_pylist()
    found = {
        "products": (len(products), count), "distinct products": (len(set(products)), count),
        "servable": (arrivals["servable"], count), "refused": (arrivals["refused"], poisoned),
        "images": (len(images) - before["product_images"], count), "distinct images": (len(set(images)), len(images)),
        "vectors": (len(vectors) - before["embeddings"], count), "distinct vectors": (distinct, len(vectors)),
        "rejects": (len(lake.read("rejects")) - before["rejects"], poisoned),
    }  # fmt: skip
    if wrong := {name: pair for name, pair in found.items() if pair[0] != pair[1]}:
        raise SystemExit(f"lost or doubled (found, expected): {wrong}")


def main() -> None:
    """Print p50, p95 and max of the time until a product can be read online, and whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=200)
    parser.add_argument("--gap", type=float, default=1.5, help="seconds between two products")
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of the stream, at moments drawn at random")
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        shutil.copytree(Settings.from_environment().home, home)
        settings = Settings.from_environment(home=home)
        lake = Lake(settings)
        before = {name: len(lake.read(name)) for name in ("product_images", "embeddings", "rejects")}
        stream = Stream(settings)

        def kill() -> None:
            time.sleep(draw.uniform(0, given.gap))
            stream.kill()
            print("killed and started again", flush=True)
            threading.Thread(target=stream.start).start()

        draw = np.random.default_rng()
        thirds = np.array_split(np.arange(given.products), given.kills + 1)[1:]  # far enough apart to start again
        kills = {int(draw.choice(part[: len(part) // 2])): kill for part in thirds}
        watcher = Watcher(settings)
        watcher.start()
        poisoned = hand_in_one_by_one(lake, watcher, given.products, given.gap, kills)
        until = time.monotonic() + PATIENCE_SECONDS
        while len(watcher.seconds) < given.products and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        time.sleep(5)  # the last record settles
        stream.process.terminate()
        stream.process.wait()
        check(lake, given.products, poisoned, before)
        times = np.array(list(watcher.seconds.values()))
        said = ", ".join(
            f"{name} {np.quantile(times, at):.2f} s" for name, at in (("p50", 0.5), ("p95", 0.95), ("max", 1))
        )
        print(f"{given.products} products, {given.kills} kills: product to servable {said}; nothing lost or doubled")
        print(f"below 5 s: {(times < 5).mean():.1%}")


if __name__ == "__main__":
    main()
