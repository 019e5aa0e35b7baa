"""Container images of a release: built without an engine, the same bit for bit, pushed, and verified by signature."""

from __future__ import annotations
