"""Click models beside a peer, and what content costs: samples a second, AUC, bytes, milliseconds, memory, in one run.

    python -m benchmarks.bench_ctr                                # 200,000 training rows, three epochs
    python -m benchmarks.bench_ctr --rows 4000 --steps 2          # a check

All behaviour is simulated: users come back to products of three kinds, and click the oftener the more of their last
actions were on the kind that they are shown. Our DIN and that of FuxiCTR see the same rows, split and numbers of ids,
and have the same widths, optimiser, batches, epochs and threads; FuxiCTR lives in an environment of its own in build/,
made at the first run. Ours is also told the action and age of a behaviour, which tell nothing here, and whether it was
on the target itself, which does tell and which FuxiCTR's has to see in the ids; ours pays for reading all three. Rates
are medians over epochs, from the first batch of an epoch to its last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.processes import Measured, measure, run
from moonlake.arrays import Float16s, Float64s, Int64s
from moonlake.hashing import stable_hash
from moonlake.lake.sequence_logs import SequenceLog, lists_of, pointer_names, write_log
from moonlake.progress import EachNote
from moonlake.settings import Settings
from moonlake.training_sets.files import write_training_set
from moonlake.training_sets.manifest import Manifest
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet

if TYPE_CHECKING:
    from models.ctr.config import CtrConfig
    from models.ctr.model import CtrModel
    from moonlake.embeddings.snapshots import Snapshot

PEER = "fuxictr==2.3.10"
PEER_WAYS = {"FuxiCTR, loading beside": 1, "FuxiCTR, loading within": 0}
"""By the number of processes that load batches: 1 is its default."""
SAME_AUC = 0.005

START = datetime(2026, 1, 1, tzinfo=UTC)
T1, T2, END = (START + timedelta(days=days) for days in (30, 50, 60))
KINDS = 20
TASTES = 3
ON_TASTE, SHOWN_ON_TASTE = 0.8, 0.5
"""Shares of actions, and of impressions, on a kind that the user comes back to."""
ROWS_PER_USER, ROWS_PER_PRODUCT = 20, 100
LEAST_ROWS, ROWS_AT_ONCE = 3_000, 10_000
LENGTH = 50
DIMENSION = 128
CASES = ((LENGTH, 1024, 0), (100, 1024, 0), (1_000, 128, 0), (10_000, 16, 0), (1_000, 128, 50), (10_000, 16, 50))
"""Of the cube model: length of sequences, impressions of a batch, and how many actions a search keeps; 0 keeps all."""
PARTS = ("rows", "gather", "similarities", "learn", "step")
SEQUENCES = "user_behavior_sequence_v1"


def main() -> int:
    """Measure everything in processes of their own, or be one of them; 1 if our AUC falls behind the peer's."""
    parser = argparse.ArgumentParser(description="Click models beside a peer, and what content costs.")
    parser.add_argument("--rows", type=int, default=200_000, help="of the training window; a quarter more is tested on")
    parser.add_argument("--inlined", type=int, default=10_000, help="rows that are written with vectors inlined")
    parser.add_argument("--contents", type=int, default=200_000, help="vectors of the snapshot")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of the cube model, by length of sequences")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", choices=["ours", "cube"], help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    stated = parser.parse_args()
    if stated.rows < LEAST_ROWS:
        parser.error(f"--rows: a rate takes some batches, so at least {LEAST_ROWS:,}")
    if stated.one == "ours":
        measure(our_training(stated.data, stated.epochs), lambda rows: ("", rows))
        return 0
    if stated.one == "cube":
        measure(cube_steps(stated.data, stated.case, stated.contents, stated.steps), lambda rows: ("", rows))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(stated.threads)  # of every process from here on
    with TemporaryDirectory(prefix="moonlake-bench-") as temporary:
        folder = Path(temporary)
        same = compare_training(folder, stated.rows, stated.epochs, stated.threads)
        compare_bytes(folder, stated.inlined, stated.contents)
        measure_cube(folder, stated.contents, stated.steps)
    return 0 if same else 1


# Simulated shops


