"""The kernels in Triton, for CUDA devices; importing this loads no Triton."""

from .backend import Triton as Triton
from .backend import obstacle as obstacle
