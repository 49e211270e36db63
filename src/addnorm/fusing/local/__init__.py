"""Modules whose own forward holds a norm, or a sum and the norm after it: one file a kind, and their table."""

from .base import Local as Local
from .base import Part as Part
from .table import KINDS as KINDS
