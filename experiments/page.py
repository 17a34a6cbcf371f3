"""The HTML pages that report.py and visualise.py write. A page needs no other file."""

import re
from html import escape
from pathlib import Path

from data import write_text

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


def save(path, content):
    write_text(path, content)
    print(f"{path}: {len(content):,} bytes")


def details(summary, content, is_open=False):
    """`content` that a click on `summary` shows; nothing without content."""
    head = f"<details{' open' * is_open}><summary>{escape(summary)}</summary>"
    return f"{head}{content}</details>" if content else ""


def marked(words):
    """Plain words as HTML, in which **bold** and `code` are marked."""
    words = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(words))
    return re.sub("`(.+?)`", r"<code>\1</code>", words)


def table(header, rows):
    """A table of words; on a phone each cell shows its title."""

    def cell(title, words):
        return f'<td title="{escape(title)}">{marked(words)}</td>'

    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(map(cell, header, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
