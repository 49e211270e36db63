"""Every command of ``addnorm``: one file each, and one row here."""

from __future__ import annotations

from types import ModuleType

from . import bench, demo, doctor, explain, fuse, inspect, placements

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "fuse": fuse,
    "bench": bench,
    "placements": placements,
    "inspect": inspect,
    "explain": explain,
    "doctor": doctor,
}
