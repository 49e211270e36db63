"""addnorm: the transformer's Add & Norm sublayer, as quick as the memory allows."""

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

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "fuse":
        raise AttributeError(f"module 'addnorm' has no attribute {name!r}")
    from .fusing import fuse  # brings Dynamo, which takes seconds to import: only who fuses waits for it

    return fuse
