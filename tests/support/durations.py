"""How long each test takes: `durations.json` marks the slow ones and decides which files begin.

`make durations` writes the file anew, on a machine that does nothing else. A test that takes longer than SLOW_S is
`slow` and no part of `make fast`; a test that the file does not know counts as fast until then, unless it is marked.
Two test processes take whole files, the longest first, so that the fixtures of a file are made once and both end at
the same time.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling

FILE = Path("tests", "durations.json")
SLOW_S = 0.25
KEPT_S = 0.1  # shorter tests are left out of the file: there are thousands


class ByFile(LoadGroupScheduling):
    """Tests of one group share a process, and so do the other tests of one file."""

    def _split_scope(self, nodeid: str) -> str:
        return super()._split_scope(nodeid).partition("::")[0]


class Durations:
    """The plugin: seconds by file and test, those of the file and those of this run."""

    def __init__(self, root: Path) -> None:
        self.root, path = root, root / FILE
        self.known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        self.measured: dict[str, Counter[str]] = {}

    @pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        of_file: Counter[str] = Counter()
        for item in items:
            file, _, test = item.nodeid.partition("::")
            seconds = self.known.get(file, {}).get(test, 0.0)
            of_file[file] += seconds
            if seconds > SLOW_S:
                item.add_marker(pytest.mark.slow)
        items.sort(key=lambda item: -of_file[item.nodeid.partition("::")[0]])  # stable: the order in a file stays

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of a test: its fixtures, itself, its end."""
        nodeid = report.nodeid
        if nodeid.rfind("@") > nodeid.rfind("]"):  # xdist appends the group
            nodeid = nodeid.rpartition("@")[0]
        file, _, test = nodeid.partition("::")
        self.measured.setdefault(file, Counter())[test] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.write_durations and not hasattr(session.config, "workerinput"):
            (self.root / FILE).write_text(self.text())

    def text(self) -> str:
        """The new file: what was measured, what was known of files that did not run, nothing of files that went."""
        measured = {
            file: {test: round(seconds, 2) for test, seconds in tests.items() if seconds >= KEPT_S}
            for file, tests in self.measured.items()
        }
        kept = {
            file: tests for file, tests in (self.known | measured).items() if tests and (self.root / file).is_file()
        }
        return json.dumps(kept, indent=1, sort_keys=True) + "\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help=f"measure the tests that run, into {FILE}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Durations(config.rootpath), "scanfoundry-durations")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadGroupScheduling | None:
    """Whole files, in the order of the collection; None leaves it to xdist."""
    if config.option.dist != "loadgroup":
        return None
    config.option.loadscopereorder = False  # it would sort by the number of tests, which says little
    return ByFile(config, log)
