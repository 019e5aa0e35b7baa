"""The pictures of MLflow's pages in `docs/`: a real run of the digits example, in a real browser.

python tests/ui/pictures.py docs
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from browser import Browser, chromium  # noqa: E402
from shown import Shown, registered  # noqa: E402
from workplace import Workplace  # noqa: E402

from pipeline.result import RunResult  # noqa: E402

_EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "digits"
_MOST_BYTES = 300_000


def main() -> None:
    """Write `mlflow-*.png` into the folder that is named."""
    docs = Path(sys.argv[1])
    executable = chromium()
    if executable is None:
        sys.exit("there is no Chromium here (Debian and Ubuntu: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        result = _run(place)
        registered(place, result, "digits")
        with Shown(place, result, "digits") as shown:
            pages = {
                "charts": (shown.charts, 1500, 1500, ("accuracy/delta_pp",)),
                "table": (shown.table, 1680, 520, ("optimize.verdict", "speedup/p95_x")),
                "comparison": (shown.comparison(), 1500, 2700, ("speedup/p95_x",)),
                "job": (shown.job_page(), 1500, 1100, ("speed-up", "verdict")),
                "version": (shown.version_page(), 1300, 1000, ("optimize.verdict",)),
            }
            for name, (url, width, height, words) in pages.items():
                with Browser(executable, width, height) as browser:
                    browser.open(url)
                    browser.until(*words)
                    if name == "charts":
                        _seek(browser)
                    elif name == "job":
                        _leaf(browser, "Show more", "click()")
                    elif name == "version":
                        _leaf(browser, "optimize.verified", "scrollIntoView({block: 'end'})")
                    path = docs / f"mlflow-{name}.png"
                    browser.picture(path)
                size = path.stat().st_size
                print(f"{path}  {size} bytes")
                if size > _MOST_BYTES:
                    sys.exit(f"{path} is larger than {_MOST_BYTES} bytes")


def _seek(browser: Browser) -> None:
    """What decides, out of all charts: the page has one for every figure, from `accuracy` to `throughput`."""
    browser.run("document.querySelector('input[placeholder*=\"metric charts\"]').focus()")
    browser.ask("Input.insertText", {"text": "speedup|delta_pp|gate"})
    browser.until("speedup/p95_x", "gate/passed")


def _leaf(browser: Browser, text: str, does: str) -> None:
    leaves = "[...document.querySelectorAll('*')].filter(each => !each.children.length"
    browser.run(f"{leaves} && each.textContent.trim() === '{text}')[0].{does}")


def _run(place: Workplace) -> RunResult:
    build = place.path / "build"
    subprocess.run([sys.executable, str(_EXAMPLE / "train.py"), str(build)], check=True, stdout=sys.stderr)
    recipe = place.path / "recipe.yaml"
    recipe.write_text((_EXAMPLE / "recipe.yaml").read_text())
    ended = place.optimize("run", recipe, "--json")
    if ended.code != 0:
        sys.exit(ended.err)
    return RunResult.model_validate_json(ended.out)


if __name__ == "__main__":
    main()
