"""A study that is stopped anywhere and started again ends with the bits of one that was not."""

import json
import os
import signal

import pytest
import torch
import yaml
from studies import numbers

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.log import shown_log
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.run_study import run
from scanfoundry.finetune.study.display import TrialDisplay
from scanfoundry.finetune.training.interrupts import Stop, Stopped
from scanfoundry.finetune.training.saving import PROGRESS, Snapshot, SnapshotFolder
from scanfoundry.finetune.training.slot import Slot

TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}
DROPPING = {"name": "vit", "size": "Ti", "patch_2d": [16, 16], "drop_path": 0.4}  # draws random numbers as it trains
SLICES = {"patch": [1, 48, 48], "batch": 4}


@pytest.fixture(autouse=True)
def shown():
    """What is logged is shown, as in the command line."""
    with shown_log():
        yield


@pytest.fixture(autouse=True)
def the_same_patients_each_time(site_key_file, fixed_key, monkeypatch):
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(fixed_key("resuming")))


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing it takes a third of such small studies, and it is drawn from the results."""
    monkeypatch.setattr("scanfoundry.finetune.run_study.write_report", lambda folder, *_: folder / "report.html")


@pytest.fixture
def checkpoint(tmp_path):
    config = ResEncConfig.model_validate(TINY)
    torch.manual_seed(9)
    save_release(tmp_path / "pre", {"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config), [])
    return {"backbone": None, "checkpoint": tmp_path / "pre", "compare_scratch": False}


def stopped(config, place, monkeypatch, number=signal.SIGTERM):
    """Runs until `place` ('training-0 step 2'), where a signal comes; gives what was said."""
    real, sent = Slot.chance, []

    def then(self, what, take):
        if f"{self.part} {what}".startswith(place) and not sent:
            sent.append(place)
            os.kill(os.getpid(), number)
        real(self, what, take)

    with monkeypatch.context() as patched:
        patched.setattr(Slot, "chance", then)
        with pytest.raises(Stopped) as caught:
            run(config)
    assert caught.value.signal == number
    return str(caught.value)


SEGMENTED = {"plan": {"patch": [20, 16, 16], "batch": 2}}
CASES = {
    "average, validation, self-training": (
        "segmentation",
        SEGMENTED | {
            "backbone": TINY, "shots": [3], "schedule": {"steps": 6, "warmup_steps": 1, "average": 0.5},
            "validation": {"fraction": 0.34, "checks": 3},
            "self_training": {"rounds": 2, "start": 0.3, "min_steps": 2, "scans": 3},
        },
        ["training-0 step 2", "training-0 step 4", "held-0 1 of ", "testing 2 of "],
    ),
    "lora, ensemble": (
        "segmentation",
        SEGMENTED | {"checkpoint": True, "recipes": ["lora"], "lora": {"rank": 4, "dropout": 0.3}, "shots": [3],
                     "validation": {"folds": 2, "checks": 2}, "keep_weights": "all"},
        ["training-0 step 2", "training-1 step 1", "held-1 1 of ", "testing 1 of "],
    ),
    "staged": ("classification", {"checkpoint": True, "recipes": ["staged"], "plan": SLICES, "shots": [4],
                                  "schedule": {"steps": 6, "warmup_steps": 1, "frozen_steps": 3}},
               ["training-0 step 2", "training-0 step 4"]),
    "warm-up, decoder first": (
        "classification",
        {"checkpoint": True, "recipes": ["sawtooth", "warmup"], "plan": SLICES, "shots": [4], "keep_weights": "all",
         "schedule": {"steps": 10, "warmup_share": 0.3, "decoder_share": 0.4, "layer_decay": 0.8},
         "augmentation": {"mixup": 0.8, "cutmix": 1.0}},
        [f"training-0 step {step}" for step in (1, 3, 5, 8)],  # rising and falling, in either part
    ),
    "a teacher of features": (
        "segmentation",
        SEGMENTED | {"backbone": TINY, "shots": [3], "compare_scratch": False,
                     "schedule": {"steps": 4, "warmup_steps": 1}, "distil": {"what": "features"}},
        ["training-0 step 2", "training-0 step 3"],
    ),
    "frozen, sgd": ("regression", {"checkpoint": True, "recipes": ["frozen"], "plan": SLICES, "shots": [6],
                                   "schedule": {"steps": 4, "warmup_steps": 1, "optimiser": "sgd"}},
                    ["training-0 step 3"]),
    "probes": ("classification", {"checkpoint": True, "recipes": ["attentive_probe", "linear_probe", "knn"],
                                  "plan": SLICES, "shots": [4], "probe": {"steps": 5, "views": 2}},
               ["training-0 step 3 of the probe", "testing 1 of ",
                "testing 3 of "]),
    "stochastic depth": ("classification", {"backbone": DROPPING, "plan": SLICES, "shots": [4],
                                            "schedule": {"steps": 5, "warmup_steps": 1}}, ["training-0 step 2"]),
    "boxes": ("detection", {"backbone": TINY, "plan": SLICES, "shots": [8], "augmentation": {"flip_axes": [2]},
                            "schedule": {"steps": 4, "warmup_steps": 1}}, ["training-0 step 2", "testing 2 of "]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_study_ends_with_the_same_bits(study, volumes, slices, tmp_path, checkpoint, monkeypatch, name):
    task, options, stops = CASES[name]
    options = dict(options)
    extra = checkpoint if options.pop("checkpoint", False) else {}
    if "distil" in options:
        options["distil"] = options["distil"] | {"teacher": str(checkpoint["checkpoint"])}
    if task == "regression":
        made = study("classification", slices, **extra, **options).model_dump()
        (slices / "sizes.csv").write_text("id,value\n" + "".join(f"s{i:02d},{i % 7}.5\n" for i in range(40)))
        made |= {"task": RegressionTask().model_dump(), "data": made["data"] | {"labels": slices / "sizes.csv"}}
    else:
        made = study(task, volumes if task == "segmentation" else slices, **extra, **options).model_dump()

    def config(folder):
        return FinetuneConfig.model_validate(made | {"run_dir": tmp_path / folder})

    run(config("straight"))
    for place in stops:
        said = stopped(config("stopped"), place, monkeypatch)
        assert "saved at" in said
        assert "the same command goes on from there" in said
    run(config("stopped"))
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "straight")
    assert not list((tmp_path / "stopped").rglob(PROGRESS))


@pytest.fixture
def small(study, slices):
    """A classification of seconds."""
    return study("classification", slices, backbone=TINY, plan=SLICES, shots=[4],
                 schedule={"steps": 5, "warmup_steps": 1}, checkpoint_minutes=0)  # fmt: skip


def test_a_damaged_checkpoint_is_named_and_its_training_starts_over(small, tmp_path, monkeypatch, capfd):
    straight = small.model_copy(update={"run_dir": tmp_path / "straight"})
    run(straight)
    stopped(small, "training-0 step 3", monkeypatch)
    (path,) = (small.run_dir / "cells").rglob("training-0-*")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    run(small)
    lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1
    assert path.name in lines[0]
    assert "starts over" in lines[0]
    assert numbers(small.run_dir) == numbers(straight.run_dir)


def test_what_another_configuration_or_other_code_left_is_not_continued(small, monkeypatch, capfd):
    stopped(small, "training-0 step 3", monkeypatch)
    changed = small.model_copy(update={"schedule": small.schedule.model_copy(update={"lr": 2e-3})})
    stopped(changed, "training-0 step 3", monkeypatch)
    assert "changed since it was stopped; it starts over" in capfd.readouterr().err
    monkeypatch.setattr("scanfoundry.finetune.training.code_digest._code", lambda: "another version")
    stopped(changed, "training-0 step 3", monkeypatch)
    assert "changed since it was stopped; it starts over" in capfd.readouterr().err
    stopped(changed, "training-0 step 4", monkeypatch)
    assert "going on from step 3" in capfd.readouterr().err


def test_ctrl_c_twice_says_what_is_repeated(small, monkeypatch):
    real = TrialDisplay.step

    def twice(self, step, loss):
        real(self, step, loss)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrialDisplay, "step", twice)
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with pytest.raises(Stopped, match="what came after step 2 will be repeated") as caught:
        run(small)
    assert caught.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_a_budget_counts_what_was_used_before(study, slices, monkeypatch):
    config = study("classification", slices, backbone=TINY, plan=SLICES, shots=[4], seeds=[0, 1], schedule={},
                   budget="12s", checkpoint_minutes=0)  # fmt: skip
    stopped(config, "training-0 step 5", monkeypatch)
    (path,) = (config.run_dir / "cells").rglob("budget-*")
    given = SnapshotFolder(path.parent, _mark(path), 0, Stop(), print).read("budget").facts["seconds"]
    run(config)
    found = json.loads((config.run_dir / "results.json").read_text())["cells"]
    assert found[0]["histories"][0]["seconds"] == pytest.approx(given, rel=0.3)
    assert sum(cell["spent"] for cell in found) < 30


def _mark(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["mark"]


def test_large_snapshots_are_written_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("scanfoundry.finetune.training.saving.time.monotonic", lambda: clock[0])
    saved = SnapshotFolder(tmp_path / "cell" / PROGRESS, "mark", 1.0, Stop(), print)

    def take():
        clock[0] += 3.0  # seconds to write
        return Snapshot({"x": torch.zeros(2)}, {})

    times = set()
    for second in range(4000):
        clock[0] = max(clock[0], float(second))
        saved.chance("training-0", "step", take)
        times.add(saved._last)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1  # the newest alone
    assert 2 <= len(times) - 1 <= 4000 * 0.02 / 3  # below 2% of the time


def test_two_configurations_in_one_folder_are_refused_and_more_of_the_same_is_not(small, tmp_path, slices):
    run(small)
    before = (small.run_dir / "results.json").read_bytes()
    other = small.model_copy(update={"schedule": small.schedule.model_copy(update={"steps": 7})})
    with pytest.raises(UserError, match=r"holds a study with schedule\.steps=5, not 7; choose a new run_dir"):
        run(other)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "images").symlink_to(slices / "images")
    (moved / "labels.csv").write_text((slices / "labels.csv").read_text())
    data = small.data.model_copy(update={"images": moved / "images", "labels": moved / "labels.csv"})
    trained = (small.run_dir / "cells" / "scratch-4-shots-seed0" / "cell.json").read_bytes()
    run(small.model_copy(update={"data": data, "device": "auto"}))  # the same scans in another place
    assert (small.run_dir / "cells" / "scratch-4-shots-seed0" / "cell.json").read_bytes() == trained
    lines = (slices / "labels.csv").read_text().splitlines()
    swapped = [line.replace("lesion", "x").replace("none", "lesion").replace("x", "none") for line in lines]
    (tmp_path / "others.csv").write_text("\n".join([lines[0], *swapped[1:]]))
    data = small.data.model_copy(update={"labels": tmp_path / "others.csv"})
    with pytest.raises(UserError, match="holds a study with data"):
        run(small.model_copy(update={"data": data}))
    assert json.loads((small.run_dir / "results.json").read_bytes()) == json.loads(before)
    run(small.model_copy(update={"seeds": [0, 1], "bootstrap": 30, "checkpoint_minutes": 3.0}))
    assert len(json.loads((small.run_dir / "results.json").read_text())["cells"]) == 2


FOREIGN = [{"thesis.docx": ""}, {"config.yaml": "editor: vim\n"}, {"plans.txt": "x"}, {"cells/photo.jpg": ""},
           {"model.safetensors": ""}, {"results.json": "{}"}, {"a.yaml": "", "photos/1.jpg": ""}]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(small, content):
    for name, text in content.items():
        path = small.run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = sorted(small.run_dir.rglob("*"))
    with pytest.raises(UserError, match="is no run folder of a study"):
        run(small)
    assert sorted(small.run_dir.rglob("*")) == before


def test_a_configuration_and_a_log_may_lie_in_a_new_run_folder(small):
    small.run_dir.mkdir()
    (small.run_dir / "my_study.yaml").write_text(yaml.safe_dump({"shots": [4]}))
    (small.run_dir / "job-17.out").write_text("")
    run(small)


def test_a_folder_in_use_is_refused(small, monkeypatch):
    from scanfoundry.pretrain.distributed.world import ALONE
    from scanfoundry.pretrain.training.run_folder import held

    monkeypatch.setattr("scanfoundry.finetune.study.run_folder.PATIENCE", 0.1)
    with held(small.run_dir, ALONE), pytest.raises(UserError, match="in use by process"):
        run(small)
