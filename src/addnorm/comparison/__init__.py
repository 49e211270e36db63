"""The placements side by side: what each costs, its gradients at initialisation, and whether a deep model trains."""

from .measure import compare as compare
from .result import Comparison as Comparison
from .result import Row as Row
