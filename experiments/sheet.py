"""A table as it is shown, made from what its table.json says."""

import statistics

from data.batching import HELD_OUT
from experiments.significance import FEWEST, LEVEL, difference, holm
from experiments.tables import TABLES, Row, Sheet, label, number, unit
from methods import METHODS, OPTIONS

RIVALS = ("hut", "lora")  # every row is compared with these


def as_text(content):
    """The tables of a table.json's content as Markdown, with the command."""
    return "\n\n".join([*(str(Sheet(**one)) for one in content["tables"]), f"`{content['command']}`"])


def sheets(content):
    """The Sheets of a table.json's content, complete or not: one of all tasks, then one each of several."""
    tasks = content["settings"]["tasks"]
    return [sheet(content, some) for some in [tasks, *([task] for task in tasks if len(tasks) > 1)]]


def sheet(content, tasks):
    table, rows = TABLES[content["table"]], {}
    script = table.script
    for cell in content["cells"]:
        row = Row(cell["method"], cell["r"], cell["targets"], ())
        rows.setdefault(row, {})[cell["task"]] = cell
    given = {word.partition("=")[0] for word in content["settings"].get("rest", ())}
    varied = given & {"--" + name.replace("_", "-") for name in OPTIONS}  # not the paper's form of the method
    printed = {row: {} if varied else row.in_paper(content["table"]) for row in rows}
    known = {name for texts in printed.values() for name in texts}
    best = {task: in_bold(by_row(rows, task, script.scores[task][0])) for task in tasks}
    less = differences(rows, tasks[0], script) if len(tasks) == 1 else {}
    cells = [[of.get(task) for task in tasks] for of in rows.values()]
    costs = [one for one in script.costs if {over_tasks(one, some) for some in cells} != {"–"}]  # measured
    lines = []  # of (title, text)
    for row, paper in printed.items():
        found = {task: rows[row].get(task) for task in tasks}
        line = [("method", label(*row[:3])), ("parameters", size_text(found.values()))]
        line += [("paper's", paper.get(n, "–")) for n in ("parameters", "trainable_percent") if n in known]
        for task, cell in found.items():
            for score in script.scores[task]:
                title, name = (f"{task} {score}", task) if len(script.scores) > 1 else (score, score)
                bold = "**" * (row in best[task] and score == script.scores[task][0])
                line.append((title, f"{bold}{mean_text(cell, score)}{bold}"))
                line += [("paper", paper.get(name, "–"))] if name in known else []
        if len(tasks) > 1:
            means = [cell and cell["mean"].get(script.scores[task][0]) for task, cell in found.items()]
            line.append(("mean", "–" if None in means else number("score", sum(means) / len(means))))
        else:
            line += about_search(cell, script, score=script.scores[task][0])
            line += [(f"− {name} [95 %]", texts.get(row, "–")) for name, texts in less.items()]
        lines.append(line + [(column.title, over_tasks(column, found.values())) for column in costs])
    header = [title for title, _ in lines[0]]
    return Sheet(header, [[text for _, text in line] for line in lines], notes(content, tasks))


def size_text(cells):
    """The number of trained parameters, with its share of the backbone."""
    for cell in cells:
        if cell and cell["parameters"] is not None:
            return f"{cell['parameters']:,} ({100 * cell['parameters'] / cell['backbone']:.2f} %)"
    return "–"


def mean_text(cell, score):
    """The mean ± standard deviation of a score."""
    if cell is None:
        return "…"
    if "failed" in cell:
        return "failed"
    return number(score, cell["mean"].get(score), cell["std"].get(score))


def about_search(cell, script, score):
    """Columns: the number of seeds, the best epoch's score where the last counts, the rate and its search."""
    cell = cell or {"runs": [], "tries": [], "lr": None}
    n = sum("scores" in one for one in cell["runs"])
    line, spent = [("n", str(n))], sum(one.get("seconds", 0) for one in cell["tries"])
    if script.counts[0] == "last":
        line.append(("best epoch", number(score, joined(cell, "best", score, statistics.fmean))))
    line.append(("rate", f"{cell['lr']:g}{'*' * at_the_end(cell)}" if cell["lr"] else "–"))
    return [*line, ("tries, s", f"{len(cell['tries'])}, {spent:,.0f}" if spent else "–")]


def joined(cell, part, key, of):
    """What `of` makes of the runs' values, None if a run has none."""
    values = [one[part].get(key) for one in cell["runs"] if part in one]
    return None if None in values or not values else of(values)


def at_the_end(cell):
    """Whether a better rate may lie beyond those that were tried."""
    tried = [one["lr"] for one in cell["tries"]]
    return len(tried) > 1 and cell["lr"] in (min(tried), max(tried))


def over_tasks(column, cells):
    """The text of a tables.Cost, from a row's cells; None is a cell that is not there yet."""
    if None in cells:
        return "…"
    values = [joined(cell, "cost", column.key, column.seeds) for cell in cells]
    return "–" if None in values else column.text(column.tasks(values))


# ---- differences


