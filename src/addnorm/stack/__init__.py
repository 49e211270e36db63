"""`Residual` wraps one sublayer, `Stack` a whole residual stream, both under a placement chosen by name."""

from .residual import Residual as Residual
from .stack import Stack as Stack
