"""Proving a release: the real server loads it, answers as this process does, and batches (`verify`)."""

from __future__ import annotations

from stages.verify.verify import REPORT, VERIFY, VerifyOptions, verify

__all__ = ["REPORT", "VERIFY", "VerifyOptions", "verify"]
