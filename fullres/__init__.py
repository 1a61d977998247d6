"""Labels every pixel of very large images at full resolution, on as many GPUs as a cluster has.

    import fullres

    network = fullres.load("smp18")
    labels = fullres.predict("street.jpg", network)

What is named here is imported when it is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullres.api import load, predict, targets
    from fullres.models.full_resolution.check import check
    from fullres.models.full_resolution.split_merge import split_merge
    from fullres.ops.errors import FullresError
    from fullres.ops.normalisation import Normalisation

__all__ = [
    "FullresError", "Normalisation", "__version__", "check", "load", "predict", "split_merge", "targets",
]  # fmt: skip

_HOMES = {
    "load": "fullres.api",
    "predict": "fullres.api",
    "targets": "fullres.api",
    "check": "fullres.models.full_resolution.check",
    "Normalisation": "fullres.ops.normalisation",
    "split_merge": "fullres.models.full_resolution.split_merge",
    "FullresError": "fullres.ops.errors",
}

__version__ = version("fullres")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fullres' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
