"""What a round has done, for the page of a CI job: JUnit's XML and Markdown. And the queue, for people and programs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from typing import Any

from pipeline.triggers.queue import Row
from pipeline.triggers.text import one_line, readable
from pipeline.triggers.watch import Round

__all__ = ["document", "junit", "markdown", "status_text"]


def junit(round_: Round) -> bytes:
    """A test suite with a case for every piece of work: one that no variant came through is a failure, one that broke
    is an error. What is wrong with a model that nothing could be queued of is an error too."""
    suite = ET.Element("testsuite", name="optimize watch")
    for row in round_.rows:
        work = row.work
        name = f"version {work.version} ({work.recipe_name})"
        case = ET.SubElement(suite, "testcase", classname=readable(work.model), name=readable(name))
        case.set("time", f"{row.seconds or 0:.3f}")
        if row.state == "refused":
            ET.SubElement(case, "failure", message=readable(row.message))
        elif row.state == "failed":
            ET.SubElement(case, "error", message=readable(row.message))
        ET.SubElement(case, "system-out").text = readable(row.message)
    for model, problem in round_.problems.items():
        case = ET.SubElement(suite, "testcase", classname=readable(model), name="queued")
        ET.SubElement(case, "error", message=readable(problem))
    for attribute, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("errors", "testcase/error")):
        suite.set(attribute, str(len(suite.findall(tag))))
    text: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def markdown(round_: Round) -> str:
    """A table of the work, and below it what was wrong."""
    if not round_.rows and not round_.problems:
        return "### optimize\n\nNothing to do: every version that is watched has its result.\n"
    lines = [
        "### optimize",
        "",
        "| model | version | why | recipe | result | registered as |",
        "|---|--:|---|---|---|---|",
    ]
    for row in round_.rows:
        work = row.work
        result = f"{row.state}: {row.variant}" if row.variant else row.state
        cells = (work.model, work.version, work.why, work.recipe_name, result, row.registered or "")
        lines.append(f"| {' | '.join(_cell(str(cell)) for cell in cells)} |")
    lines += ["", *(f"- {_cell(row.work.model)} {row.work.version}: {_cell(row.message)}" for row in round_.rows)]
    lines += [f"- {_cell(model)}: {_cell(problem)}" for model, problem in round_.problems.items()]
    return "\n".join(lines) + "\n"


def document(rows: list[Row], problems: dict[str, str] | None = None) -> dict[str, Any]:
    """The rows as plain values: what `--json` prints."""
    return {
        "work": [
            {
                "key": row.work.key,
                "model": row.work.model,
                "version": row.work.version,
                "why": row.work.why,
                "recipe": row.work.recipe_name,
                "state": row.state,
                "attempts": row.attempts,
                "asked_at": _time(row.asked_at),
                "changed_at": _time(row.changed_at),
                "seconds": row.seconds,
                "exit_code": row.exit_code,
                "message": row.message,
                "variant": row.variant,
                "release": row.release,
                "registered": row.registered,
            }
            for row in rows
        ],
        "problems": dict(problems or {}),
    }


def status_text(rows: list[Row]) -> str:
    """The queue as a table for people."""
    if not rows:
        return "nothing was asked for yet"
    table = [("state", "model", "version", "recipe", "asked", "why", "what came of it")]
    table += [
        (row.state, row.work.model, str(row.work.version), row.work.recipe_name, _time(row.asked_at), row.work.why,
         one_line(row.message))
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in table) for column in range(6)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[6]]).rstrip()
        for line in table
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _cell(text: str) -> str:
    return re.sub(r"([\\|`<>*_\[\]])", r"\\\1", one_line(text))
