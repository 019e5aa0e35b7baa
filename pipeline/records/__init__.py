"""What is kept of a run in MLflow: one run for the job, one flat run for every variant.

`names` chooses every metric, parameter and tag; `record` makes a record of a result; `spool` keeps it on disk until it
is delivered; `child` is the process that talks to MLflow, so that nothing it does can hurt the run.
"""

from pipeline.records.recorder import Delivery, Recorder, sync

__all__ = ["Delivery", "Recorder", "sync"]
