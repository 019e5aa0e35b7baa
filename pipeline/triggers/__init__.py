"""Acting on what happens in a model registry: `watch` polls it, `receiver` takes its webhooks as hints.

The registry is the truth, and everything that must survive a crash is in one SQLite file: the work to do (`queue`), how
far the registry has been read (`cursor`), and the deliveries that came in (`inbox`).
"""

from pipeline.triggers.poll import Watched
from pipeline.triggers.queue import Queue
from pipeline.triggers.watch import Round, WatchOptions, watch

__all__ = ["Queue", "Round", "WatchOptions", "Watched", "watch"]
