"""How MLflow's table of runs looks when it is opened by our link: with columns for what decides.

MLflow hides every figure until somebody adds columns. What its button "share view" keeps in a tag of the experiment,
and opens by `viewStateShareKey`, can be kept there beforehand (3.17: plain JSON, names as its page has them).
"""

from __future__ import annotations

import json

from pipeline.records.names import METRICS
from pipeline.records.record import Record

__all__ = ["VIEW_KEY", "VIEW_TAG", "view_of"]

VIEW_KEY = "optimize"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

_METRICS = (
    "speedup/p50_x",
    "speedup/p95_x",
    "latency/p95_ms",
    "generation/ttft_p50_ms",
    "generation/decode_tokens_per_s",
    "accuracy/<metric>",
    "accuracy/delta_pp",
    "accuracy/drop_upper",
    "fidelity/cosine",
    "size/bytes",
)


def view_of(record: Record) -> str:
    """The view's state: the verdict, and those of the figures that this record has; the newest job first."""
    held = {name for entry in record.entries for name in entry.metrics}
    if "accuracy/drop_upper" in held:
        held.discard("fidelity/cosine")  # it stands for accuracy where there was no truth
    # MLflow orders them by name: every column more moves the verdict further out of sight.
    measured = []
    if "accuracy/delta_pp" not in held:  # perplexity: what it is itself says more
        ours = {name for name in METRICS if name.startswith("accuracy/")}
        measured = sorted(name for name in held - ours if name.startswith("accuracy/"))
    names = [name for entry in _METRICS for name in (measured if entry == "accuracy/<metric>" else [entry])]
    columns = ["tags.`optimize.verdict`", *(f"metrics.`{name}`" for name in names if name in held)]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
    }
    return json.dumps(state, separators=(",", ":"))
