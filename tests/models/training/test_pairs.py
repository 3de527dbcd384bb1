from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.encoder import picture_store
from models.encoder.picture_store import read_pictures
from models.training.augmentation import DRAWS, augment
from models.training.pair_views import views_of
from models.training.pairs import QUERY, SHOWN, Pairs, make_pairs, read_pairs
from moonlake.embeddings.contents import Content, content_of
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from moonlake.lake.lake import Lake

BEFORE = datetime(2026, 2, 1, tzinfo=UTC)
SIZE = (8, 6)
PRODUCT, IMAGE, TEXT = range(len(SHOWN))


def file(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (level, level, level)).save(out, "PNG")
    return out.getvalue()


def pairs_of(rows: list[tuple[Content, Content, str, list[Content]]], spus: dict[str, str] | None = None) -> Pairs:
    """Pairs of (query, product content, pair type, hard negatives); a product is called by its content's text."""
    contents = {one.content_id: one for query, product, _, hard in rows for one in (query, product, *hard)}
    files = {stable_hash(file(level)): file(level) for level in range(0, 250, 10)}
    columns: dict[str, list[Any]] = {
        "anchor_content_id": [query.content_id for query, _, _, _ in rows],
        "positive_content_id": [product.content_id for _, product, _, _ in rows],
        "positive_product_id": [product.text for _, product, _, _ in rows],
        "positive_spu_id": [(spus or {}).get(str(product.text)) for _, product, _, _ in rows],
        "hard_negative_content_ids": [[one.content_id for one in hard] for _, _, _, hard in rows],
        "pair_type": [pair_type for _, _, pair_type, _ in rows],
        "event_timestamp": [BEFORE] * len(rows),
    }
    names = {one.content_id: (str(one.text), (spus or {}).get(str(one.text))) for one in contents.values()}
    return make_pairs(columns, contents, files, SIZE, names)


def image(*levels: int) -> list[str]:
    return [stable_hash(file(level)) for level in levels]


QUERY_0, QUERY_1 = content_of("shirt", []), content_of(None, image(0))
A, B, C = (content_of(name, image(*levels)) for name, levels in (("a", (10, 20, 30)), ("b", (40,)), ("c", (50, 60))))


def test_each_content_that_is_shown_alike_is_one_view_and_the_views_lead_back_to_the_pairs() -> None:
    pairs = pairs_of(
        [
            (QUERY_0, A, "text_query_to_product", [B]),
            (QUERY_0, B, "text_query_to_product", [A, C]),
            (QUERY_1, A, "image_query_to_image", [C]),
            (QUERY_1, A, "image_query_to_product", []),
        ]
    )
    views = views_of(pairs, np.arange(4), 8, np.random.default_rng(0))
    shown = list(zip(views.contents.tolist(), views.shown.tolist(), strict=True))
    assert len(shown) == len(set(shown)) == 2 + 3 + 2  # queries; A, B, C as products; A and C as images
    np.testing.assert_array_equal(views.contents[views.queries], pairs.anchors)
    np.testing.assert_array_equal(views.contents[views.items], pairs.positives)
    assert views.shown[views.queries].tolist() == [QUERY] * 4
    assert views.shown[views.items].tolist() == [PRODUCT, PRODUCT, IMAGE, PRODUCT]
    np.testing.assert_array_equal(views.contents[views.hard], np.concatenate(pairs.hard))
    assert views.shown[views.hard].tolist() == [PRODUCT, PRODUCT, PRODUCT, IMAGE]
    assert len(views_of(pairs, np.arange(4), 1, np.random.default_rng(0)).hard) == 3


