"""Twenty-five kills and five full disks in one study, in training, testing and writing: the same bits, no work lost."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from studies import numbers

# A life is a child of a process that has imported everything. It runs the command line and meets its end at an event:
# 'step 3' is computed, a file is about to be renamed into place ('writing ...') or just was ('wrote ...').
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
os.environ["DS_ACCELERATOR"] = "cpu"
import torch
torch.set_num_threads(1)
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
ensure_torchvision()
import scanfoundry.finetune.run_study, scanfoundry.finetune.tasks.segmentation, sklearn.model_selection
from scanfoundry.finetune.study import display
from scanfoundry.launch.cli.main import main

def fill(folder):
    with open(folder / "ballast", "wb") as file:
        try:
            for _ in range(1024):  # 64 MB, more than the small disk has, whatever disk this is
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            os.ftruncate(file.fileno(), file.tell() // 4096 * 4096)

def life(config, end, number, log):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    counter = os.open(f"{log}.counter", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    folder, met = Path(json.loads(Path(config).read_text())["run_dir"]), []
    def event(text):
        os.write(counter, (text + "\\\\n").encode())
        if end and text.startswith(end) and not met:
            met.append(text)
            fill(folder) if number is None else os.kill(os.getpid(), number)
    replace, step, tested = os.replace, display.TrialDisplay.step, display.TrialDisplay.tested
    def replacing(part, final):
        event(f"writing {Path(final).name}")
        replace(part, final)
        event(f"wrote {Path(final).name}")
    def stepping(self, n, loss):
        step(self, n, loss)
        event(f"step {n}")
    def testing(self, n):
        tested(self, n)
        event(f"tested {n}")
    os.replace, display.TrialDisplay.step, display.TrialDisplay.tested = replacing, stepping, testing
    try:
        main(["finetune", config])
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(70)

for line in sys.stdin:
    config, end, number, log = json.loads(line)
    status = life(config, end, number, log)
    print(json.dumps([os.WIFSIGNALED(status) and os.WTERMSIG(status), os.WIFEXITED(status) and os.WEXITSTATUS(status)]),
          flush=True)
""".replace("\\\\n", "\\n")

KILLS = [
    "writing plan.json", "wrote config.yaml", "step 1", "writing training-0", "wrote training-0", "step 4",
    "writing training-0", "step 6", "writing member-0", "wrote member-0", "writing held-0", "step 2",
    "writing training-1", "wrote training-1", "writing member-1", "wrote held-1", "writing testing", "tested 2",
    "wrote testing", "tested 4", "writing pictures.npz", "writing model.safetensors", "writing cell.json",
    "wrote cell.json", "writing results.json", "writing report.html",
]  # fmt: skip
DISKS = ["step 2", "step 6", "tested 2", "writing pictures.npz", "wrote cell.json"]
TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}


class Lives:
    """Starts lives of a study, one after the other."""

    def __init__(self, tmp_path, volumes):
        self.root, self.logs = tmp_path, 0
        self.content = {
            "task": {"name": "segmentation", "classes": ["one", "two"]}, "backbone": TINY, "shots": [4],
            "data": {"images": str(volumes / "images"), "labels": str(volumes / "labels"), "modality": "mr"},
            "split": {"test_fraction": 0.3}, "schedule": {"steps": 6, "warmup_steps": 1, "average": 0.5},
            "validation": {"folds": 2, "checks": 2}, "plan": {"patch": [20, 16, 16], "batch": 2}, "bootstrap": 20,
            "self_training": {"rounds": 1, "min_steps": 2, "scans": 2}, "worst_cases": 2, "device": "cpu",
            "checkpoint_minutes": 0,
        }  # fmt: skip
        (tmp_path / "lives.py").write_text(SCRIPT)
        self.process = subprocess.Popen(
            [sys.executable, tmp_path / "lives.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def live(self, run_dir: Path, end="", number=None):
        """(signal it died of or False, exit code or False, what it said)."""
        self.logs += 1
        config, log = self.root / f"{run_dir.name}.json", self.root / f"log-{run_dir.name}-{self.logs:02d}"
        config.write_text(json.dumps(self.content | {"run_dir": str(run_dir)}))
        self.process.stdin.write(json.dumps([str(config), end, number, str(log)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        while not line.startswith("["):  # 'report: ...'
            assert line, "the lives' parent died"
            line = self.process.stdout.readline()
        return *json.loads(line), log.read_text()

    def events(self, run_dir: Path) -> list[str]:
        """Of all lives of a study."""
        files = sorted(self.root.glob(f"log-{run_dir.name}-*.counter"))
        return [line for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def lives(tmp_path, volumes, site_key_file, fixed_key, monkeypatch):
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(fixed_key("kills")))  # the same patients to test on each time
    made = Lives(tmp_path, volumes)
    yield made
    made.process.stdin.close()
    try:
        made.process.wait(20)
    finally:
        with suppress(ProcessLookupError):  # a life may go on where the test gave up
            os.killpg(made.process.pid, signal.SIGKILL)


def work(events):
    """How many steps were computed and cases tested."""
    return sum(e.startswith("step") for e in events), sum(e.startswith("tested") for e in events)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_and_full_disks_cost_nothing(lives, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert lives.live(straight)[:2] == (False, 0)
    for end in KILLS:
        died, code, said = lives.live(killed, end, 9)
        assert (died, code) == (9, False), (end, said)
    assert lives.live(killed)[:2] == (False, 0)
    assert numbers(killed) == numbers(straight)
    assert not list(killed.rglob(".*.part"))
    needed, done = work(lives.events(straight)), work(lives.events(killed))
    assert needed[0] == 12
    computing = sum(end.startswith(("step", "writing training", "writing member")) for end in KILLS)
    testing = sum(end.startswith(("tested", "writing testing")) for end in KILLS)
    assert done[0] <= needed[0] + computing  # what ran when the kill came, and no more
    assert done[1] <= needed[1] + testing
    print({"kills": len(KILLS), "steps": done[0] - needed[0], "cases": done[1] - needed[1]})

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("25 kills passed; mounting a small file system for the full disks needs root")
    try:
        full = disk / "full"
        for end in DISKS:
            died, code, said = lives.live(full, end)
            lines = [line for line in said.splitlines() if line.startswith("scanfoundry: ")]
            assert (died, code, len(lines)) == (False, 2, 1), (end, said)
            assert "No space left on device" in lines[0]
            assert "the same command goes on" in lines[0]
            (full / "ballast").unlink()
        assert lives.live(full)[:2] == (False, 0)
        assert numbers(full) == numbers(straight)
        done = work(lives.events(full))
        assert done[0] <= needed[0] + 2
        assert done[1] <= needed[1] + 1
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_ctrl_c_and_sigterm_say_what_is_saved(lives, tmp_path):
    for end, number, code in (("step 2", 2, 130), ("step 4", 15, 143)):
        died, left, said = lives.live(tmp_path / "run", end, number)
        lines = [line for line in said.splitlines() if line.startswith("scanfoundry: ")]
        assert (died, left) == (False, code), said
        assert lines == [
            f"scanfoundry: stopped in scratch-4-shots-seed0: saved at {end}; the same command goes on from there; "
            "finished trials are kept"
        ]
