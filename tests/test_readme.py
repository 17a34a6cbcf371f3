"""README.md and RESULTS.md: names are there, tables are tables. (.ci/run runs both commands.)"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
pages = pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])


def test_what_is_named_in_a_file_is_there():
    """Would catch: `hut.py` `HUTLinear` after the class has another name."""
    found = re.findall(r"`([\w/]+\.py)` `(\w+)`", README)
    assert len(found) > 5
    for file, name in found:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*((def|class) {name}\b|{name} = )", text, re.M), f"{file} has no {name}"


@pages
def test_files_that_are_named_exist(page):
    """Would catch: a file that was renamed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|md))`", text) + re.findall(r"\]\(((?!http)[^)]+)\)", text)
    for name in [
        *named,
        *(f"{module.replace('.', '/')}.py" for module in re.findall(r"-m (experiments\.\w+)", text)),
    ]:
        assert (ROOT / name).exists(), name


@pages
def test_tables_have_as_many_cells_a_row_as_in_their_header(page):
    """Would catch: a table that GitHub shows as text."""
    width = 0
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        assert not (width and cells) or cells == width, f"{page}:{number}"
        width = cells
