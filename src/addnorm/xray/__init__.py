"""See what Add & Norm does in a model: `inspect` it over batches, `Monitor` it in training."""

from .base import Finding as Finding
from .inspection import Inspection as Inspection
from .monitor import Monitor as Monitor
from .run import inspect as inspect
