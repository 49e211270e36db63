"""The demonstration: a real model on real text, before and after."""

from .result import Agreement, DemoResult, Machine, Model, Query, Workload

__all__ = ["Agreement", "DemoResult", "Machine", "Model", "Query", "Workload"]
