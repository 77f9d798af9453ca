"""The results as JSON, and the page with one table, one figure and a line for every try."""

from pathlib import Path
from typing import Any

import matplotlib

from payoffs.tables import SCRATCH, Pretraining, Tables
from payoffs.work import Work
from scanfoundry.configs.files import write_text
from scanfoundry.finetune.metrics.intervals import Interval, difference, interval
from scanfoundry.finetune.metrics.weighted import Record

RESAMPLES = 1000


def results_of(work: Work, task: str) -> dict[str, Any]:
    """Rows (arm, labels, value, difference to scratch) and tries (arm, labels, score by rate) of a task."""
    table, rows, tries = work.tables.tasks[task], [], []
    for shots in table.shots:
        scratch: list[list[Record]] | None = None
        for arm in [SCRATCH, *table.arms]:
            found = work.outcome(task, arm, shots)
            if found.scores:
                written = {f"{rate:g}": round(score, 4) for rate, score in found.scores.items()}
                tries.append({"arm": arm, "labels": shots, table.metric: written})
            if found.records is None:
                continue
            statistic = work.statistic(task)
            row: dict[str, Any] = {"arm": arm, "labels": shots, "rate": found.rate}
            row |= {"value": facts(interval(found.records, statistic, RESAMPLES))}
            row |= {"by subset": [round(float(statistic(group)), 4) for group in found.records]}
            if arm == SCRATCH:
                scratch = found.records
            elif scratch is not None:
                row["minus scratch"] = facts(difference(found.records, scratch, statistic, RESAMPLES))
            rows.append(row)
    return {"metric": table.metric, "rows": rows, "tries": tries}


def facts(found: Interval) -> dict[str, Any]:
    """The numbers of an interval, rounded."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {name: None if each is None else round(each, 5) for name, each in values.items()} | {"n": found.patients}


def write_page(path: Path, figure: Path, results: dict[str, dict[str, Any]], tables: Tables) -> None:
    """The page and its figure.

    Args:
        path: the Markdown file.
        figure: the picture, in a folder below the page's.
        results: by task, of `results_of`.
        tables: what was to be compared.
    """
    draw(figure, results)
    missing = [task for task in tables.tasks if not results.get(task, {}).get("rows")]
    lines = [
        "# Does pre-training pay?",
        "",
        "This page is written by `python benchmarks/payoff.py DATA WORK`. Each arm is trained at the same rates for "
        "the same steps. Its rate is chosen on validation patients, on the first of three labelled subsets.",
        "",
        "Then all subsets are trained at that rate and tested on other patients. Intervals (95%) are over patients and "
        "subsets, and differences to scratch are paired. No pool holds a scan of a tested patient.",
        "",
        _verdict(results, tables),
        "",
        f"![Difference to training from scratch]({figure.relative_to(path.parent).as_posix()})",
        "",
        "| task | labels | arm | metric | value | minus scratch |",
        "|---|---|---|---|---|---|",
    ]
    for task, found in results.items():
        for row in found["rows"]:
            gain = spoken(row["minus scratch"], True) if "minus scratch" in row else ""
            lines.append(
                f"| {task} | {row['labels']} | {row['arm']} | {found['metric']} | {spoken(row['value'])} | {gain} |"
            )
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    lines += ["", "## Arms", "", "| arm | starts from | what is other than usual |", "|---|---|---|"]
    seen = {each["arm"] for found in results.values() for each in [*found["rows"], *found["tries"]]}
    lines += [_arm(name, tables) for name in tables.arms if name in seen]
    lines += ["", "## Every try", "Validation patients, the first labelled subset, by rate.", ""]
    lines += ["| task | labels | arm | score by rate |", "|---|---|---|---|"]
    for task, found in results.items():
        for each in found["tries"]:
            scores = ", ".join(f"{rate}: {score:.3f}" for rate, score in each[found["metric"]].items())
            lines.append(f"| {task} | {each['labels']} | {each['arm']} | {scores} |")
    write_text(path, "\n".join(lines) + "\n")


def _verdict(results: dict[str, dict[str, Any]], tables: Tables) -> str:
    """How many differences of the claimed arms to scratch are above zero, and below."""
    claims = {task: table.arms[0] for task, table in tables.tasks.items()}
    gains = [
        row["minus scratch"]
        for task, found in results.items()
        for row in found["rows"]
        if row["arm"] == claims.get(task) and "minus scratch" in row
    ]
    known = [gain for gain in gains if gain["low"] is not None]
    above, below = sum(gain["low"] > 0 for gain in known), sum(gain["high"] < 0 for gain in known)
    return (
        "The first arm of each task is the recipe that is claimed to help. "
        f"Of its {len(known)} differences to scratch, {above} are above zero with their interval, {below} below."
    )


def _arm(name: str, tables: Tables) -> str:
    arm = tables.arms[name]
    start = "features of ImageNet" if arm.imagenet else "scratch"
    if arm.start is not None:
        start = _start(tables.pretrainings[arm.start])
    changes = ", ".join(f"`{key}={value}`" for key, value in arm.study.items()).replace("|", "\\|")
    return f"| {name} | {start} | {changes} |"


def _start(table: Pretraining) -> str:
    """What a pre-training was, in a few words."""
    if table.task is not None:
        return f"all training labels of {table.task}"
    objective = table.config["objective"]
    kind = objective.get("loss", objective["name"])
    pool = " + ".join(table.pool) or "drawn volumes"
    first = "" if table.init is None else f", after {table.init}"
    return f"{kind}, {table.config['steps']} steps on {pool}{first}"


def spoken(found: dict[str, Any], signed: bool = False) -> str:
    """'0.712 (0.650 to 0.771)'."""
    sign = "+" if signed else ""
    if found["value"] is None:
        return "undefined"
    if found["low"] is None:
        return f"{found['value']:{sign}.3f}"
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Paired differences to scratch with their intervals, a row for each arm."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (f"{task}, {row['labels']}: {row['arm']}", row["minus scratch"])
        for task, found in results.items()
        for row in found["rows"]
        if "minus scratch" in row and row["minus scratch"]["low"] is not None
    ]
    chart, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * max(1, len(rows))), layout="constrained")
    for place, (_, gain) in enumerate(rows):
        colour = "tab:green" if gain["low"] > 0 else "tab:red" if gain["high"] < 0 else "tab:grey"
        axes.plot([gain["low"], gain["high"]], [place, place], color=colour)
        axes.plot(gain["value"], place, "o", color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("difference to training from scratch (95% interval)")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=120)
    pyplot.close(chart)
