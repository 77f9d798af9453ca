import torch

from scanfoundry.finetune.training.interrupts import Stop
from scanfoundry.finetune.training.saving import Snapshot, SnapshotFolder


def test_a_damaged_mark_costs_its_own_snapshot_alone(tmp_path):
    said = []
    before = SnapshotFolder(tmp_path / "cell" / "progress", "a" * 32, 0, Stop(), said.append)
    for part in ("member-0", "training-1"):
        before.write(part, Snapshot({"x": torch.ones(3)}), part)
    (path,) = (tmp_path / "cell" / "progress").glob("training-1-*")
    path.write_bytes(path.read_bytes().replace(b"aaaa", b"aaab", 1))
    after = SnapshotFolder(tmp_path / "cell" / "progress", "a" * 32, 0, Stop(), said.append)
    assert torch.equal(after.read("member-0").tensors["x"], torch.ones(3))
    assert after.read("training-1") is None
    assert len(said) == 1
    assert "is damaged: training-1 of cell starts over" in said[0]