def test_groups_tell_twins_also_among_hard_negatives() -> None:
    rows = [(QUERY_0, A, "text_query_to_product", [B, C]), (QUERY_1, B, "image_query_to_product", [])]
    pairs = pairs_of(rows, spus={"a": "one", "c": "one"})
    number = {text: at for at, text in enumerate(pairs.texts)}
    hard = pairs.content_groups[pairs.hard[0]]
    assert hard[:, 0].tolist() == [-1, -1]  # a hard negative belongs to no query
    assert hard[:, 1].tolist() == [number["b"], number["c"]]
    assert hard[0, 2] == pairs.groups[1, 2]  # the product of B
    assert hard[1, 3] == pairs.groups[0, 3] >= 0  # C is of A's SPU
    assert pairs.groups[1, 3] == -1


def test_what_is_seen_follows_the_pair_type_and_the_limits() -> None:
    bare = content_of("bare", [])
    pairs = pairs_of(
        [
            (content_of("q", image(70, 80, 90)), A, "product_query_to_product", []),
            (QUERY_0, A, "text_query_to_image", []),
            (QUERY_0, A, "text_query_to_text", []),
            (QUERY_0, bare, "text_query_to_image", []),
        ]
    )
    contents = np.concatenate([pairs.anchors[:1], pairs.positives])
    shown = np.concatenate([[QUERY], pairs.shown]).astype(np.int8)
    seen_counts = set()
    for seed in range(40):
        draws = np.random.default_rng(seed).random((len(contents), pairs.draws))
        choice = pairs.choose(contents, shown, 2, 2, 0.0, draws)
        assert choice.counts[[0, 3, 4]].tolist() == [2, 0, 0]
        assert choice.with_text.tolist() == [True, True, False, True, True]  # no picture: the text stays
        pixels = pairs.pictures.pixels[choice.rows][:, 0, 0, 0].tolist()
        assert pixels[:2] == [70, 80]  # the first ones of a query
        own = pixels[2:]
        assert set(own) <= {10, 20, 30}
        assert own[: choice.counts[1]] == sorted(own[: choice.counts[1]])
        seen_counts.add((choice.counts[1], *own[: choice.counts[1]]))
        hidden = pairs.choose(contents, shown, 2, 2, 1.0, draws)
        assert hidden.with_text.tolist() == [True, False, False, True, True]
    assert seen_counts == {(1, 10), (1, 20), (1, 30), (2, 10, 20), (2, 10, 30), (2, 20, 30)}


def test_sides_hold_what_was_chosen() -> None:
    pairs = pairs_of([(QUERY_1, B, "image_query_to_product", []), (QUERY_0, A, "text_query_to_text", [])])
    queries = pairs.queries(np.array([1, 0]), 4)
    assert queries.texts == ["shirt", None]
    assert [one.shape for one in queries.images] == [(0, *SIZE, 3), (1, *SIZE, 3)]
    items = pairs.items(np.array([0, 1]), 2, 0.0, np.random.default_rng(0))
    assert items.texts == ["b", "a"]
    assert [len(one) for one in items.images] == [1, 0]


def test_a_pair_with_an_unreadable_side_is_left_out_and_an_unknown_pair_type_refused() -> None:
    nothing = content_of(None, ["0" * 32])
    rows = [(QUERY_0, A, "text_query_to_product", [nothing, B]), (nothing, A, "image_query_to_product", [])]
    pairs = pairs_of(rows)
    assert len(pairs) == 1
    assert [pairs.texts[one] for one in pairs.hard[0]] == ["b"]
    with pytest.raises(InputError, match="pair type 'text_query_to_video'; expected one that ends in product"):
        pairs_of([(QUERY_0, A, "text_query_to_video", [])])


def test_the_fingerprint_changes_with_anything_that_training_reads() -> None:
    rows = [(QUERY_0, A, "text_query_to_product", [B]), (QUERY_1, B, "image_query_to_product", [])]
    same = pairs_of(rows).fingerprint
    others = [
        pairs_of(rows[:1]),
        pairs_of([(*rows[0][:2], "text_query_to_image", rows[0][3]), rows[1]]),
        pairs_of([(*rows[0][:3], [C]), rows[1]]),
        pairs_of(rows, spus={"a": "one"}),
    ]
    assert same == pairs_of(rows).fingerprint
    assert len({same, *(one.fingerprint for one in others)}) == 5


