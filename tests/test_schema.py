"""The JSON schema of `optimize run --json` in `docs/` is that of the code. `python tests/test_schema.py` writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_result import example_fallback, example_result

from pipeline.result import RunResult

SCHEMA = Path(__file__).parent.parent / "docs" / "run.schema.json"


def schema_text() -> str:
    schema = RunResult.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def test_the_documented_schema_is_that_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(), "run `python tests/test_schema.py`"


@pytest.mark.parametrize("result", [example_result(), example_fallback()])
def test_a_result_survives_its_json(result: RunResult) -> None:
    assert RunResult.model_validate_json(result.model_dump_json()) == result


if __name__ == "__main__":
    SCHEMA.write_text(schema_text())
