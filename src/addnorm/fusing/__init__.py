"""Find the Add & Norm sites of an existing model, run them fused, and undo it."""

from .handle import Handle as Handle
from .handle import fuse as fuse
from .report import Outcome as Outcome
from .report import Report as Report