@dataclass(frozen=True)
class Shop:
    """A simulated shop of U users and P products, product p of kind p % KINDS, and what its users did.

    Attributes:
        tastes: int64 [U, TASTES], the kinds that a user comes back to.   liking: float64 [P], in units of the logit.
        offsets: int64 [U + 1]; the m actions of user u are [offsets[u], offsets[u + 1]), in order of time.
        acted_on, times: int64 [m], product and microseconds after START of each action.
        names: text ids of products, and of the contents of products [P] and then of queries [KINDS].
    """

    tastes: Int64s
    liking: Float64s
    offsets: Int64s
    acted_on: Int64s
    times: Int64s
    names: dict[str, pa.Array]

    @property
    def actions(self) -> pa.Table:
        """The log of actions in the columns of a behaviour sequence."""
        return pa.table({
            "behavior_product_ids": self.names["product"].take(pa.array(self.acted_on)),
            "behavior_content_ids": self.names["content"].take(pa.array(self.acted_on)),
            "behavior_query_content_ids": pa.nulls(len(self.times), pa.string()),
            "behavior_actions": pa.repeat("click", len(self.times)),
            "behavior_times_us": pa.array(self.times + _microseconds(START)),
        })  # fmt: skip


def new_shop(users: int, products: int, length: int) -> Shop:
    """A shop whose users have from a fifth of `length` to twice as many actions; whole multiples of KINDS products."""
    rng = np.random.default_rng(3)
    products += -products % KINDS
    tastes = rng.integers(0, KINDS, (users, TASTES))
    counts = rng.integers(max(1, length // 5), 2 * length + 1, users)
    owner = np.repeat(np.arange(users), counts)
    times = rng.integers(0, _microseconds(END) - _microseconds(START), len(owner))
    names = {
        "product": _names("p", products),
        "content": pa.array([stable_hash(f"content {number}") for number in range(products + KINDS)]),
    }
    return Shop(
        tastes=tastes,
        liking=rng.normal(0, 1.2, products),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        acted_on=_products(rng, _kinds(rng, tastes[owner], ON_TASTE), products),
        times=times[np.lexsort((times, owner))],
        names=names,
    )


def impressions(shop: Shop, length: int, training: int, test: int) -> Iterator[tuple[pa.Table, Int64s, Int64s]]:
    """Impressions in order of time, with where the last `length` actions of each start and stop in the log.

    `training` rows lie in [T1, T2) and `test` rows in [T2, END). Beside the columns of a training set there is
    `planted`, the probability that the click was drawn with.
    """
    rng = np.random.default_rng(4)
    first_training, first_test, end = (_microseconds(edge) - _microseconds(START) for edge in (T1, T2, END))
    at_training, at_test = rng.integers(first_training, first_test, training), rng.integers(first_test, end, test)
    times, span = np.sort(np.concatenate([at_training, at_test])), end + 1
    keys = np.repeat(np.arange(len(shop.tastes)), np.diff(shop.offsets)) * span + shop.times  # sorted
    for first in range(0, len(times), ROWS_AT_ONCE):
        at = times[first : first + ROWS_AT_ONCE]
        user = rng.integers(0, len(shop.tastes), len(at))
        kind = _kinds(rng, shop.tastes[user], SHOWN_ON_TASTE)
        product = _products(rng, kind, len(shop.liking))
        stop = np.searchsorted(keys, user * span + at)
        start = np.maximum(shop.offsets[user], stop - length)
        seen = lists_of(pa.table({"kind": shop.acted_on % KINDS}), None, start, stop)["kind"]
        row = np.repeat(np.arange(len(at)), stop - start)
        alike = np.bincount(row, seen.values.to_numpy() == kind[row], len(at)) / np.maximum(stop - start, 1)
        planted = 1 / (1 + np.exp(2.5 - shop.liking[product] - 6 * alike))
        numbers = first + np.arange(len(at))
        columns = {
            "impression_id": _texts("i", numbers), "request_id": _texts("r", numbers // 4),
            "user_id": _texts("u", user), "query_id": _texts("q", kind),
            "product_id": shop.names["product"].take(pa.array(product)),
            "content_id": shop.names["content"].take(pa.array(product)),
            "query_content_id": shop.names["content"].take(pa.array(len(shop.liking) + kind)),
            "event_timestamp": pa.array(at + _microseconds(START), pa.timestamp("us", "UTC")),
            "clicked": rng.random(len(at)) < planted, "planted": planted,
            "category": _texts("c", kind), "brand": _texts("b", product % 300),
            "merchant_id": _texts("m", product % 500), "segment": _texts("s", user % 10),
        }  # fmt: skip
        yield pa.table(columns), start, stop


def with_lists(rows: tuple[pa.Table, Int64s, Int64s], actions: pa.Table) -> pa.Table:
    """Impressions with their behaviours as lists beside them."""
    table, start, stop = rows
    for name, lists in lists_of(actions, None, start, stop).items():
        table = table.append_column(name, lists)
    return table


def simulated_training_set(folder: Path, rows: int) -> TrainingSet:
    """A training set of `rows` in [T1, T2) and a quarter as many in [T2, END)."""
    shop, test = new_shop(max(1, rows // ROWS_PER_USER), max(KINDS, rows // ROWS_PER_PRODUCT), LENGTH), rows // 4
    actions = shop.actions
    batches = (with_lists(one, actions) for one in impressions(shop, LENGTH, rows, test))
    labels = pa.table({"impression_id": _texts("i", np.arange(rows + test))})
    inputs = Manifest(TrainingSetSpec(folder.name, T1, END), {}, [], stable_hash(""), "simulated")
    return write_training_set(folder, inputs, labels, batches)


# Training beside the peer


def compare_training(folder: Path, rows: int, epochs: int, threads: int) -> bool:
    """Whether our test AUC is at least the peer's, but for SAME_AUC; prints rates and AUC of both."""
    from models.ctr.model import CtrModel
    from models.ctr.train import evaluate, score

    training_set = simulated_training_set(folder / "rows", rows)
    print(
        f"{rows:,} training rows (simulated), sequences of {LENGTH}, {epochs} epochs, {threads} threads\n"
        f"{'':26} samples/s  ours to it  test AUC  peak GB",
        flush=True,
    )
    ours = run("benchmarks.bench_ctr", ["--one", "ours", "--data", str(folder), "--epochs", str(epochs)])
    if ours.stopped:
        print(f"{'ours':26} {ours.stopped}", flush=True)
        return False
    model = CtrModel.open(folder / "model")
    scored = score(model, training_set, start=T2)
    place = scored.column_names.index("score")

    def auc(scores: Any) -> float:
        return evaluate(scored.set_column(place, "score", pa.array(scores, pa.float64()))).auc

    def line(way: str, one: Measured, rate: float, found: float) -> None:
        print(f"{way:26} {rate:9,.0f} {our_rate / rate:11.2f} {found:9.4f} {one.peak / 1e9:8.2f}", flush=True)

    our_rate, our_auc = _rate(folder / "ours.json"), auc(scored["score"])
    line("ours", ours, our_rate, our_auc)
    peer_aucs = []
    if (python := peer_environment(Settings.from_environment().checkout / "build" / "fuxictr")) is not None:
        export(model, training_set, folder)
        for way, workers in PEER_WAYS.items():
            name = f"peer{workers}"
            arguments = [str(folder), "--name", name, "--workers", str(workers)]
            one = run("benchmarks.fuxictr_peer", arguments, python)
            if one.stopped:
                print(f"{way:26} {one.stopped}", flush=True)
                continue
            peer_aucs.append(auc(np.load(folder / f"{name}.npy")))
            line(way, one, _rate(folder / f"{name}.json"), peer_aucs[-1])
    planted = training_set.read(["planted"], T2)["planted"]
    print(f"{'what clicks were drawn with':36} {auc(planted):21.4f}", flush=True)
    return all(our_auc >= one - SAME_AUC for one in peer_aucs)


def our_training(folder: Path, epochs: int) -> Callable[[], int]:
    """A function that trains our DIN, saves it, writes the rate of each epoch and gives the number of rows."""
    from models.ctr.train import BatchReport, train_ctr

    training_set = TrainingSet.open(folder / "rows")
    done: list[tuple[int, int, float]] = []

    def note(report: BatchReport) -> None:
        done.append((report.epoch, report.samples, time.perf_counter()))

    def train() -> int:
        train_ctr(training_set, None, din(epochs), window=(T1, T2), progress=EachNote(note)).save(folder / "model")
        each = [[one for one in done if one[0] == epoch] for epoch in range(1, epochs + 1)]
        rates = [(last[1] - first[1]) / (last[2] - first[2]) for first, *_, last in each]
        (folder / "ours.json").write_text(json.dumps({"rates": rates}))
        return done[-1][1]

    return train


def din(epochs: int) -> CtrConfig:
    """Our DIN with what the peer has too: ids alone, nothing dropped out, no decay, no early stop."""
    from models.ctr.config import CtrConfig

    return CtrConfig(
        model="din", dense_features=(), behavior_length=LENGTH, min_count=1, dropout=0.0, id_dropout=0.0,
        weight_decay=0.0, max_epochs=epochs, patience=epochs,
    )  # fmt: skip


def export(model: CtrModel, training_set: TrainingSet, folder: Path) -> None:
    """Write what the peer reads: the same rows in the same split, with ids as the model numbers them."""
    from models.ctr.features import column_reader
    from models.ctr.network import ATTENTION

    fitted = int(model.metrics["training_rows"])
    for window, parts in {(T1, T2): ("train", "valid"), (T2, END): ("test",)}.items():
        read = column_reader(lambda columns, window=window: training_set.read(columns, *window))  # type: ignore[misc]
        batches = list(model.features.encode(read, None).batches(LENGTH, None))
        ids = np.concatenate([batch.ids.numpy() for batch in batches]).astype(np.int32)  # [n, I]
        columns = dict(zip(model.features.id_features, ids.T, strict=True))
        columns["behaviors"] = np.concatenate([batch.behavior_ids.numpy() for batch in batches]).astype(np.int32)
        columns["clicked"] = read("clicked").to_numpy().astype(np.int32)
        slices = (
            (slice(fitted), slice(fitted, None)) if len(parts) == 2 else (slice(None),)
        )  # rows are in order of time
        for part, chosen in zip(parts, slices, strict=True):
            np.savez(folder / f"{part}.npz", **{name: values[chosen] for name, values in columns.items()})
    sizes = dict(zip(model.features.id_features, model.features.sizes, strict=True))
    asked = {"config": asdict(model.config), "sizes": sizes, "attention": ATTENTION}
    (folder / "peer.json").write_text(json.dumps(asked))


def peer_environment(folder: Path) -> Path | None:
    """The Python of an environment with PEER and our versions of what both need; None, and a line, if there is none."""
    python, uv = folder / "bin" / "python", [sys.executable, "-m", "uv"]
    constraints = ["--constraint", str(Settings.from_environment().checkout / "requirements.lock")]
    for command in (
        [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", str(python), *constraints, PEER, "torch"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"{'FuxiCTR':26} not measured: {PEER} cannot be had ({reason})", flush=True)
            return None
    return python


# What content costs


def compare_bytes(folder: Path, rows: int, contents: int) -> None:
    """Print the bytes of the same rows with ids alone and with the vectors of all contents inlined."""
    shop = new_shop(max(1, rows // ROWS_PER_USER), contents - KINDS, LENGTH)
    parts, actions = list(impressions(shop, LENGTH, rows, 0)), shop.actions
    vectors = _vectors(len(shop.names["content"]))
    files = {name: folder / name for name in ("pointers.parquet", "log.arrow", "ids.parquet", "vectors.parquet")}
    _write(files["ids.parquet"], (with_lists(one, actions) for one in parts))
    _write(files["vectors.parquet"], (with_vectors(one, shop, vectors, actions) for one in parts))
    _write(files["pointers.parquet"], (with_pointers(one) for one in parts))
    write_log(files["log.arrow"], actions.schema, [actions])
    bytes_of = {name: file.stat().st_size for name, file in files.items()}
    ids = bytes_of["ids.parquet"]
    found = {
        "ids": ids,
        "ids, sequences as pointers": bytes_of["pointers.parquet"] + bytes_of["log.arrow"],
        "vectors inlined": bytes_of["vectors.parquet"],
    }
    print(f"\n{rows:,} rows, sequences of {LENGTH}, float16 of {DIMENSION}\n{'':26} bytes a row  to ids alone")
    for name, size in found.items():
        print(f"{name:26} {size / rows:11,.0f} {size / ids:13.2f}", flush=True)
    table = SequenceLog.open(files["log.arrow"]).expand(*parts[0][1:])["behavior_product_ids"]
    assert table.equals(pq.read_table(files["ids.parquet"], columns=["behavior_product_ids"])[0].chunk(0)[: len(table)])


def with_vectors(
    rows: tuple[pa.Table, Int64s, Int64s], shop: Shop, vectors: NDArray[Any], actions: pa.Table
) -> pa.Table:
    """Impressions with lists, and the vectors of target, query and behaviours beside their content ids."""
    table, start, stop = rows
    number_of = pa.table({"content": shop.acted_on})
    behaviors = lists_of(number_of, None, start, stop)["content"]
    each = {
        name: _inlined(vectors, pa.compute.index_in(table[name], shop.names["content"]).to_numpy())
        for name in ("content_id", "query_content_id")
    }
    table = with_lists(rows, actions)
    for name, column in each.items():
        table = table.append_column(f"{name}_vector", column)
    of_behaviors = pa.ListArray.from_arrays(behaviors.offsets, _inlined(vectors, behaviors.values.to_numpy()))
    return table.append_column("behavior_vectors", of_behaviors)


def with_pointers(rows: tuple[pa.Table, Int64s, Int64s]) -> pa.Table:
    """Impressions with where their behaviours start and stop in the log."""
    table = rows[0]
    for name, values in zip(pointer_names(SEQUENCES), rows[1:], strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def measure_cube(folder: Path, contents: int, steps: int) -> None:
    """Print what a training step of the cube model takes, by the length of its sequences, and in which of its parts."""
    write_vectors(folder / "lake", contents)
    print(
        f"\ncube model, {contents:,} vectors of {DIMENSION}: milliseconds a batch\n"
        f"{'length':>6} {'nearest':>7} {'batch':>6} {'rows':>7} {'gather':>7} {'similarities':>12} "
        f"{'forward, backward':>17} {'step':>7} {'all':>8}  gather to forward, backward  GB above",
        flush=True,
    )
    for case, (length, batch, nearest) in enumerate(CASES):
        asked = ["--case", str(case), "--data", str(folder), "--contents", str(contents), "--steps", str(steps)]
        one = run("benchmarks.bench_ctr", ["--one", "cube", *asked])
        named = f"{length:6} {nearest or 'all':>7} {batch:6}"
        if one.stopped:
            print(f"{named} {one.stopped}", flush=True)
            continue
        took = json.loads((folder / f"cube{case}.json").read_text())
        rows, gather, similarities, learn, step = (1000 * took[name] for name in PARTS)
        print(
            f"{named} {rows:7.2f} {gather:7.2f} {similarities:12.2f} {learn:17.2f} {step:7.2f} "
            f"{rows + gather + similarities + learn + step:8.2f} {gather / learn:28.2f} {one.above / 1e9:9.2f}",
            flush=True,
        )


def cube_steps(folder: Path, case: int, contents: int, steps: int) -> Callable[[], int]:
    """A function that takes training steps of the cube model, writes the medians of PARTS, and counts the samples.

    Reading is timed three times: rows alone, vectors of behaviours alone, and a whole batch. What the last one takes
    longer is called similarities; with a search it holds the vectors of what was kept as well.
    """
    import torch

    from models.ctr import cube
    from models.ctr.config import CtrConfig
    from models.ctr.features import FeatureEncoder, column_reader
    from models.ctr.fit_network import optimizers
    from models.ctr.network import CtrNetwork
    from moonlake.embeddings.snapshots import Snapshot

    (length, size, nearest), snapshot = CASES[case], Snapshot.open(folder / "snapshot")
    shop = new_shop(max(1, 4 * size // ROWS_PER_USER), contents - KINDS, length)
    actions = shop.actions
    table = pa.concat_tables([with_lists(one, actions) for one in impressions(shop, length, 4 * size, 0)])
    config = CtrConfig(model="cube", dense_features=(), behavior_length=length, nearest=nearest, min_count=1)
    read = column_reader(table.select)
    features = FeatureEncoder.fit(read, np.ones(len(table), bool), config.id_features, (), min_count=1)
    rows, clicked = features.encode(read, snapshot), table["clicked"].to_numpy().astype(np.float32)
    network = CtrNetwork(config, features.sizes, features.dense_width, snapshot.dimension)
    adam, rng = optimizers(network, config), np.random.default_rng(5)

    def gather(chosen: Int64s) -> torch.Tensor:
        place = cube.last_places(rows.offsets, chosen, length, empty=len(rows.behavior_rows) - 1)  # [B, L]
        return torch.from_numpy(np.take(snapshot.vectors, np.maximum(rows.behavior_rows[place], 0), axis=0)).float()

    def step() -> list[float]:
        # Different rows each time, so that no reading finds in the caches what the one before has left there.
        others, again, chosen = (rng.choice(len(rows), size, replace=False) for _ in range(3))
        only_rows, _ = _timed(lambda: rows.batch(others, length, None))
        only_vectors, _ = _timed(lambda: gather(again))
        everything, batch = _timed(lambda: rows.batch(chosen, length, snapshot.vectors, nearest))
        wanted = torch.from_numpy(clicked[chosen])
        loss_of = torch.nn.functional.binary_cross_entropy_with_logits
        learn, _ = _timed(lambda: loss_of(network(batch), wanted).backward())  # type: ignore[no-untyped-call]
        update, _ = _timed(lambda: [(one.step(), one.zero_grad()) for one in adam])
        return [only_rows, only_vectors, everything - only_rows - only_vectors, learn, update]

    def all_steps() -> int:
        step()  # what is set up at the first one is not counted
        medians = np.median([step() for _ in range(steps)], axis=0).tolist()
        (folder / f"cube{case}.json").write_text(json.dumps(dict(zip(PARTS, medians, strict=True))))
        return steps * size

    return all_steps


def write_vectors(home: Path, contents: int) -> Snapshot:
    """A lake with a space of random vectors for `contents`, and the snapshot of it beside the lake."""
    from deltalake import write_deltalake

    from moonlake.embeddings.snapshots import write_snapshot
    from moonlake.lake.lake import Lake
    from moonlake.schema.arrow import arrow_schema
    from moonlake.schema.tables import EMBEDDING_SPACES, EMBEDDINGS, TIMELESS

    contents += -contents % KINDS
    lake, space_id = Lake(Settings(home=home)), stable_hash("simulated space")
    space = {
        "space_id": space_id, "name": "simulated", "status": "building", "dimension": DIMENSION,
        "storage_type": "float16", "artifact": "none", "definition": "{}", "trained_until": START, "coverage": 1.0,
        "metrics": "{}", "event_timestamp": START,
    }  # fmt: skip
    schema = arrow_schema(EMBEDDING_SPACES, EMBEDDING_SPACES.facts)
    lake.append("embedding_spaces", pa.Table.from_pylist([space], schema=schema), written_at=START)
    values = _vectors(contents).astype(np.float32)
    columns = {
        "content_id": pa.array([stable_hash(f"content {number}") for number in range(contents)]),
        "space_id": pa.repeat(space_id, contents),
        "vector": pa.ListArray.from_arrays(
            pa.array(np.arange(contents + 1, dtype=np.int32) * DIMENSION), pa.array(values.ravel())
        ),
        "event_timestamp": pa.repeat(pa.scalar(TIMELESS, pa.timestamp("us", "UTC")), contents),
        "created_at": pa.repeat(pa.scalar(START, pa.timestamp("us", "UTC")), contents),
    }
    wanted = arrow_schema(EMBEDDINGS)
    write_deltalake(lake.path("embeddings"), pa.table(columns).select(wanted.names).cast(wanted))
    return write_snapshot(lake, space_id, home.parent / "snapshot")


# Pieces


def _kinds(rng: np.random.Generator, tastes: Int64s, share: float) -> Int64s:
    """A kind for each row of tastes [n, TASTES]: with probability `share` one of them, else any."""
    chosen = tastes[np.arange(len(tastes)), rng.integers(0, TASTES, len(tastes))]
    return np.where(rng.random(len(tastes)) < share, chosen, rng.integers(0, KINDS, len(tastes)))


def _products(rng: np.random.Generator, kinds: Int64s, products: int) -> Int64s:
    """A product of each kind [n], some far oftener than others."""
    return kinds + KINDS * (products // KINDS * rng.random(len(kinds)) ** 2).astype(np.int64)


def _vectors(count: int) -> Float16s:
    """float16 [count, DIMENSION], random directions."""
    vectors = np.random.default_rng(6).normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _inlined(vectors: NDArray[Any], rows: Int64s) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), DIMENSION)


def _names(letter: str, count: int) -> pa.Array:
    return _texts(letter, np.arange(count))


def _texts(letter: str, numbers: Int64s) -> pa.Array:
    return pa.compute.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables as the files of a training set are written."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it gave."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def _rate(path: Path) -> float:
    return median(json.loads(path.read_text())["rates"])


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


if __name__ == "__main__":
    sys.exit(main())
