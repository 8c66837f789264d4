"""Shapes of the same device with more of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from posttrain.runs.options import config_dir


def larger_shapes(hardware: Mapping[str, Any]) -> dict[str, int]:
    """Built-in shapes with more of the same device: name -> devices over all nodes, the smaller ones first."""
    shapes = {}
    for file in sorted((config_dir() / "hardware").glob("[0-9]*.yaml")):
        shape = yaml.safe_load(file.read_text(encoding="utf-8"))
        if shape.get("device_name") == hardware["device_name"] and hardware["device_name"] is not None:
            shapes[str(shape["name"])] = int(shape.get("nodes", 1)) * int(shape.get("devices", 1))
    present = hardware["nodes"] * hardware["devices"]
    return {name: count for name, count in sorted(shapes.items(), key=lambda item: item[1]) if count > present}
