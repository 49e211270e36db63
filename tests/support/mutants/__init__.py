"""Backends that are wrong, each in one way, each with the check that must reject it."""

from . import dropout, gradients, memory, statistics
from .base import ROWS as ROWS
from .base import Mutant as Mutant
from .base import Row as Row

__all__ = ["ROWS", "Mutant", "Row", "dropout", "gradients", "memory", "statistics"]
