"""The study of content's worth: which models are compared, what a fit goes by, and what the page says of the scores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.ctr.config import STREAMS
from models.evaluation.click_segments import ClickSegment
from moonlake.embeddings.snapshots import write_vectors
from moonlake.errors import InputError
from moonlake.hashing import stable_hash
from sources.own_files.staging import SourceInfo
from studies.ctr_worth import VECTORS, Plan, Subject, Vectors, subjects_of
from studies.ctr_worth_figures import (
    CUBE,
    DIN,
    IDS,
    LATENTS,
    RANDOM,
    SHUFFLED,
    TREES,
    TREES_CONTENT,
    Draws,
    Measured,
    Scored,
    without,
)  # fmt: skip
from studies.ctr_worth_report import Setup, verdicts, write_report

T1 = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = (T1, T1 + timedelta(days=7), T1 + timedelta(days=9))
SUBJECTS = {subject.name: subject for subject in subjects_of(truth=True)}
SEEDS, ROWS, USERS = (0, 1, 2), 4_000, 200
NOISE = {
    IDS: 3.0, DIN: 2.0, CUBE: 1.0, SHUFFLED: 2.0, RANDOM: 2.0, LATENTS: 0.5, TREES: 3.0, TREES_CONTENT: 1.5,
    without("target"): 1.2,
}  # fmt: skip
"""How far the scores of each model stray from the true log-odds of a click."""


def plan(work: Path, **settings: object) -> Plan:
    folder = work / "vectors"
    ids = [stable_hash(str(number)) for number in range(50)]
    write_vectors(folder, ids, np.eye(50), space_id=stable_hash("space"), labels=["of a test"])
    data: dict[Vectors, str] = {kind: f"rows, {'truth' if kind == 'latents' else 'space'}" for kind in VECTORS}
    return Plan(work, work / "rows", WINDOW, settings, {}, dict.fromkeys(VECTORS, folder), {**data, "none": "rows"})


@pytest.fixture
def measured() -> Measured:
    """Scores of models whose noise is known, by three runs, on impressions of which half are of new products."""
    rng = np.random.default_rng(0)
    users, truth = rng.integers(0, USERS, ROWS), rng.normal(size=ROWS) * 2
    clicked = (rng.random(ROWS) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    saved = {"training": {"training_rows": 90.0, "validation_rows": 10.0}, "train_seconds": 60.0, "score_seconds": 1.0,
             "peak_mb": 512.0, "commit": "abc", "labels": ["control: shuffled with seed 0"]}  # fmt: skip
    scored = [
        Scored(
            name,
            1 / (1 + np.exp(-truth - noise * rng.normal(size=(len(SEEDS), ROWS)))),
            [{**saved, "seed": seed} for seed in SEEDS],
        )
        for name, noise in NOISE.items()
    ]
    new = np.arange(ROWS) % 2 == 0
    segments = [ClickSegment("age", "new", new), ClickSegment("age", "old", ~new)]
    return Measured(clicked, users, segments, scored, ("target",))


def test_every_stream_is_left_out_once_and_controls_differ_in_their_vectors_alone() -> None:
    left_out = [subject.left_out for subject in SUBJECTS.values() if subject.left_out]
    assert left_out == [(stream,) for stream in STREAMS]
    cubes = [SUBJECTS[name] for name in (CUBE, SHUFFLED, RANDOM, LATENTS)]
    assert {replace(one, name="", vectors="none") for one in cubes} == {Subject("", "cube")}
    assert LATENTS not in {subject.name for subject in subjects_of(truth=False)}


def test_a_fit_goes_by_all_that_decides_of_it(tmp_path: Path) -> None:
    one = plan(tmp_path)
    paths = [one.path(subject, seed, ".npy") for subject in SUBJECTS.values() for seed in SEEDS]
    paths += [
        plan(tmp_path, learning_rate=0.1).path(SUBJECTS[DIN], 0, ".npy"),
        replace(one, trees={"max_depth": 3}).path(SUBJECTS[TREES], 0, ".npy"),
        replace(one, window=(*WINDOW[:2], WINDOW[2] + timedelta(days=1))).path(SUBJECTS[DIN], 0, ".npy"),
        replace(one, data={**one.data, "none": "other rows"}).path(SUBJECTS[DIN], 0, ".npy"),
    ]
    assert len(set(paths)) == len(paths)
    assert plan(tmp_path).path(SUBJECTS[CUBE], 1, ".npy") in paths
    other_space = replace(one, data={**one.data, "space": "rows, other space"})
    assert other_space.path(SUBJECTS[DIN], 0, "") == one.path(SUBJECTS[DIN], 0, "")


def test_controls_are_drawn_anew_for_each_seed(tmp_path: Path) -> None:
    one = plan(tmp_path)
    assert one.snapshot(SUBJECTS[DIN], 0) is None
    for name, kind in ((SHUFFLED, "shuffled"), (RANDOM, "random")):
        labels = [found.labels[1:] for seed in (0, 1) if (found := one.snapshot(SUBJECTS[name], seed))]
        assert labels == [(f"control: {kind} with seed {seed}",) for seed in (0, 1)]


def test_a_fit_is_done_when_both_of_its_files_are_there(tmp_path: Path) -> None:
    one = plan(tmp_path)
    (tmp_path / "fits").mkdir()
    one.path(SUBJECTS[DIN], 0, ".npy").touch()
    assert not one.is_done(SUBJECTS[DIN], 0)
    one.path(SUBJECTS[DIN], 0, ".json").touch()
    assert one.is_done(SUBJECTS[DIN], 0)


def test_the_share_of_the_ceiling_is_a_quotient_of_mean_gains(measured: Measured) -> None:
    draws = Draws.of(measured)
    share = draws.share(CUBE, DIN, LATENTS, "auc")
    means = {name: draws.mean(name, "auc").value for name in (CUBE, DIN, LATENTS)}
    assert share.value == pytest.approx((means[CUBE] - means[DIN]) / (means[LATENTS] - means[DIN]))
    assert share.low < share.value < share.high < 1
    assert draws.share(DIN, DIN, LATENTS, "auc").value == 0
    assert draws.share(LATENTS, DIN, LATENTS, "gauc").value == 1


def test_what_came_is_told_by_intervals(measured: Measured) -> None:
    assert {one.wanted for one in verdicts(Draws.of(measured)) if not one.came} == set()
    better = {one.name: one.scores for one in measured.scored}
    swapped = [
        one._replace(scores=better[{SHUFFLED: CUBE, CUBE: DIN}.get(one.name, one.name)]) for one in measured.scored
    ]
    found = verdicts(Draws.of(measured._replace(scored=swapped)))
    assert {one.wanted for one in found if not one.came} == {
        f"{CUBE} above {DIN}", f"{SHUFFLED}: no gain over {DIN}", f"{CUBE} above {SHUFFLED}", f"{CUBE} above {RANDOM}",
    }  # fmt: skip


def test_some_models_can_be_compared_alone(measured: Measured) -> None:
    few = subjects_of(truth=True, patterns=["din", "cube*target"])
    assert [subject.name for subject in few] == [DIN, without("target")]
    with pytest.raises(InputError, match="cube without target_query"):
        subjects_of(truth=True, patterns=["dien"])
    some = measured._replace(scored=[one for one in measured.scored if one.name in (DIN, CUBE)])
    assert [one.wanted for one in verdicts(Draws.of(some))] == [f"{CUBE} above {DIN}"]


def test_models_are_compared_by_the_seeds_that_both_have(measured: Measured) -> None:
    fewer = [
        one._replace(scores=one.scores[[2, 1]], saved=[one.saved[2], one.saved[1]]) if one.name == DIN else one
        for one in measured.scored
    ]
    both = [one._replace(scores=one.scores[1:], saved=one.saved[1:]) for one in measured.scored]
    draws, expected = (Draws.of(measured._replace(scored=scored)) for scored in (fewer, both))
    assert draws.common(CUBE, DIN) == [1, 2]
    assert draws.gain(CUBE, DIN, "auc") == pytest.approx(expected.gain(CUBE, DIN, "auc"))
    assert draws.share(CUBE, DIN, LATENTS, "gauc") == pytest.approx(expected.share(CUBE, DIN, LATENTS, "gauc"))
    assert draws.have(CUBE, "nothing of the kind") is False


@pytest.mark.parametrize("truth", [True, False])
def test_the_page_says_simulated_first_and_holds_every_comparison(
    tmp_path: Path, measured: Measured, truth: bool
) -> None:
    info = SourceInfo("shop", True, "simulated marketplace", WINDOW[:2], *WINDOW[:2], "", "f")
    config = plan(tmp_path).config(SUBJECTS[CUBE], 0)
    known = measured._replace(scored=[one for one in measured.scored if truth or one.name != LATENTS])
    said: list[str] = []
    write_report(
        tmp_path / "docs" / "page.md", tmp_path / "figures.json", Setup(info, "s", WINDOW, config), known, said.append
    )
    page = (tmp_path / "docs" / "page.md").read_text()
    assert page.splitlines()[2].startswith("**Simulated**")
    for line in (f"{CUBE} - {DIN}", f"{SHUFFLED} - {DIN}", f"{CUBE} - {without('target')}", "| age | new | 2,000 |"):
        assert line in page
    assert ("share of the ceiling" in page) == truth
    assert "control: shuffled |" in page
    assert "nan" not in page
    assert (tmp_path / "figures.json").is_file()
