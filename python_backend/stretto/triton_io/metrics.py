"""Counters and gauges on Triton's metrics endpoint."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import triton_python_backend_utils as pb_utils

PREFIX = "stretto_"


class Gauges:
    """Metrics of one model, named `stretto_` + field; those whose names end in `_total` are counters."""

    def __init__(self, model: str, descriptions: Mapping[str, str]) -> None:
        self._metrics: dict[str, Any] = {}
        self._values = dict.fromkeys(descriptions, 0.0)
        self._families = []  # keeps references, because Triton removes garbage-collected families
        for field, description in descriptions.items():
            metric_type = pb_utils.MetricFamily.COUNTER if field.endswith("_total") else pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=PREFIX + field, description=description, kind=metric_type)
            self._families.append(family)
            self._metrics[field] = family.Metric(labels={"model": model})

    def set(self, field: str, value: float) -> None:
        before = self._values[field]
        if value == before:
            return
        if field.endswith("_total"):
            assert value > before, f"{field} fell from {before} to {value}"
            self._metrics[field].increment(value - before)
        else:
            self._metrics[field].set(value)
        self._values[field] = value

    def add(self, field: str, amount: float) -> None:
        self.set(field, self._values[field] + amount)

    def update(self, values: Mapping[str, float]) -> None:
        """Set the metrics of the fields in `values`; other fields are ignored."""
        for field in self._values.keys() & values.keys():
            self.set(field, values[field])


class BuildInfo:
    """Metric `stretto_build_info`, which has the package version as a label and is always 1.

    The metric exists as long as this object.
    """

    def __init__(self) -> None:
        gauge = pb_utils.MetricFamily.GAUGE
        self._family = pb_utils.MetricFamily(
            name=PREFIX + "build_info", description="Version of the server", kind=gauge
        )
        self._metric = self._family.Metric(labels={"version": version("stretto")})
        self._metric.set(1.0)
