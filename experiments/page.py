"""The HTML pages that report.py and visualise.py write. A page needs no other file."""

import re
from html import escape
from pathlib import Path

from data import UserError, write_text

HERE = Path(__file__).parent
DRAWING, LAYOUT = ((HERE / name).read_text(encoding="utf-8") for name in ("drawing.css", "page.css"))


def page(title, body):
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{DRAWING}{LAYOUT}</style></head><body>
{body}
</body></html>
"""


def save(option, path, content):
    """Writes what `option` asks for."""
    try:
        write_text(path, content)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    print(f"{path}: {len(content):,} bytes")


def details(summary, content, is_open=False):
    """`content` that a click on `summary` shows; nothing without content."""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def table(header, rows, words=1):
    """A table of texts: the first `words` columns are words, the others numbers; **bold**."""

    def cell(i, value):
        kind = "word" * (i < words) + " bad" * (value == "failed")
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(value))
        return f'<td class="{kind}" title="{escape(header[i])}">{text}</td>'

    head = "".join(f'<th class="{"word" * (i < words)}">{escape(name)}</th>' for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(map(cell, range(len(row)), row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
