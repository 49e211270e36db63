"""What is commonly claimed of Add & Norm, what is true, and an experiment for each claim."""

from __future__ import annotations

from .base import Claim as Claim
from .base import Evidence as Evidence
from .base import Number as Number
from .run import Explanation as Explanation
from .run import explain as explain
from .table import CLAIMS as CLAIMS
