"""The benchmark: Add & Norm against its peers and against the speed of memory."""

from .cases import Case as Case
from .cases import full as full
from .cases import quick as quick
from .cuda_cases import cuda_full as cuda_full
from .cuda_cases import cuda_quick as cuda_quick
from .devices import DEVICES as DEVICES
from .results import Results as Results
