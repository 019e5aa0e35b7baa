"""What a Triton server counts, read from its Prometheus endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Metrics", "Sample"]

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One measured value under its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All samples by metric name, such as `nv_inference_request_success` and `nv_inference_exec_count`."""

    samples: Mapping[str, tuple[Sample, ...]]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read Prometheus' text format (version 0.0.4)."""
        samples: dict[str, tuple[Sample, ...]] = {}
        for line in text.splitlines():
            match = _LINE.match(line)
            if match:
                name, labels, value = match.groups()
                found = Sample(dict(_LABEL.findall(labels or "")), float(value))
                samples[name] = (*samples.get(name, ()), found)
        return cls(samples)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry all of `labels`; 0 if there are none."""
        return sum(
            sample.value
            for sample in self.samples.get(name, ())
            if all(sample.labels.get(label) == value for label, value in labels.items())
        )
