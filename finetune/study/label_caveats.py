"""What stands in the label maps of a segmentation, class by class, and what a reader of its numbers must know of it."""

from collections.abc import Sequence

from pydantic import BaseModel

from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.split import Split
from scanfoundry.finetune.study.trial import TrialResult


class ClassRow(BaseModel):
    """One class: its values in the label maps; in how many of the cases that were read it occurs, and its voxels, of
    those to train from and of those to test on."""

    name: str
    values: list[int]
    training_cases: int
    training_voxels: int
    test_cases: int
    test_voxels: int


def label_maps(spec: Spec, sides: Split, checked: Checked) -> list[ClassRow]:
    """A row for each class; none where the task has no label maps."""
    if checked.values is None:
        return []
    rows = []
    for number, name in enumerate(spec.classes):
        (train, train_voxels), (test, test_voxels) = (
            _counted(side, number, checked) for side in (sides.pool, sides.test)
        )
        rows.append(
            ClassRow(
                name=name,
                values=[value for value, code in checked.values.read.items() if code == number + 1],
                training_cases=train,
                training_voxels=train_voxels,
                test_cases=test,
                test_voxels=test_voxels,
            )
        )
    return rows


def _counted(cases: Sequence[Case], number: int, checked: Checked) -> tuple[int, int]:
    voxels = [checked.voxels[case.key][number] for case in cases if case.key in checked.voxels]
    return sum(count > 0 for count in voxels), sum(voxels)


def caveats_of_labels(rows: Sequence[ClassRow], trials: Sequence[TrialResult], checked: Checked) -> list[str]:
    """All that hold of these label maps and of the training cases of these trials, one sentence each."""
    notes = list(checked.notes)
    read = len(checked.voxels)
    if checked.ignored:
        notes.append(
            f"{checked.ignored} of {read} label maps say of some voxels that nobody looked at them ('ignore'): these "
            "are in no loss and no metric."
        )
    if checked.voxels and checked.empty:
        notes.append(f"{checked.empty} of {read} label maps are empty: no voxel of a class.")
    nowhere = [row for row in rows if not row.training_cases + row.test_cases]
    notes += [
        f"no label map that was read holds '{row.name}' (value {_values(row)}): no number is of it." for row in nowhere
    ]
    notes += [
        f"no test case holds '{row.name}': its numbers tell only of what was found where there is none."
        for row in rows
        if row.training_cases and not row.test_cases
    ]
    return notes + _not_learnt([row.name for row in rows], [row.name for row in nowhere], trials, checked)


def _not_learnt(
    names: Sequence[str], nowhere: Sequence[str], trials: Sequence[TrialResult], checked: Checked
) -> list[str]:
    """Of each number of shots and seed, the classes that no training case has."""
    notes = {}
    for trial in trials:
        held = [checked.voxels[key] for key in trial.train_cases if key in checked.voxels]
        absent = [name for k, name in enumerate(names) if name not in nowhere and not any(each[k] for each in held)]
        if absent and held:
            listed = ", ".join(f"'{name}'" for name in absent)
            notes[trial.shots, trial.seed] = (
                f"{trial.shots} shots, seed {trial.seed}: no training case holds {listed}, which was not learnt."
            )
    return list(notes.values())


def _values(row: ClassRow) -> str:
    return " or ".join(map(str, row.values))
