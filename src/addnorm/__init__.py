"""addnorm: the transformer's Add & Norm sublayer, as quick as the memory allows."""

from .functional import add_norm as add_norm
from .functional import add_norm_stream as add_norm_stream
from .functional import explain_dispatch as explain_dispatch
from .modules import AddNorm as AddNorm

__version__ = "0.1.0"
