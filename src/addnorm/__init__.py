"""addnorm: the transformer's Add & Norm sublayer in one pass over memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import norms, placements
from .functional import add_norm, add_norm_stream, explain_dispatch
from .modules import AddNorm
from .placements import Slot
from .stack import Residual, Stack

if TYPE_CHECKING:
    from .fusing import fuse
    from .fusing.fuse_pass import FusePass
    from .xray import Monitor, inspect

__version__ = "0.1.0"
__all__ = [
    "AddNorm", "FusePass", "Monitor", "Residual", "Slot", "Stack", "add_norm", "add_norm_stream", "explain_dispatch",
    "fuse", "inspect", "norms", "placements",
]  # fmt: skip

LAZY = {
    "fuse": "fusing",
    "FusePass": "fusing.fuse_pass",
    "inspect": "xray",
    "Monitor": "xray",
}  # bring Dynamo, which takes seconds to import


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'addnorm' has no attribute {name!r}")
    return getattr(import_module(f".{LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
