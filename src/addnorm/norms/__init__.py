"""Norm policies: one file each, one table."""

from .base import Norm as Norm
from .table import NORMS as NORMS
