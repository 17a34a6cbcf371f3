"""Publishes tables of runs: python -m experiments.publish [FOLDER …]

Takes the finished table of each FOLDER into results/, under the folder's name, and writes from results/ what
RESULTS.md has between <!-- results/NAME --> and <!-- end -->, and the README's picture.
"""

import json
import re
from pathlib import Path

from arguments import Parser, run_as_script
from data import UserError, no_nan, read_text, write_text
from experiments import report
from experiments.page import DRAWING
from experiments.sheet import as_text, sheets

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, PICTURE = ROOT / "results", ROOT / "RESULTS.md", ROOT / "results" / "methods.svg"
BLOCK = re.compile(r"(<!-- results/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def take(folder):
    """(where, what) is stored of a folder's table.json: its sheets made anew, in fewer lines."""
    content = report.read(folder / "table.json", "cells", "environment")
    if not content.get("complete", True):
        raise UserError(f"{folder}: not finished: the same command of experiments.sweep goes on with it")
    content["environment"].pop("command", None)  # it may have paths
    content["tables"] = [one._asdict() for one in sheets(content)]
    text = json.dumps(no_nan(content), indent=1, ensure_ascii=False)
    text = re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda found: " ".join(found[0].split()), text)
    stored = RESULTS / folder.resolve().name / "table.json"
    return stored, text + "\n"


def filled(text):
    """`text` with its tables as results/ gives them."""

    def block(found):
        content = report.read(RESULTS / found[2] / "table.json", "tables")
        return f"{found[1]}{as_text(content)}\n{found[3]}"

    return BLOCK.sub(block, text)


def picture(sections):
    """The README's, in SVG: score against parameters, for the first section's first task that has both."""
    style = f'<style>{DRAWING}</style><rect width="720" height="380" fill="var(--paper)"/>'
    for section in sections:
        first = [one for one in section.entries if one.cell["task"] == section.entries[0].cell["task"]]
        if drawn := report.against(first, "parameters", width=720, height=380, style=style):
            return drawn[0]
    raise UserError(f"{RESULTS}: expected the scores of two methods")


def main():
    parser = Parser(prog="python -m experiments.publish", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="of experiments.sweep: its --out"
    )
    page = read_text(PAGE, "expected the page of results")
    taken = [take(folder) for folder in parser.parse_args().folders]
    if len(dict(taken)) < len(taken):
        raise UserError("two folders have one name: expected a name for each in results/")
    for stored, text in taken:
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_text(stored, text)
        place = f"<!-- results/{stored.parent.name} -->"
        if place not in page:
            print(f"{PAGE.name} does not show it: that takes a line {place}, and one <!-- end -->")
    write_text(PAGE, filled(page))
    write_text(PICTURE, picture(report.find(RESULTS)))


if __name__ == "__main__":
    run_as_script(main)
