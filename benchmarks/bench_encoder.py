"""Products embedded a second, ours against plain loops over the same model, and the memory of cached gradients.

    python -m benchmarks.bench_encoder                                # 2,000 products, a batch of 1,024
    python -m benchmarks.bench_encoder --products 200 --batch 64      # a check

The catalogue is synthetic: 1 to 5 pictures a product, titles of 2 to 30 words, 30% of the products with the content of
another. Every way runs in a process of its own and turns a file into pixels by the same function; its vectors must be
ours. On a GPU, where there is one: tokens a second, and their share of the peak that a large matrix product reaches.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.processes import Measured, measure, run

if TYPE_CHECKING:
    import torch

    from models.encoder.encoder import Encoder

REPEATED = 0.3
MOST_IMAGES = 5
PADDED_BATCH = 64
ONE_BY_ONE_SHARE = 8
"""The slowest way embeds one product of so many."""
CHUNK = 64
TOLERANCE = 2e-3
"""Of a unit vector that was rounded to float16, or of a gradient's norm."""
LEAST_COSINE = 0.99
"""Of a vector in bfloat16 to the one in float32."""
WAYS = ("one by one", "padded batches", "ours", "ours in bfloat16")

Catalogue = tuple[list[str], list[list[bytes]]]


def main() -> int:
    """Measure every way in a process of its own, or be that process; 1 if the results of two ways differ."""
    parser = argparse.ArgumentParser(description="Speed of embedding, and memory of cached gradients.")
    parser.add_argument("--products", type=int, default=2000)
    parser.add_argument("--side", type=int, default=300, help="of a picture's file, in pixels")
    parser.add_argument("--batch", type=int, default=1024, help="pairs of a contrastive batch")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=[*WAYS, "plain", "cached"], help=argparse.SUPPRESS)
    stated = parser.parse_args()
    if stated.one in WAYS:
        measure(embedding(stated.one, stated.data), lambda rows: ("", rows))
        return 0
    if stated.one:
        measure(training_step(stated.one, stated.batch, stated.data), lambda rows: ("", rows))
        return 0
    with TemporaryDirectory(prefix="moonlake-bench-") as folder:
        equal = compare_embedding(Path(folder), stated.products, stated.side)
        equal &= compare_gradients(Path(folder), stated.batch)
    print(tokens_on_gpu(), flush=True)
    return 0 if equal else 1


def compare_embedding(folder: Path, products: int, side: int) -> bool:
    """Whether all ways gave the same vectors; prints their speeds."""
    (folder / "catalogue.pickle").write_bytes(pickle.dumps(catalogue(products, side)))
    print(
        f"{products} products, pictures of {side} x {side} pixels\n{'':16} products/s  to padded  peak GB", flush=True
    )
    found = {way: run("benchmarks.bench_encoder", ["--one", way, "--data", str(folder)]) for way in WAYS}
    for way, one in found.items():
        if one.stopped:
            print(f"{way:16} {one.stopped}")
            return False
    padded = _speed(found["padded batches"])
    for way, one in found.items():
        print(f"{way:16} {_speed(one):10.1f} {_speed(one) / padded:10.2f} {one.peak / 1e9:8.2f}", flush=True)
    ours = np.load(folder / "ours.npy")
    plain = [_same(f"vectors {way}", ours[: found[way].rows], np.load(folder / f"{way}.npy")) for way in WAYS[:2]]
    cosine = (ours * np.load(folder / f"{WAYS[3]}.npy")).sum(1)
    print(
        f"vectors in bfloat16: cosine to those in float32 {cosine.min():.4f} at least, {cosine.mean():.4f} in the mean"
    )
    return all(plain) and float(cosine.min()) >= LEAST_COSINE


def compare_gradients(folder: Path, batch: int) -> bool:
    """Whether cached gradients are the plain ones; prints what memory both took."""
    print(f"\none training step, {batch} pairs\n{'':16}    seconds  GB above imports")
    found = {}
    for way in ("plain", "cached"):
        arguments = ["--one", way, "--batch", str(batch), "--data", str(folder)]
        found[way] = one = run("benchmarks.bench_encoder", arguments)
        print(f"{way:16} {one.stopped or f'{one.seconds:10.1f} {one.above / 1e9:17.2f}'}", flush=True)
    if any(one.stopped for one in found.values()):
        return not found["cached"].stopped  # plain may well need more memory than there is
    plain, cached = (np.load(folder / f"{way}.npy") for way in found)
    return _same("gradients", cached / np.linalg.norm(plain), plain / np.linalg.norm(plain))


def catalogue(products: int, side: int) -> Catalogue:
    """Titles and JPEG files; REPEATED of the products have the content of an earlier one."""
    rng = np.random.default_rng(5)
    words = [f"word{number}" for number in range(500)]
    texts: list[str] = []
    images: list[list[bytes]] = []
    for at in range(products):
        if at and rng.random() < REPEATED:
            same = int(rng.integers(at))
            texts.append(texts[same])
            images.append([bytes(bytearray(one)) for one in images[same]])  # equal, but not the same object
            continue
        texts.append(" ".join(rng.choice(words, int(rng.integers(2, 31)))))
        images.append([_jpeg(rng, side) for _ in range(int(rng.integers(1, MOST_IMAGES + 1)))])
    return texts, images


