"""The network's streams: each can be left out, a search of long sequences, and attention that sees similarities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.ctr.config import STREAMS, CtrConfig
from models.ctr.features import Batch, EncodedRows, FeatureEncoder, column_reader
from models.ctr.network import CtrNetwork
from models.ctr.train import score, train_ctr
from moonlake.errors import InputError

CONFIG = CtrConfig(model="cube", behavior_length=8, hidden=(16,), max_epochs=1, seed=3)
KNOWN = ("target_known", "query_known", "behaviors_known", "searched")
"""What every network with content reads, whatever its streams."""


@pytest.fixture(scope="module")
def encoder(world: Any) -> FeatureEncoder:
    rows = world.training_set.read()
    fitted = np.ones(len(rows), bool)
    ids, dense = CONFIG.id_features, CONFIG.dense_features
    return FeatureEncoder.fit(column_reader(rows.select), fitted, ids, dense, min_count=2)


@pytest.fixture(scope="module")
def encoded(world: Any, encoder: FeatureEncoder) -> EncodedRows:
    return encoder.encode(column_reader(world.training_set.read().select), world.snapshot)


def network(config: CtrConfig, encoder: FeatureEncoder, world: Any) -> CtrNetwork:
    torch.manual_seed(0)
    return CtrNetwork(config, encoder.sizes, encoder.dense_width, world.snapshot.dimension).eval()


def batch_of(encoded: EncodedRows, world: Any, length: int, nearest: int = 0) -> Batch:
    return encoded.batch(np.arange(100), length, world.snapshot.vectors, nearest)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_that_is_left_out_is_not_read(
    stream: str, encoder: FeatureEncoder, encoded: EncodedRows, world: Any
) -> None:
    """Other behaviours and vectors change the logits of a network with the stream, and not of one without any."""
    batch, other = (encoded.batch(rows, 8, world.snapshot.vectors) for rows in (np.arange(100), np.arange(100)[::-1]))
    assert batch.content is not None
    assert other.content is not None
    known = {name: getattr(batch.content, name) for name in KNOWN}
    spoilt = batch._replace(behavior_ids=other.behavior_ids, content=other.content._replace(**known))
    others = tuple(name for name in STREAMS if name != stream)
    with_it = network(replace(CONFIG, left_out=others), encoder, world)
    nothing = network(replace(CONFIG, left_out=STREAMS), encoder, world)
    with torch.inference_mode():
        assert not torch.allclose(with_it(spoilt), with_it(batch))
        torch.testing.assert_close(nothing(spoilt), nothing(batch))


def test_all_streams_take_part(encoder: FeatureEncoder, encoded: EncodedRows, world: Any) -> None:
    whole = network(CONFIG, encoder, world)
    whole.train()
    whole(batch_of(encoded, world, 8)).sum().backward()
    still = [name for name, one in whole.named_parameters() if one.grad is None or not one.grad.any()]
    assert still == []


def test_a_search_that_keeps_all_behaviors_changes_nothing(
    encoder: FeatureEncoder, encoded: EncodedRows, world: Any
) -> None:
    whole = network(CONFIG, encoder, world)
    searched = network(replace(CONFIG, nearest=8), encoder, world)
    with torch.inference_mode():
        expected = whole(batch_of(encoded, world, 8))
        torch.testing.assert_close(searched(batch_of(encoded, world, 8, nearest=8)), expected)


def test_a_search_looks_at_few_behaviors_of_many(encoder: FeatureEncoder, encoded: EncodedRows, world: Any) -> None:
    config = replace(CONFIG, behavior_length=100, nearest=4)
    batch = batch_of(encoded, world, 100, nearest=4)
    assert batch.behavior_ids.shape == (100, 4)
    with torch.inference_mode():
        assert network(config, encoder, world)(batch).shape == (100,)


@pytest.mark.parametrize("change", [{"nearest": 4, "behavior_length": 50}, {"attention": "ids_and_similarities"}])
def test_options_learn_and_score(change: dict[str, Any], world: Any) -> None:
    config = replace(CONFIG, **change)
    model = train_ctr(world.training_set, world.snapshot, config, window=world.window)
    scores = score(model, world.training_set, world.snapshot, start=world.window[1])["score"].to_numpy()
    assert np.ptp(scores) > 0.01


def test_attention_that_sees_similarities_follows_them(
    encoder: FeatureEncoder, encoded: EncodedRows, world: Any
) -> None:
    config = replace(CONFIG, attention="ids_and_similarities", left_out=STREAMS[1:])
    batch = batch_of(encoded, world, 8)
    assert batch.content is not None
    other = batch._replace(content=batch.content._replace(cosines=batch.content.cosines.flip(1)))
    for one, same in ((config, False), (replace(config, attention="ids"), True)):
        model = network(one, encoder, world)
        with torch.inference_mode():
            assert torch.allclose(model(other), model(batch)) == same


def test_options_of_content_are_for_models_with_content() -> None:
    for change in ({"nearest": 4}, {"attention": "ids_and_similarities"}, {"left_out": ("target",)}):
        with pytest.raises(InputError, match="model din reads no vectors"):
            CtrConfig(model="din", **change)
    with pytest.raises(InputError, match="no stream tarket"):
        CtrConfig(model="cube", left_out=("tarket",))
    assert CtrConfig(model="din", left_out=("id_interest",)).left_out == ("id_interest",)
