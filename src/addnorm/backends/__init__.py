"""Backends: one file each, one table, one choice."""

from .base import Backend as Backend
from .base import Plan as Plan
from .base import Support as Support
from .table import BACKENDS as BACKENDS
from .table import KERNELS as KERNELS
from .table import Dispatch as Dispatch
from .table import able as able
from .table import backend_of as backend_of
from .table import explain as explain
from .table import select as select
from .table import transforms_active as transforms_active
