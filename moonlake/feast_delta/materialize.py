"""The registered feature views brought online up to a moment, by Feast."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from datetime import datetime

from moonlake.errors import NotFound
from moonlake.feast_delta.materialization import ViewServed, reports_of
from moonlake.feast_delta.store import apply
from moonlake.settings import Settings


def run(settings: Settings, end: datetime, views: Sequence[str] | None = None) -> list[ViewServed]:
    """A report for each feature view that was materialised: the named ones, or all.

    Of each view the keys that changed since it was last served go online, late rows and timeless vectors among them,
    and the keys with facts since then.

    Raises: NotFound: an unknown feature view.
    """
    store = apply(settings)
    known = sorted(view.name for view in store.list_feature_views())
    if unknown := sorted(set(views or ()) - set(known)):
        raise NotFound(f"no feature views {unknown}; registered: {', '.join(known)}")
    names = list(views or known)
    with contextlib.redirect_stdout(io.StringIO()):  # Feast reports by printing; its progress bars stay on stderr
        store.materialize_incremental(end, feature_views=names)
    return [reports_of(store)[name] for name in names]