def test_pairs_of_a_stage_are_read_with_their_hard_negatives(stocked: Lake) -> None:
    first, second = (read_pairs(stocked, BEFORE, SIZE, stage) for stage in (1, 2))
    assert [len(one) for one in first.hard] == [0] * 8
    assert [len(one) for one in second.hard] == [3] * 8
    assert all(own not in some for own, some in zip(second.positives, second.hard, strict=True))
    assert set(second.content_groups[second.hard[0], 2]) == set(second.groups[:, 2]) - {second.groups[0, 2]}


def test_pixels_beyond_the_memory_lie_in_a_file_and_are_the_same(
    stocked: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [row["image_ids"] for row in stocked.read("products", ["image_ids"]).to_pylist()]
    held = read_pictures(stocked, ids, SIZE, workers=2)
    monkeypatch.setattr(picture_store, "SHARE_OF_MEMORY", 0.0)
    mapped = read_pictures(stocked, [*ids, ["0" * 32]], SIZE, workers=1)
    assert isinstance(mapped.pixels, np.memmap)
    assert mapped.counts.tolist() == [2, 2, 2, 2, 0]
    everything = np.ones((4, 2), bool)
    for store in (held, mapped):
        assert store.rows_of(np.arange(4), everything).shape == (8,)
    np.testing.assert_array_equal(
        *(store.pixels[store.rows_of(np.arange(4), everything)] for store in (held, mapped))  # type: ignore[arg-type]
    )


def test_augmentation_moves_whole_pixels_within_bounds_and_changes_light() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (200, 8, 6, 3), dtype=np.uint8)
    middle = np.full((200, DRAWS), 0.5)
    np.testing.assert_allclose(augment(pictures, middle).numpy(), pictures.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    flipped = middle.copy()
    flipped[:, 4] = 0.0
    np.testing.assert_allclose(
        augment(pictures, flipped).numpy(), pictures[:, :, ::-1].transpose(0, 3, 1, 2) / 255, atol=1e-6
    )
    draws = np.random.default_rng(1).random((200, DRAWS))
    lit = augment(pictures, draws)
    assert lit.shape == (200, 3, 8, 6)
    assert 0 <= float(lit.min()) <= float(lit.max()) <= 1
    assert not np.array_equal(lit.numpy(), augment(pictures, draws[::-1].copy()).numpy())
    np.testing.assert_array_equal(lit[:5].numpy(), augment(pictures[:5], draws[:5]).numpy())
    assert augment(pictures[:0], draws[:0]).shape == (0, 3, 8, 6)


def test_zoom_and_shift_pick_the_pixels_that_a_slow_twin_picks() -> None:
    side = 16
    ramp = np.repeat(np.arange(side, dtype=np.uint8)[None, :, None], 3, 2)  # [1, W, 3]
    pictures = np.broadcast_to(ramp, (side, side, 3))[None].copy()
    draws = np.full((1, DRAWS), 0.5)
    draws[0, 0], draws[0, 3] = 1.0, 0.9
    zoom, shift = 1.35, 0.8 * 0.06
    expected = [
        min(side - 1, max(0, int(np.floor(((at + 0.5) / side - 0.5) * zoom * side + shift * side + side / 2))))
        for at in range(side)
    ]
    found = (augment(pictures, draws)[0, 0] * 255).round().numpy()
    np.testing.assert_array_equal(found, np.tile(expected, (side, 1)))


def test_reading_pairs_of_a_lake_without_any_gives_none(lake: Lake, tmp_path: Path) -> None:
    pairs = read_pairs(lake, BEFORE, SIZE)
    assert len(pairs) == 0
    assert pairs.trained_until is None
    assert not list(tmp_path.glob("*pixels*"))
