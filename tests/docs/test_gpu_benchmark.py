"""`benchmarks/gpu.py`: its budget, parts that fail or hang, what it measures on a made-up GPU, and all of it, small."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOY = """
import os, subprocess, sys, time
from gpus.parts import Part, Refused

def fine(setting):
    print("said by a part")
    return {"ms": 1.0, "process": os.getpid()}

def broken(setting):
    raise OSError("no such\\ndisk")

def refused(setting):
    raise Refused("the losses differ")

def large(setting):
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 1 GiB")

def hangs(setting):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (setting.work / "child").write_text(str(child.pid))
    time.sleep(600)

def dies(setting):
    os._exit(7)

def table():
    runs = {"fine": fine, "broken": broken, "again": fine, "refused": refused, "large": large, "after": fine,
            "dies": dies, "hangs": hangs, "last": fine}
    parts = [Part(name, f"toy {name}", 0.2 if name == "hangs" else 30, run) for name, run in runs.items()]
    return [*parts, Part("absent", "toy", 30, fine, ("no_such_module", "json"))]
"""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The package beside the script, as the script imports it; and parts of our own in a module `toy_parts`."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy_parts.py").write_text(TOY)
    for folder in (BENCHMARKS, tmp_path / "modules"):
        monkeypatch.syspath_prepend(str(folder))
    import gpu
    import gpus.budget
    import gpus.kernels
    import gpus.measuring
    import gpus.page
    import gpus.parts
    import gpus.resuming
    import gpus.table
    import toy_parts

    names = ("batches", "budget", "cases", "kernels", "measuring", "page", "parts", "resuming", "table")
    yield SimpleNamespace(toys=toy_parts, script=gpu, **{name: getattr(gpus, name) for name in names})
    for name in [name for name in sys.modules if name.split(".")[0] in ("gpus", "gpu", "toy_parts", "record")]:
        del sys.modules[name]


def run_toys(gpus: Any, work: Path, names: list[str], total_s: float = 1000.0, **given: Any) -> dict[str, Any]:
    setting = gpus.parts.Setting("cpu", True, work)
    parts = gpus.table.named(gpus.toys.table(), names)
    reports: list[list[str]] = []
    found = gpus.budget.run_parts(parts, setting, gpus.toys.table, total_s,
                                  lambda part, outcome, all_of: reports.append(list(all_of)), **given)  # fmt: skip
    assert reports == [list(found)[: number + 1] for number in range(len(found))]  # after each part
    return found


def test_a_part_that_fails_is_a_line_and_stops_no_other(gpus: Any, tmp_path: Path):
    names = ["fine", "broken", "again", "refused", "large", "after", "dies", "last", "absent"]
    found = run_toys(gpus, tmp_path, names)
    assert {name: (each.status, each.why) for name, each in found.items()} == {
        "fine": ("done", ""), "broken": ("failed", "OSError: no such"), "again": ("done", ""),
        "refused": ("failed", "the losses differ"), "large": ("does not fit", "asked 20.50 GiB beside what it had"),
        "after": ("done", ""), "dies": ("failed", "its process ended with code 7"), "last": ("done", ""),
        "absent": ("left out", "needs no_such_module"),
    }  # fmt: skip
    assert 'raise OSError("no such' in found["broken"].traceback
    assert (tmp_path / "fine.log").read_text() == "said by a part\n"
    # What does not fit leaves a process that can go on; a failure does not.
    processes = [found[name].row["process"] for name in ("fine", "again", "after", "last")]
    assert len(set(processes)) == 4
    assert os.getpid() not in processes


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(gpus: Any, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    monkeypatch.setitem(gpus.budget.PATIENCE, "cpu", 100.0)  # 20 s, in which a process has started
    found = run_toys(gpus, tmp_path, ["hangs", "last"])
    assert (found["hangs"].status, found["hangs"].why) == ("failed", "ended after 20 s")
    assert found["last"].status == "done"
    child, until = Path("/proc", (tmp_path / "child").read_text(), "stat"), time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_no_longer_fits_is_left_out_and_a_shorter_part_follows(gpus: Any, tmp_path: Path):
    clock = iter([0.0, 10.0, 80.5, 99.9])  # at the start, and before each part
    found = run_toys(gpus, tmp_path, ["fine", "broken", "hangs"], 100.0, now=lambda: next(clock))
    assert found["fine"].status == "done"
    assert found["broken"].page() == {
        "status": "left out", "why": "time: it may take 30 s, and 20 s were left", "seconds": 0.0,
    }  # fmt: skip
    assert found["hangs"].why == "time: it may take 0 s, and 0 s were left"


def test_the_limit_is_what_is_left_where_that_is_less(gpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits: list[float] = []
    monkeypatch.setattr(gpus.budget.Worker, "run", lambda _, name, limit: limits.append(limit) or
                        gpus.parts.Outcome("done"))  # fmt: skip
    monkeypatch.setitem(gpus.budget.PATIENCE, "cpu", 2.0)
    clock = iter([0.0, 0.0, 60.0])
    run_toys(gpus, tmp_path, ["fine", "broken"], 100.0, now=lambda: next(clock))
    assert limits == [60.0, 40.0]


def test_the_table_begins_with_what_is_most_worth_knowing(gpus: Any, tmp_path: Path):
    parts = gpus.table.table()
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names[:5] == ["environment", "peaks", "spark_stunet_b", "spark_stunet_l", "mae_resenc_l"]
    first = {"resume", "loader_volumes", "mae_vit_l_3d", "contrast_moco", "finetune", "predict"}
    variants = names.index("spark_stunet_l_16")
    assert all(names.index(name) < variants for name in first)
    assert gpus.table.named(parts, ["predict", "peaks"]) == [parts[1], parts[names.index("predict")]]
    with pytest.raises(SystemExit, match="no part nothing; there are environment, peaks"):
        gpus.table.named(parts, ["nothing"])
    # All objectives that there are have their part.
    from scanfoundry.pretrain.objectives.registry import single_objectives

    seen = set()
    for case in gpus.cases.CASES.values():
        config = case.config(False, tmp_path)
        for objective in (config.objective, *(term.objective for term in getattr(config.objective, "terms", ()))):
            seen.add(objective.name)
        assert case.config(True, tmp_path).objective.name == config.objective.name
    assert seen == {*single_objectives(), "sum"}


class MadeUpGPU:
    """What `measuring` asks torch.cuda; it notes the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name, value in {
            "synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None, "memory_allocated": 2**29,
            "max_memory_allocated": 3 * 2**30, "max_memory_reserved": 2**32,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, value=value: self.calls.append(name) or value)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: self.calls.append(f"mode {mode}"))


