"""A real model on real text, before and after fusing: `addnorm fuse` and the demonstration."""

from .result import Agreement, DemoResult, Errors, Fused, Machine, Model, Query, Workload

__all__ = ["Agreement", "DemoResult", "Errors", "Fused", "Machine", "Model", "Query", "Workload"]