def scores_of(cell, score):
    """{seed: score} of a cell's runs, without those that failed or whose score is not defined."""
    found = {one["seed"]: one.get("scores", {}).get(score) for one in cell["runs"]}
    return {seed: value for seed, value in found.items() if value is not None}


def by_row(rows, task, score):
    """{row: {seed: score}}; {} where a seed has no defined score: the others alone would flatter the row."""
    found = {row: cells.get(task, {"runs": []}) for row, cells in rows.items()}
    return {row: scores_of(c, score) if joined(c, "scores", score, len) else {} for row, c in found.items()}


def in_bold(scores):
    """The best of {row: {seed: score}}, and rows that do not differ significantly from it: bold."""
    means = {row: sum(s.values()) / len(s) for row, s in scores.items() if len(s) >= FEWEST}
    if len(means) < 2:
        return set()
    best = max(means, key=means.get)
    return {best, *(row for row, one in against(scores, best).items() if one.p >= LEVEL)}


def against(scores, rival):
    """{row: Difference} of the rows less the rival, with Holm's correction; without rows of too few seeds."""
    found = {row: difference(scores[row], scores[rival]) for row in scores if row != rival}
    return holm({row: one for row, one in found.items() if one})


def differences(rows, task, script):
    """{rival: {row: "−3.1 [−4.2, −2.0], p .004"}}: each row less the rival, p with Holm's correction."""
    score = script.scores[task][0]
    scores, columns = by_row(rows, task, score), {}
    for name in RIVALS:
        of_name, its = [row for row in rows if row.method == name], METHODS[name]
        own = Row(name, its.r.get(script.layout), its.takes.get("targets"), ())
        rival = own if own in rows else of_name[0] if len(of_name) == 1 else None
        if found := rival and against(scores, rival):
            title = label(*rival[:3]) if len(of_name) > 1 else name
            columns[title] = {row: interval(score, one) for row, one in found.items()}
    return columns


def interval(score, found):
    """A Difference as it is shown: "−3.1 [−4.2, −2.0], p .004"."""
    factor, digits = unit(score)
    mean, low, high = (f"{factor * value:+.{digits}f}".replace("-", "−") for value in found[:3])
    return f"{mean} [{low}, {high}], p " + (f"{found.p:.3f}".lstrip("0") if found.p >= 0.001 else "<.001")


# ---- notes


def notes(content, tasks):
    """Paragraphs on what a reader should know of the runs."""
    flags, failed, ends = {"single_class": [], "invalid": []}, [], False
    for cell in (cell for cell in content["cells"] if cell["task"] in tasks):
        name = f"{cell['task']} {label(cell['method'], cell['r'], cell['targets'])}"
        ends |= at_the_end(cell)
        for flag, those in flags.items():
            counts = scores_of(cell, flag).items()
            seeds = [f"{seed}" if n is True else f"{seed}: {n:,}" for seed, n in counts if n]
            those += [f"{name} (seed {', '.join(seeds)})"] if seeds else []
        runs = [(name, cell), *((f"{name}, seed {one['seed']}", one) for one in cell["runs"])]
        runs += [(f"{name}, try of lr {one['lr']:g}", one) for one in cell["tries"]]
        failed += [f"Failed: {what}: {one['failed']}" for what, one in runs if "failed" in one]
    paragraphs = {
        "Runs that predict a single class": flags["single_class"],
        "Outputs that are not a label, counted as wrong": flags["invalid"],
    }
    said = [f"{title}: {'; '.join(those)}." for title, those in paragraphs.items() if those]
    star = ["*: the best rate is at an end of the list, and a better one may lie beyond it."] if ends else []
    return [*star, *TABLES[content["table"]].notes, *said, *failed]


def how(args, script, tries):
    """How the numbers came about, in words. `tries`: rates at first."""
    said = ["Each method has one rate, which was not searched."]
    if args.paper:
        said = ["--paper: each rate is the paper's, or the training script's where the paper prints none."]
    elif tries > 1:
        held = f"held-out training examples (a tenth, or {HELD_OUT} if that is more, up to a quarter)"
        part = f"{held}, after the last epoch" if script.trial else "validation"
        said = [
            f"Each rate is the best of {tries} on {part}, with seed 0. While the best is at an end of the "
            f"list, the list grows there, to {max(tries, args.tries)} at most."
        ]
        said += ["Then the method trains on all examples."] * bool(script.trial)
    if script.head and args.model != "mini" and not (args.epochs and args.batch_size):
        said += ["Epochs and batch size are each method's own (Table 6), where they are not given."]
    if args.head_lr:
        said += [f"The head's rate is {args.head_lr:g} for every method."]
    elif script.head and tries > 1:
        said += ["For every method the head's rate is that of the head alone, by held-out loss (SQuAD: F1)."]
    return " ".join([*said, f"{script.counts[1]}.", SHOWN])


SHOWN = (
    "Scores are mean ± standard deviation (n − 1) over n seeds; a seed gives every method the same head and "
    "batches. Differences are between runs of one seed, with the 95 % interval of the paired t test, and p "
    f"with Holm's correction for the column; with n < {FEWEST} there are none. Bold: the best, and what does "
    f"not differ significantly from it (p ≥ {LEVEL:g})."
)
