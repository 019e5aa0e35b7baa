"""The command line: quick to answer, clear about mistakes, and the documented exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from workplace import Classifier, Workplace

from pipeline import Recipe
from pipeline.cli.run import run
from stages.variants import GRAPH_VARIANTS, LANGUAGE_VARIANTS

HEAVY = ["torch", "transformers", "onnx", "onnxruntime", "onnxscript", "mlflow", "sklearn", "pandas", "tritonclient"]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['optimize', '--help']\n"
        "import pipeline.cli\n"
        "try:\n    pipeline.cli.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {[*HEAVY, 'numpy', 'pydantic']} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_planning_imports_nothing_heavy(classifier: Classifier) -> None:
    """Nothing but onnx, which looks into the file for paths that lead out of its folder."""
    program = (
        "import sys; from pipeline import Recipe; from pipeline.dry_run import describe_plan\n"
        f"describe_plan(Recipe.parse({{'model': {str(classifier.model)!r}}}))\n"
        f"print([name for name in {[name for name in HEAVY if name != 'onnx']} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command_and_the_exit_codes(workplace: Workplace) -> None:
    ended = workplace.optimize("--help")
    assert ended.code == 0
    for word in ("run", "serve", "versions", "promote", "rollback", "records", "doctor", "Exit codes"):
        assert word in ended.out
    for command in re.findall(
        r"^  (\w+) ", ended.out.partition("Commands:")[2].partition("Exit codes")[0], re.MULTILINE
    ):
        assert workplace.optimize(command, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu", "x"], "did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "absent.onnx"], "absent.onnx"),
        (["run", "absent.yaml"], "absent.yaml cannot be read"),
        (["run", "x.onnx", "--objective", "beauty"], "beauty"),
        (["run", "x.onnx", "--variants", "int8-dinamic"], "int8-dynamic"),
        (["run", "x.onnx", "--variants", "fp32-opnvino"], "did you mean 'fp32-openvino'?"),
        (["run", "x.onnx", "--variants", "auto", "--budget", "soon"], "search_budget"),
        (["run", "x.onnx", "--budget", "soon"], "profile.budget"),
        (["run", "x.onnx", "--max-drop", "a bit"], "gates.max_drop"),
        (["run", "x.onnx", "--name", "../x"], "name"),
        (["run", "x.onnx", "--taks", "y"], "--task"),
        (["versions", "nowhere"], "nowhere"),
        (["serve", "nowhere"], "nowhere"),
        (["inspect", "nowhere.onnx"], "nowhere.onnx"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(workplace: Workplace, arguments: list[str], says: str) -> None:
    ended = workplace.optimize(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_a_model_near_the_misspelt_one_is_named(workplace: Workplace, classifier: Classifier) -> None:
    (workplace.path / "digits.onnx").symlink_to(classifier.model)
    ended = workplace.optimize("run", "digit.onnx")
    assert ended.code == 2
    assert "digits.onnx" in ended.err


def test_a_damaged_model_is_exit_code_2(workplace: Workplace, classifier: Classifier) -> None:
    whole = classifier.model.read_bytes()
    (workplace.path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    ended = workplace.optimize("run", "cut.onnx", "--evaluation", classifier.evaluation)
    assert ended.code == 2
    assert "cut.onnx" in ended.err
    assert not workplace.repository.exists()


def test_a_pickle_needs_the_flag(workplace: Workplace) -> None:
    (workplace.path / "model.pt").write_bytes(b"\x80\x04.")
    ended = workplace.optimize("run", "model.pt")
    assert ended.code == 2
    assert "--allow-pickle" in ended.err


def _data(path: Path, case: str) -> Path:
    x = np.zeros((4, 64), np.float32)
    match case:
        case "columns":
            np.savez(path / "data.npz", y=x)
        case "empty":
            np.savez(path / "data.npz", x=x[:0])
        case "nan":
            x[2, 3] = np.nan
            np.savez(path / "data.npz", x=x)
        case "shape":
            np.savez(path / "data.npz", x=x[:, :60])
        case "absent":
            pass
    return path / "data.npz"


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("columns", "'x'"),
        ("empty", "no samples|empty|no rows"),
        ("nan", "row 3: 'x' has NaN"),
        ("shape", "60"),
        ("absent", "data.npz"),
    ],
)
def test_wrong_data_is_exit_code_2(workplace: Workplace, classifier: Classifier, case: str, says: str) -> None:
    ended = workplace.optimize("run", classifier.model, "--evaluation", _data(workplace.path, case))
    assert ended.code == 2, ended.err
    assert re.search(says, ended.err)
    assert not workplace.repository.exists()


def test_a_metric_that_does_not_fit_is_refused_before_anything_is_measured(
    workplace: Workplace, classifier: Classifier
) -> None:
    ended = workplace.optimize("run", classifier.model, "--evaluation", classifier.evaluation, "--metric", "recall@1")
    assert ended.code == 2
    assert "accuracy" in ended.err
    assert "profile" not in ended.err


def test_dry_run_prints_the_plan_and_does_nothing(workplace: Workplace, classifier: Classifier) -> None:
    ended = workplace.optimize("run", classifier.model, "--dry-run")
    assert ended.code == 0
    for step in ("convert", "fuse", "int8-dynamic", "check fp32", "profile", "package", "verify", "publish"):
        assert step in ended.out
    assert not workplace.store.exists()


def test_init_writes_a_recipe_that_runs(workplace: Workplace, classifier: Classifier) -> None:
    assert workplace.optimize("init", classifier.model).code == 0
    assert workplace.optimize("run", "optimize.yaml", "--dry-run").code == 0
    again = workplace.optimize("init", classifier.model)
    assert again.code == 2
    assert "is there already" in again.err


def test_the_recipe_that_init_writes_names_every_variant(workplace: Workplace, classifier: Classifier) -> None:
    assert workplace.optimize("init", classifier.model).code == 0
    written = (workplace.path / "optimize.yaml").read_text()
    assert re.search(r"^#   int8-static +.*\(onnxruntime or openvino; calibrated\)$", written, re.MULTILINE)
    assert re.search(r"^#   bf16 +.*\(openvino\)$", written, re.MULTILINE)
    assert all(f"#   {name} " in written for name in GRAPH_VARIANTS)
    assert not any(f"#   {name} " in written for name in LANGUAGE_VARIANTS)
    assert max(map(len, written.splitlines())) <= 120
    for line in ("calibration:", "  path: calibration.jsonl", "search_budget: 10m"):
        assert f"# {line}" in written
        written = written.replace(f"# {line}", line)
    (workplace.path / "optimize.yaml").write_text(written.replace("variants: [fp16, int8-dynamic]", "variants: auto"))
    recipe = Recipe.read(workplace.path / "optimize.yaml")
    assert (recipe.variants, recipe.search_budget, recipe.fallback) == ("auto", 600, True)
    assert recipe.calibration is not None


@pytest.mark.parametrize(
    ("variants", "search", "profile"), [("auto", 300.0, 60.0), ("fp16", 600.0, 300.0), (None, 300.0, 60.0)]
)
def test_the_budget_is_for_the_search_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variants: str | None, search: float, profile: float
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x.onnx\nvariants: auto\n")
    seen: list[Recipe] = []
    monkeypatch.setattr("pipeline.dry_run.describe_plan", lambda recipe: seen.append(recipe) or "")
    arguments = [str(tmp_path / "recipe.yaml"), "--budget", "5m", "--dry-run", "--no-fallback"]
    ended = CliRunner().invoke(run, arguments + (["--variants", variants] if variants else []))
    assert ended.exit_code == 0, ended.output
    assert [(one.search_budget, one.profile.budget, one.fallback) for one in seen] == [(search, profile, False)]


def test_inspect_tells_what_a_model_takes(workplace: Workplace, classifier: Classifier) -> None:
    about = workplace.optimize("inspect", classifier.model, "--json").json
    assert about["signature"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]
    assert "int8-dynamic" in about["variants"]
    assert "logits" in workplace.optimize("inspect", classifier.model).out


def test_doctor_finds_this_environment_whole(workplace: Workplace) -> None:
    ended = workplace.optimize("doctor")
    assert ended.code == 0, ended.out
    assert "onnxruntime" in ended.out