def test_a_window_is_timed_between_waits_and_the_peak_begins_when_memory_is_given_back(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
):
    made_up = MadeUpGPU(monkeypatch)
    meter = gpus.measuring.Meter(torch.device("cuda", 0))
    assert meter.seconds(lambda: made_up.calls.append("call")) >= 0
    assert made_up.calls == ["synchronize", "call", "synchronize"]
    assert meter.clean() == 0.5
    assert made_up.calls[3:] == ["empty_cache", "reset_peak_memory_stats", "memory_allocated"]
    assert meter.peaks() == {"gib": 3.0, "gib_reserved": 4.0}
    on_cpu = gpus.measuring.Meter(torch.device("cpu"))
    del made_up.calls[:]
    assert (on_cpu.clean(), on_cpu.peaks(), on_cpu.waits(lambda: None)) == (None, {}, None)
    assert made_up.calls == []


def test_waits_are_counted_by_torchs_warnings_and_the_mode_ends_with_an_error(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
):
    made_up = MadeUpGPU(monkeypatch)
    meter = gpus.measuring.Meter(torch.device("cuda", 0))

    def step() -> None:
        import warnings

        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    assert meter.waits(step) == 3
    with pytest.raises(ZeroDivisionError):
        meter.waits(lambda: 1 / 0)
    assert made_up.calls == ["synchronize", "mode warn", "mode default"] * 2


def test_kernels_are_those_of_the_device_and_overlapping_ones_count_once(gpus: Any):
    def event(name: str, start: float, end: float, kind: Any = DeviceType.CUDA, note: bool = False) -> Any:
        span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, time_range=span, device_type=kind, is_user_annotation=note,
                               self_cpu_time_total=1.0)  # fmt: skip

    kernels = [event("gemm", 0, 400), event("gemm", 300, 500), event("copy", 800, 900)]
    events = [*kernels, event("step", 0, 1000, note=True), event("aten::mm", 0, 10, DeviceType.CPU)]
    assert gpus.kernels.summary(events, 1, 0.001, cuda=True) == {
        "traced_ms": 1.0, "kernels": 3, "busy": 0.6, "longest": {"gemm": 0.6, "copy": 0.1},
    }  # fmt: skip
    assert gpus.kernels.summary(events, 1, 0.001, cuda=False)["kernels"] == 1


def test_losses_are_compared_until_the_kill_and_after_the_resume(gpus: Any):
    alone = [4.0, 3.0, 2.0, 1.0]
    same = gpus.resuming.compare(alone, alone[:3], alone, 2)
    assert (same["equal_before"], same["equal_after"], same["apart_after"]) == (True, True, 0.0)
    other = gpus.resuming.compare(alone, alone[:3], [4.0, 3.0, 2.0, 1.1], 2)
    assert (other["equal_before"], other["equal_after"]) == (True, False)
    assert other["apart_after"] == pytest.approx(0.1)
    assert (other["killed_after"], other["resumed_from"]) == (3, 2)


