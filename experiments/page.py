"""The HTML pages that report.py and visualise.py write: their shell, their style sheet, tables and details.

A page needs no other file. Its colours follow the reader's light or dark setting. On a narrow screen nothing
scrolls sideways except tables, each in a box of its own.
"""

from html import escape

COLOURS = """
:root { --paper: #fdfdfb; --ink: #1d2226; --mute: #667078; --faint: #e4e5e2; --ghost: #c9cdce;
  --hut: #c4500a; --other: #0b69a3; --bad: #a8182d; --good: #1a6b45; --red: 255 75 75;
  color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181b; --ink: #e6e6e1; --mute: #98a1a8; --faint: #2b3034; --ghost: #474e54; --red: 190 15 15;
  --hut: #f0954a; --other: #63b5e8; --bad: #ff8a94; --good: #6fcf9f } }
"""

DRAWING = """
text { font: 11px system-ui, sans-serif; fill: var(--ink) } text.mute { fill: var(--mute) }
text.name, text.hut { font-weight: 600 } text.label { fill: var(--own) }
.hut { --own: var(--hut) } .other { --own: var(--other) } circle { fill: var(--own); stroke: var(--paper) }
polyline { fill: none; stroke: var(--faint) } .ghost { stroke: var(--ghost) }
.curve, .bar, .level, .leader { stroke: var(--own) } .curve { stroke-width: 2 } .leader { opacity: .3 }
.bar { stroke-width: 1.5; opacity: .5 } .level { stroke-dasharray: 5 4 }
.band { fill: var(--own); opacity: .22 }
"""

LAYOUT = """
body { box-sizing: border-box; margin: auto; padding: 2rem 1.25rem; max-width: 65rem; overflow-wrap: anywhere;
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1, h2 { line-height: 1.2; margin: 0 } h3 { font-size: 1rem; margin: 1.2rem 0 0 }
p, figcaption { margin: .5rem 0; max-width: 46rem } .soft, figcaption { color: var(--mute); font-size: .9rem }
section { margin-top: 3rem; padding-top: 1.4rem; border-top: 1px solid var(--faint) }
nav a { display: block } a { color: var(--other) } b { color: var(--own, var(--ink)) }
.badge { padding: .1rem .5rem; border: 1px solid; border-radius: 1rem }
.bad { color: var(--bad) } .good { color: var(--good) }
details { margin: .9rem 0 } summary { cursor: pointer; font-weight: 600 }

.scroll { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3rem 1rem .3rem 0; text-align: right; vertical-align: top; overflow-wrap: normal }
td:first-child, td:not(.word) { white-space: nowrap } .word { text-align: left }
tr { border-bottom: 1px solid var(--faint); font-variant-numeric: tabular-nums }
figure { margin: 1.6rem 0 } .drawings { display: flex; flex-wrap: wrap; gap: 1rem 1.25rem }
svg { max-width: 100%; height: auto; overflow: visible }

.strip { border: 1px solid var(--faint); padding: .6rem .8rem; max-width: none; white-space: pre-wrap }
.word, .answer { background: rgb(var(--red) / var(--depth)) } .unread { color: var(--mute); opacity: .6 }
.answer { text-decoration: underline 2px; font-weight: 600 } .legend { display: flex; gap: .6rem }
.legend i { width: 12rem; background: linear-gradient(90deg, transparent, rgb(var(--red))) }
"""


def page(title, body):
    """A whole HTML page around `body`, which is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{COLOURS}{DRAWING}{LAYOUT}</style></head><body>
{body}
</body></html>
"""


def details(summary, content, is_open=False):
    """`content` that a click on `summary` shows and hides; nothing where there is no content."""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def table(header, rows, words=1):
    """A table of texts: the first `words` columns are words, the others numbers, such as "71.7 ± 1.2"."""

    def cell(i, value):
        kind = "word" * (i < words) + " bad" * (value == "failed")
        return f'<td class="{kind}">{escape(value)}</td>'

    head = "".join(f'<th class="{"word" * (i < words)}">{escape(name)}</th>' for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(map(cell, range(len(row)), row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
