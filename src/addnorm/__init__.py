"""addnorm: the transformer's Add & Norm sublayer in one pass over memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .functional import add_norm as add_norm
from .functional import add_norm_stream as add_norm_stream
from .functional import explain_dispatch as explain_dispatch
from .modules import AddNorm as AddNorm
from .placements import Slot as Slot
from .stack import Residual as Residual
from .stack import Stack as Stack

if TYPE_CHECKING:
    from .fusing import fuse as fuse
    from .fusing.fuse_pass import FusePass as FusePass
    from .xray import Monitor as Monitor
    from .xray import inspect as inspect

__version__ = "0.1.0"

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
    return sorted({*globals(), *LAZY})
