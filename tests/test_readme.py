"""README.md: that what it points at is there. (.ci/run runs its two commands.)"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_lines_that_are_named_hold_what_they_are_named_for():
    """Would catch: `hut.py:35` `HUTLinear` after the class has moved."""
    found = re.findall(r"`([\w/]+\.py):(\d+)`\s+`(\w+)`", README)
    assert len(found) > 5
    for file, line, name in found:
        text = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        where = [
            i
            for i, row in enumerate((ROOT / file).read_text().splitlines(), 1)
            if re.match(rf"\s*(def |class )?{name}\b", row)
        ]
        assert re.match(rf"\s*(def |class )?{name}\b", text), (
            f"{file}:{line} is '{text}'; {name} is at {where}"
        )


def test_files_that_are_named_exist():
    """Would catch: a file that was renamed."""
    for name in re.findall(r"`((?:[\w]+/)*\w+\.(?:py|md))`", README):
        assert (ROOT / name).exists(), name