def embedding(way: str, folder: Path) -> Callable[[], int]:
    """A function that embeds the catalogue in one of WAYS, writes the vectors and gives the number of products."""
    from models.inference import Embedder

    texts, images = pickle.loads((folder / "catalogue.pickle").read_bytes())
    encoder = _encoder(texts)

    def plain(size: int, count: int) -> int:
        vectors = [_plain_batch(encoder, texts[at : at + size], images[at : at + size]) for at in range(0, count, size)]
        np.save(folder / f"{way}.npy", np.concatenate(vectors))
        return count

    def ours() -> int:
        embedder = Embedder.of(encoder, precision="float32" if way == "ours" else "bfloat16")
        np.save(folder / f"{way}.npy", embedder.embed(texts, images))
        return len(texts)

    _plain_batch(encoder, texts[:2], images[:2])  # what libraries set up at the first call is not counted
    if way.startswith("ours"):
        return ours
    one_by_one = way == "one by one"
    size = 1 if one_by_one else PADDED_BATCH
    return lambda: plain(size, max(1, len(texts) // ONE_BY_ONE_SHARE) if one_by_one else len(texts))


def training_step(way: str, pairs: int, folder: Path) -> Callable[[], int]:
    """A function that derives InfoNCE over a batch, "plain" or "cached" in chunks, and writes the gradient."""
    import torch

    from models.encoder.encoder import to_float
    from models.training.cached_gradients import cached_step

    encoder = _encoder(["a title of a few words"]).train()
    encoder.backbone.tower().eval()  # batch normalisation by kept statistics: else a chunk has its own
    sides = torch.randint(0, 256, (2, pairs, *encoder.config.image_size, 3), dtype=torch.uint8)
    no_images = sides[0, :0]
    end = encoder.words([None])

    def encode(chosen: slice) -> tuple[torch.Tensor, ...]:
        count = len(range(*chosen.indices(pairs)))
        prompts = encoder.prompts(end * count, [1] * count, no_images)
        return tuple(encoder(prompts, to_float(side[chosen])) for side in sides)

    def info_nce(queries: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(queries @ items.T / 0.07, torch.arange(len(queries)))

    def step() -> int:
        size = pairs if way == "plain" else CHUNK
        cached_step(encode, [slice(at, min(pairs, at + size)) for at in range(0, pairs, size)], info_nce)
        gradients = [one.grad.flatten() for one in encoder.parameters() if one.grad is not None]
        np.save(folder / f"{way}.npy", torch.cat(gradients).numpy())
        return pairs

    return step


def tokens_on_gpu() -> str:
    """A line with the tokens a second of a language model of 0.2 billion weights in bfloat16, and its share of peak."""
    import torch

    if not torch.cuda.is_available():
        return "\ntokens/s and share of peak: skipped, there is no GPU"
    rate, share = tokens_per_second(torch.device("cuda"), hidden=1024, layers=16, rows=256)
    return f"\n{torch.cuda.get_device_name()}: {rate:,.0f} tokens/s, {share:.0%} of the peak of a matrix product"


def tokens_per_second(device: torch.device, *, hidden: int, layers: int, rows: int) -> tuple[float, float]:
    """Tokens a second through a language model in bfloat16, and the arithmetic of its weights over the peak's."""
    import torch

    from models.encoder.config import EncoderConfig, TinyConfig
    from models.encoder.factory import new_encoder

    words = [f"word{number}" for number in range(500)]
    tiny = TinyConfig(tower_weights="random", hidden=hidden, layers=layers, heads=16)
    encoder = new_encoder(EncoderConfig(tiny=tiny, max_text_tokens=64), words).eval().to(device)
    prompts = encoder.batch([" ".join(words[:128])] * rows, [np.zeros((0, 64, 64, 3), np.uint8)] * rows)
    tokens = int(prompts.attention_mask.sum())
    weights = sum(one.numel() for one in encoder.backbone.model.model.language_model.layers.parameters())
    square = torch.rand(4096 if device.type == "cuda" else 512, 4096, device=device, dtype=torch.bfloat16)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        seconds = _seconds(lambda: encoder(prompts), device)
        peak = 2 * square.shape[0] ** 2 * 4096 / _seconds(lambda: square @ square.T, device)
    return tokens / seconds, 2 * weights * tokens / seconds / peak


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    import torch

    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _encoder(texts: Sequence[str]) -> Encoder:
    """The default encoder, untrained, with as many images as a product has; the same in every process."""
    import torch

    from models.encoder.config import EncoderConfig
    from models.encoder.factory import new_encoder

    torch.manual_seed(0)
    return new_encoder(EncoderConfig(max_images=MOST_IMAGES), texts).eval()


def _plain_batch(encoder: Encoder, texts: Sequence[str], images: Sequence[Sequence[bytes]]) -> np.ndarray:
    """float32 [n, D]: rows as they come, padded to the longest, every picture decoded and sent through the tower."""
    import torch

    from models.encoder.pictures import to_pixels

    pixels = [np.stack([to_pixels(one, encoder.config.image_size) for one in row]) for row in images]
    with torch.inference_mode():
        vectors: np.ndarray = encoder(encoder.batch(texts, pixels)).numpy()
    return vectors


def _jpeg(rng: np.random.Generator, side: int) -> bytes:
    """A picture of soft blots, about as large as a photograph of its size."""
    coarse = rng.integers(0, 256, (side // 12, side // 12, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _same(what: str, first: np.ndarray, second: np.ndarray) -> bool:
    difference = float(np.abs(first - second).max())
    print(f"{what}: largest difference {difference:.1e}{'' if difference <= TOLERANCE else ': NOT EQUAL'}", flush=True)
    return difference <= TOLERANCE


def _speed(one: Measured) -> float:
    return one.rows / one.seconds


if __name__ == "__main__":
    sys.exit(main())
