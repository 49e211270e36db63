"""Norm policies: one file each, one table."""

from .base import Norm as Norm
from .derf import Derf as Derf
from .dyt import DyT as DyT
from .table import NORMS as NORMS
from .table import initial_policy as initial_policy
from .table import policy as policy
