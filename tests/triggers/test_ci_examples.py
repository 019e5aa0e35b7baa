"""The files in `examples/ci`: right by their published schemas, and every command in them is one that is understood."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from pipeline.cli.watch import watch

FOLDER = Path(__file__).parent.parent.parent / "examples" / "ci"


def schema(name: str) -> Any:
    """A schema as SchemaStore and GitLab publish it, from the package `check-jsonschema`, which carries them."""
    spec = importlib.util.find_spec("check_jsonschema")
    if spec is None or spec.origin is None:
        pytest.skip("the published schemas are not here: pip install check-jsonschema")
    return json.loads((Path(spec.origin).parent / "builtin_schemas" / "vendor" / name).read_text())


def load(name: str) -> Any:
    class Loader(yaml.SafeLoader):
        """YAML 1.2 as CI systems read it: `on` is a word."""

    Loader.yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:bool" or first not in "oOyYnN"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return yaml.load((FOLDER / name).read_text(), Loader)


@pytest.mark.parametrize(
    ("name", "published", "broken"),
    [
        ("github-actions.yml", "github-workflows.json", {"jobs": {"watch": {"steps": []}}}),
        ("gitlab-ci.yml", "gitlab-ci.json", {"optimize": {"script": 7}}),
    ],
)
def test_a_file_is_right_by_its_published_schema(name: str, published: str, broken: Any) -> None:
    validator = jsonschema.Draft7Validator(schema(published))
    document = load(name)
    assert [error.message for error in validator.iter_errors(document)] == []
    assert list(validator.iter_errors(document | broken)), "the schema does see what is wrong"


def commands() -> list[tuple[str, str]]:
    found = []
    github, gitlab, cron = (load(name) for name in ("github-actions.yml", "gitlab-ci.yml", "kubernetes-cronjob.yaml"))
    found += [("github", step["run"]) for step in github["jobs"]["watch"]["steps"] if "run" in step]
    found += [("gitlab", line) for line in gitlab["optimize"]["script"]]
    jenkins = re.search(r"sh '''(.*?)'''", (FOLDER / "Jenkinsfile").read_text(), re.DOTALL)
    assert jenkins is not None
    found.append(("jenkins", jenkins[1].replace("\\\n", " ")))
    [container] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    found.append(("kubernetes", shlex.join([*container["command"], *container["args"]])))
    return found


@pytest.mark.parametrize(("where", "line"), commands(), ids=lambda value: value if len(value) < 12 else "")
def test_every_command_is_one_that_is_understood(where: str, line: str) -> None:
    words = shlex.split(line)
    assert words[:2] == ["optimize", "watch"]
    context = watch.make_context("watch", words[2:])
    assert context.params["once"] and context.params["every"]
    with pytest.raises(click.UsageError):
        watch.make_context("watch", [*words[2:], "--no-such-option"])


def test_no_text_from_outside_gets_into_a_shell() -> None:
    for where, line in commands():
        assert "${{" not in line, where
        assert "OPTIMIZE_MODEL" not in line, where
