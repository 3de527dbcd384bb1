"""The simulated marketplace: a whole catalogue and its behaviour, seeded, with known truth.

A staged preset holds products in several states (content that changes and changes back, new prices, deletions), their
pictures, merchants in tiers, users, queries in text and pictures, impressions and behaviour. A picture in a query is a
fresh drawing of the style that the shopper has in mind, never a picture of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from moonlake.arrays import Float32s, Int64s
from moonlake.files import publish_folder
from moonlake.hashing import stable_hash
from moonlake.progress import UNWATCHED, Step
from moonlake.settings import Settings
from sources.own_files.schema import KINDS
from sources.own_files.staging import SourceInfo, StageWriter, is_staged, new_stage, stage_path
from sources.simulator.behavior import act, listing_times, plan_requests, sample_shoppers, show
from sources.simulator.behavior_tables import request_ids, write_log, write_queries, write_users
from sources.simulator.catalogue_rows import CatalogueRows, Change, plan_changes
from sources.simulator.clicks import Catalogue, ClickModel, Requests
from sources.simulator.presets import Preset, microseconds, preset_named
from sources.simulator.rendering import render
from sources.simulator.styles import Styles, near_styles, sample_styles

TIER_SHARES = (0.1, 0.3, 0.6)
TIER_PRODUCTS = (6.0, 3.0, 1.0)
"""How many products a merchant of tiers 1 to 3 lists, relative to each other."""
IMAGES_PER_PRODUCT = (0.2, 0.3, 0.3, 0.2)
STUDIO_CLUTTER = 0.3
SNAPSHOT_CLUTTER = 1.0
IMAGES_PER_WRITE = 512
QUERY_WORD_KEPT = {"colour": 0.75, "pattern": 0.4, "material": 0.25, "category": 0.9}


@dataclass(frozen=True, slots=True)
class World:
    """Everything simulated about the products: [P] each.

    Attributes:
        styles: the latent style; products of one SPU share it.
        images: number of pictures.
    """

    styles: Styles
    rows: CatalogueRows
    quality: Float32s
    price_cents: Int64s
    images: Int64s


def stage_marketplace(preset_name: str, settings: Settings, *, progress: Step = UNWATCHED) -> Path:
    """The staged folder of a preset, made now unless it lies there already; the truth goes to `settings.truth`.

    Raises: NotFound: no such preset.
    """
    preset = preset_named(preset_name)
    folder = stage_path(settings, preset.name)
    if is_staged(settings, preset.name, preset.fingerprint) and (settings.truth / preset.name).is_dir():
        return folder
    seeds = np.random.SeedSequence(preset.seed).spawn(3)
    world_rng, behavior_rng, picture_rng = (np.random.default_rng(seed) for seed in seeds)
    world = make_world(preset, world_rng)
    changes = plan_changes(preset, world.rows.listed_us, world_rng)
    model, wanted = _ask(preset, world, changes, behavior_rng)
    shown = show(model, behavior_rng)
    actions = act(model, shown, behavior_rng)
    query_ids, texts, names = _phrase(model, wanted, behavior_rng)

    with publish_folder(settings.truth / preset.name) as truth, new_stage(settings, preset.name) as writer:
        writer.write("products", world.rows.products(changes))
        writer.write("merchants", world.rows.merchants(preset.window.start - timedelta(days=365)))
        write_users(writer, model, microseconds(preset.window.start - timedelta(days=30)))
        write_queries(writer, model, query_ids, texts, names)
        write_log(writer, model, shown, actions, query_ids)
        _write_product_images(writer, preset, world, picture_rng, progress)
        pictured = np.flatnonzero(model.requests.modality > 0)
        snapshots = _Pictures("query pictures", wanted.take(pictured), [names[row][0] for row in pictured])
        _write_images(writer, snapshots, preset.image_pixels, SNAPSHOT_CLUTTER, picture_rng, progress)
        model.save(truth, request_ids(model), query_ids)
        writer.describe(_info(preset))
    return folder


def stage_arrivals(preset_name: str, settings: Settings, *, count: int = 5, day: int = 1) -> Path:
    """The staged folder of new products of a preset that arrive `day` days after its window; no behaviour.

    Source name: `<preset>-arrivals-<day>`; product ids start with `new<day>-`.
    """
    preset = preset_named(preset_name)
    name = f"{preset.name}-arrivals-{day}"
    fingerprint = stable_hash(f"{preset.fingerprint} {count} {day}")
    if is_staged(settings, name, fingerprint):
        return stage_path(settings, name)
    rng = np.random.default_rng([preset.seed, 1_000 + day])
    arrived = preset.window.end + timedelta(days=day)
    world = make_world(preset, rng, count=count, prefix=f"new{day}-", listed_at=arrived)
    with new_stage(settings, name) as writer:
        writer.write("products", world.rows.products([]))
        _write_product_images(writer, preset, world, rng, UNWATCHED)
        notes = f"{count} new products of preset {preset.name}, listed after its window"
        writer.describe(SourceInfo(name, True, "simulated marketplace", None, None, None, notes, fingerprint))
    return stage_path(settings, name)


def make_world(
    preset: Preset,
    rng: np.random.Generator,
    *,
    count: int | None = None,
    prefix: str = "p",
    listed_at: datetime | None = None,
) -> World:
    """Products of a preset, or `count` further ones that are all listed at one moment."""
    total = preset.products if count is None else count
    spus = max(1, round(total * preset.spus_per_product))
    brand = rng.integers(preset.brands, size=spus)
    signatures = sample_styles(preset.brands, np.random.default_rng([preset.seed, 7]))
    spu_styles = sample_styles(spus, rng, signatures=signatures.take(brand))
    spu = np.concatenate([np.arange(spus), rng.integers(spus, size=total - spus)])
    styles = spu_styles.take(spu)

    tier = np.searchsorted(np.cumsum(TIER_SHARES), (np.arange(preset.merchants) + 0.5) / preset.merchants) + 1
    weight = np.array(TIER_PRODUCTS)[tier - 1]
    merchant = rng.choice(preset.merchants, size=total, p=weight / weight.sum())
    spu_price = rng.normal(np.log(2_500.0), 0.5, spus)
    price_cents = np.exp(spu_price[spu] + rng.normal(0.0, 0.08, total)).astype(np.int64)
    images = rng.choice([1, 2, 3, 4], size=total, p=IMAGES_PER_PRODUCT)

    listed = listing_times(preset.window, preset.late_share, total, rng)
    if listed_at is not None:
        listed = np.full(total, microseconds(listed_at))
    rows = CatalogueRows.make(prefix, styles, spu, brand[spu], merchant, tier, price_cents, images, listed, preset, rng)
    quality = (preset.behavior.quality_spread * rng.standard_normal(total)).astype(np.float32)
    return World(styles, rows, quality, price_cents, images)


def _ask(preset: Preset, world: World, changes: list[Change], rng: np.random.Generator) -> tuple[ClickModel, Styles]:
    """The click model with its requests, and the styles that they want."""
    logarithm = np.log(world.price_cents)
    gone = np.full(len(world.styles), np.iinfo(np.int64).max)
    for change in changes:
        if change.deleted:
            gone[change.product] = change.time_us
    catalogue = Catalogue(
        world.rows.product_ids,
        world.styles.vectors(),
        world.styles.category,
        world.quality,
        ((logarithm - logarithm.mean()) / logarithm.std()).astype(np.float32),
        world.rows.listed_us,
        gone,
    )
    shoppers = sample_shoppers(catalogue, preset.behavior, rng)
    window_us = preset.window.span_us
    planned = plan_requests(catalogue, shoppers, preset.behavior, window_us, rng)
    wanted = near_styles(world.styles.take(planned.target), rng)
    requests = Requests(planned.user, planned.target, planned.time_us, planned.modality, wanted.vectors())
    return ClickModel(preset.behavior, catalogue, shoppers, requests, window_us), wanted


def _phrase(
    model: ClickModel, wanted: Styles, rng: np.random.Generator
) -> tuple[list[str], list[str | None], list[list[str]]]:
    """Query id, text and picture names of every request: some words of the style, a fresh picture, or both."""
    words = wanted.words()
    kept = {name: rng.random(len(wanted)) < share for name, share in QUERY_WORD_KEPT.items()}
    ids: list[str] = []
    texts: list[str | None] = []
    names: list[list[str]] = []
    for row, modality in enumerate(model.requests.modality):
        said = " ".join(words[name][row] for name in kept if kept[name][row]) or words["category"][row]
        texts.append(None if modality == 1 else said)
        names.append([] if modality == 0 else [f"query-{row:07d}.jpg"])
        ids.append(f"text-{stable_hash(said)[:16]}" if modality == 0 else f"picture-{row:07d}")
    return ids, texts, names


def _write_product_images(
    writer: StageWriter, preset: Preset, world: World, rng: np.random.Generator, progress: Step
) -> None:
    of_product = np.repeat(np.arange(len(world.images)), world.images)
    names = [name for row in range(len(world.images)) for name in world.rows.image_names(row)]
    pictures = _Pictures("product pictures", world.styles.take(of_product), names)
    _write_images(writer, pictures, preset.image_pixels, STUDIO_CLUTTER, rng, progress)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Pictures to draw: what they are, a style and a name each."""

    step: str
    styles: Styles
    names: list[str]


def _write_images(
    writer: StageWriter, wanted: _Pictures, pixels: int, clutter: float, rng: np.random.Generator, progress: Step
) -> None:
    total = len(wanted.names)
    for start in range(0, total, IMAGES_PER_WRITE):
        rows = np.arange(start, min(start + IMAGES_PER_WRITE, total))
        files = render(wanted.styles.take(rows), rng, pixels=pixels, clutter=clutter)
        names = wanted.names[start : start + IMAGES_PER_WRITE]
        writer.write("images", pa.table([names, files], schema=KINDS["images"].schema()))
        progress.update(start + len(names), total, note=wanted.step)


def _info(preset: Preset) -> SourceInfo:
    notes = f"simulated marketplace, preset {preset.name}: products, pictures and behaviour are simulated"
    window = preset.window
    return SourceInfo(
        preset.name,
        True,
        "simulated marketplace",
        (window.start, window.end),
        window.t1,
        window.t2,
        notes,
        preset.fingerprint,
    )