def test_out_of_memory_and_failures_are_told_in_the_table(gpus: Any):
    parts = gpus.toys.table()
    found = {
        "fine": gpus.parts.Outcome("done", "", 2.0, {"ms": 5.0, "of_matmul": 0.4, "gib": 3.0, "waits": 0}),
        "large": gpus.parts.Outcome("does not fit", "asked 20 GiB beside 130 GiB", 1.0),
    }
    assert gpus.page.markdown(parts, found).splitlines()[2:] == [
        "| fine | toy fine | 2 | 5.0 ms, 0.4 of matmul, 3.0 GiB, 0 waits |",
        "| large | toy large | 1 | **does not fit**: asked 20 GiB beside 130 GiB |",
    ]


def test_the_estimates_are_of_the_steps_as_they_are_now(gpus: Any, tmp_path: Path):
    from gpus.estimates import estimate, markdown
    from gpus.operations import counted_before

    page = json.loads((BENCHMARKS / "results" / "gpu_estimates.json").read_text())["result"]
    rows = page["steps"]
    setting = gpus.parts.Setting("cuda", False, tmp_path)
    for name, case in gpus.cases.CASES.items():
        now = [(list(crop), count) for _, crop, count in gpus.batches.kinds(case, setting)]
        assert [(row["crop"], row["batch"]) for row in rows[name]] == now, f"{name}: --estimate is due"
    again = estimate("mae_resenc_l", tmp_path, page["peak_tflops"])
    assert again == rows["mae_resenc_l"]
    assert counted_before("mae_resenc_l", (160, 160, 160)) == 1e9 * again[0]["gflop_of_a_crop"]
    assert counted_before("mae_resenc_l", (160, 160, 161)) is None
    assert markdown(rows) in (BENCHMARKS / "results" / "gpu.md").read_text()


FULL_SIZE = """
import sys
from pathlib import Path
sys.path[:0] = [{benchmarks!r}, {support!r}]
import torch
from fake_gpu import FakeGPU
from gpus.batches import kinds, make_batch
from gpus.cases import CASES
from gpus.parts import Setting
from scanfoundry.backbones.registry import build
from scanfoundry.pretrain.memory.trace import Without
from scanfoundry.pretrain.views import Views

gpu, work = FakeGPU(), Path({work!r})
for name in {names!r}:
    config = CASES[name].config(False, work)
    with torch.device("meta"), Without():
        objective = config.objective.build(build(config.backbone))
    gpu.move(objective)
    for _, crop, count in kinds(CASES[name], Setting("cuda", False, work)):
        with gpu, gpu.waits:
            batch = make_batch(config, crop, count, gpu.device, objective.labels)
            views = Views(config.data, objective.views, objective.clean)
            with torch.no_grad():
                objective(*views(batch))  # tables of positions are copied once
            gpu.waits.count.clear()
            loss, _ = objective(*views(batch))
            loss.backward()
        assert loss.device == gpu.device
        assert not gpu.waits.count, (name, crop, dict(gpu.waits.count))
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [("spark_stunet_b",), ("contrast_dcl", "barlow_twins"), ("dense_contrast",)])
def test_steps_of_full_size_mix_no_devices_and_wait_for_none(names: tuple[str, ...], tmp_path: Path):
    support = BENCHMARKS.parent / "tests" / "support"
    given = {"benchmarks": str(BENCHMARKS), "support": str(support), "work": str(tmp_path), "names": names}
    done = subprocess.run([sys.executable, "-c", FULL_SIZE.format(**given)], capture_output=True, text=True)
    assert done.stdout.split() == ["done"], done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_runs_small_on_a_cpu(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--minutes", "29", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = json.loads((tmp_path / "gpu.json").read_text())
    parts = page["result"]["parts"]
    assert {name: part.get("why") for name, part in parts.items() if part["status"] != "done"} == {}
    assert {"date", "device", "versions", "commit", "command"} <= set(page)
    resumed = parts["resume"]["row"]
    assert resumed["equal_after"]
    assert 0 < resumed["resumed_from"] < resumed["killed_after"] < resumed["steps"]
    assert parts["mae_resenc_l"]["row"]["of_matmul"] > 0
    assert parts["overhead"]["row"]["losses_apart"] < 1e-3
    assert parts["finetune"]["row"]["start"] == "checkpoint"
    assert parts["predict"]["row"]["scans"] == 2
    assert (tmp_path / "gpu_table.md").read_text().count("\n") == len(parts) + 2
