"""A feature store for multimodal product representations in e-commerce search advertising."""

from moonlake.version import __version__

__all__ = ["__version__"]
