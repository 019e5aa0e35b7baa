"""The documentation names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.variants import VARIANTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_variant_has_its_line() -> None:
    page = (ROOT / "docs" / "variants.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert listed == list(VARIANTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:pipeline|stages|calibration|model_repository|docs|tests|benchmarks)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
