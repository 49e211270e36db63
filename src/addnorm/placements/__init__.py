"""Placements: one file each, one table."""

from .base import Placement as Placement
from .base import Settings as Settings
from .base import Site as Site
from .slots import Slot as Slot
from .table import PLACEMENTS as PLACEMENTS
from .table import make as make
