"""A home for Python: tables, training sets, vectors, new products; and with a checkout search and click models."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import pyarrow.compute as pc

from moonlake.application import room
from moonlake.embeddings import releases, spaces
from moonlake.embeddings.spaces import LIVE, Space
from moonlake.embeddings.vectors import Vectors, vectors_of_contents, vectors_of_products
from moonlake.errors import InputError, NotFound
from moonlake.extras import naming_extras
from moonlake.lake.lake import Lake
from moonlake.lake.lake_table import LakeTable
from moonlake.lake.product_events import ProductEvent, submit
from moonlake.schema.tables import TABLES
from moonlake.settings import Settings
from moonlake.timestamps import parse_moment
from moonlake.training_sets.spec import TrainingSetSpec
from moonlake.training_sets.training_set import TrainingSet

SOURCE = "python"
"""Source of products that are submitted from Python, unless it is stated."""


class Scored(NamedTuple):
    """A product and its score: a cosine in [-1, 1] of a search, or a click probability."""

    product_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Submission:
    """A product that was submitted; a stream (`moonlake product watch`) or the next ingestion takes it in.

    Attributes:
        event_id: names the record for `Home.outcome`.
        refused_by: the rule that the record broke, under which it stands in table `rejects`; None if it was accepted.
    """

    event_id: str
    product_id: str
    refused_by: str | None


class Application(Protocol):
    """The part of a home that needs models, and so a checkout: `workflows.api.Application`."""

    def nearest(
        self, *, product: str | None, image: bytes | None, text: str | None, k: int, space: str
    ) -> list[Scored]: ...

    def score(self, user: str, candidates: Sequence[str], query: str | None, at: datetime) -> list[Scored]: ...


class Home:
    """A home, opened by `moonlake.open`. Nothing is read before it is asked for, and nothing is kept open."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lake = Lake(settings)

    def __repr__(self) -> str:
        return f"<moonlake home {self.settings.home}>"

    def tables(self) -> dict[str, int]:
        """The latest Delta version of each table that has been written, by name."""
        versions = {name: self.lake.version(name) for name in TABLES}
        return {name: version for name, version in versions.items() if version >= 0}

    def table(self, name: str, version: int | datetime | None = None) -> LakeTable:
        """A table of the lake at a version or a moment; by default at its latest version.

        Raises: NotFound: no such table or version, or it has not been written yet.
        """
        return LakeTable.open(self.lake, name, version)

    def build_training_set(self, name: str, start: datetime | str, end: datetime | str, **options: Any) -> TrainingSet:
        """The training set of the label rows in [start, end), built or found built already. Needs the extra `feast`.

        Args:
            start, end: moments, or ISO 8601 text with a time zone.
            options: further fields of `TrainingSetSpec`, such as `sequence_length=100`.

        Raises:
            InputError: no settled label row in the window, or a specification that cannot be met.
            NotFound: an unknown feature service, view, table, version or column.
        """
        spec = TrainingSetSpec(name, _moment(start), _moment(end), **options)
        with naming_extras():
            from moonlake.training_sets import build
        return build.run(self.settings, spec, written_at=datetime.now(UTC)).training_set

    def training_sets(self) -> list[str]:
        """The names of the training sets of this home."""
        return sorted(path.parent.name for path in self.settings.training_sets.glob("*/manifest.json"))

    def training_set(self, name: str) -> TrainingSet:
        """A training set of this home. Raises NotFound, which names those that there are, for any other name."""
        if name not in (known := self.training_sets()):
            raise NotFound(f"no training set {name!r} in {self.settings.training_sets}: {', '.join(known) or 'none'}")
        return TrainingSet.open(self.settings.training_set(name))

    def spaces(self) -> list[Space]:
        """The embedding spaces of the lake, in the order in which they were registered."""
        return spaces.spaces(self.lake)

    def vectors(
        self, *, contents: Sequence[str] | None = None, products: Sequence[str] | None = None, space: str = LIVE
    ) -> Vectors:
        """The vectors of contents or of products, by their ids.

        Args: space: name or id of an embedding space; "live" is the one that CTR ranking runs on.
        Returns: ids [N], values float32 [N, D], found bool [N]; `missing` names the ids without a vector.
        Raises: NotFound: no such space.   InputError: both or none of contents and products.
        """
        if (contents is None) == (products is None):
            raise InputError("vectors: expected contents or products, one of the two")
        found = releases.find(self.lake, space)
        if contents is not None:
            return vectors_of_contents(self.lake, found, contents)
        return vectors_of_products(self.lake, found, products or ())

    def submit(
        self,
        product: Mapping[str, Any],
        *,
        images: Mapping[str, bytes] | Sequence[str | Path] = (),
        source: str = SOURCE,
    ) -> Submission:
        """The record of a new or changed product, submitted; it is on sale once it was taken in (see `outcome`).

        Args:
            product: columns of `products` in the own-files form (docs/own_files.md); `product_id` is needed.
            images: picture files by name, or paths of them, in the order of the product's pictures.

        Raises: InputError: no product_id, or a picture that cannot be read.
        """
        if not isinstance(product.get("product_id"), str):
            raise InputError(f"submit: expected a product with a product_id, found {sorted(product)}")
        now, event_id = datetime.now(UTC), uuid4().hex
        files = images if isinstance(images, Mapping) else {Path(path).name: _bytes(path) for path in images}
        encoded = {name: base64.b64encode(file).decode() for name, file in files.items()}
        payload = json.dumps({**product, **({"images": encoded} if encoded else {})}, default=str)
        event = ProductEvent(event_id, product["product_id"], "upsert", payload, source, now)
        report = submit(self.lake, [event], written_at=now)
        return Submission(event_id, event.product_id, next(iter(report.by_rule), None))

    def outcome(self, submission: Submission | str) -> str | None:
        """The outcome of a submission, such as "servable"; None while nobody has taken it in."""
        event_id = submission if isinstance(submission, str) else submission.event_id
        rows = self.lake.read("product_arrivals", ["outcome"], where=pc.field("event_id") == event_id).to_pylist()
        return rows[-1]["outcome"] if rows else None

    def nearest(
        self,
        *,
        product: str | None = None,
        image: bytes | str | Path | None = None,
        text: str | None = None,
        k: int = 10,
        space: str = LIVE,
    ) -> list[Scored]:
        """The k products on sale that are nearest to a product, or to a picture, a text or both; nearest first.

        Needs a checkout, and for a picture or text the extra `models`. The scores are cosines in [-1, 1].

        Args: image: a file's bytes, or its path.
        Raises:
            MissingDependency: there is no checkout, or an extra is not installed.
            NotFound: no such space, or the product has no vector in it.
            InputError: nothing to search by, or a product together with a picture or text.
        """
        if (product is None) == (image is None and text is None):
            raise InputError("nearest: expected a product, or an image, a text or both")
        file = image if isinstance(image, bytes | None) else _bytes(image)
        with naming_extras():
            return self._application.nearest(product=product, image=file, text=text, k=k, space=space)

    def score(
        self, user: str, candidates: Sequence[str], query: str | None = None, *, at: datetime | None = None
    ) -> list[Scored]:
        """The candidates with the click probability that the released model gives them, the greatest first.

        Needs a checkout and the extras `feast` and `models`.

        Args:
            candidates: product ids.
            query: a query_id of the lake, or the content id of a query with a vector; None for no query.
            at: the moment of the request, by default now.

        Raises:
            MissingDependency: there is no checkout, or an extra is not installed.
            NotFound: nothing is released, or there is no such query.
        """
        with naming_extras():
            return self._application.score(user, candidates, query, at or datetime.now(UTC))

    @cached_property
    def _application(self) -> Application:
        asked_for = "a search or a click probability"
        opened: Application = room("workflows.api", self.settings.checkout, asked_for=asked_for).Application(
            self.settings
        )
        return opened


def open_home(home: str | Path | None = None, **settings: Any) -> Home:
    """The home in a folder; by default the one that MOONLAKE_HOME names, or else `.moonlake`.

    Args: settings: further fields of `Settings`, such as `lake_uri="s3://..."`.
    Raises: SettingsError: an unknown setting, or a value that does not fit.
    """
    stated = settings if home is None else {"home": home, **settings}
    return Home(Settings.from_environment(**stated))


def _moment(moment: datetime | str) -> datetime:
    return parse_moment(moment) if isinstance(moment, str) else moment


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"picture {path} cannot be read: {error.strerror}") from None
