"""Cases looked at one after the other by a trained model, kept as they come, so that a stop repeats none of them."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.sample import HeldBackCase, Sample, Validation
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.training.resuming import as_array, as_tensor
from scanfoundry.finetune.training.saving import Snapshot
from scanfoundry.finetune.training.slot import Slot

Arrays = dict[str, Any]  # name: array


class TestedCases:
    """Records of cases in their order, and some arrays beside them.

    Args:
        slot: where they are kept.

    Attributes:
        records: of the cases that were tested.
        arrays: by key, what stands beside the records now.
        facts: by key, what JSON can hold.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.records: list[Record] = []
        self.arrays: dict[str, Arrays] = {}
        self.facts: dict[str, Any] = {}

    def go_through(self, cases: Sequence[Case], look: Callable[[int, Case], Record]) -> list[Record]:
        """The records of all cases.

        Args:
            cases: to test on.
            look: gives the record of a case by its number; it may change `arrays` and `facts`. It is called for the
                cases whose record is not kept.

        Raises:
            Stopped: a signal came, and what is there is saved.
        """
        self._restore(len(cases))
        with self._slot.soon():
            for number in range(len(self.records), len(cases)):
                self.records.append(look(number, cases[number]))
                self._slot.chance(self._so_far(len(cases)), self._take)
        return self.records

    def _so_far(self, of: int) -> str:
        return f"{len(self.records)} of {of} cases of '{self._slot.part}'"

    def _take(self) -> Snapshot:
        tensors, shapes = {}, {}
        for key, arrays in self.arrays.items():
            for name, array in arrays.items():
                tensors[f"{key}/{name}"] = as_tensor(array)
                shapes[f"{key}/{name}"] = np.shape(array)
        return Snapshot(tensors, {"records": self.records, "facts": self.facts, "shapes": shapes})

    def _restore(self, of: int) -> None:
        found = self._slot.read()
        if found is None:
            return
        self.records, self.facts = found.facts["records"], found.facts["facts"]
        for place, tensor in found.tensors.items():
            key, name = place.split("/", 1)
            self.arrays.setdefault(key, {})[name] = as_array(tensor, found.facts["shapes"][place])
        if self.records:
            self._slot.goes_on(self._so_far(of))


def held_back(
    adapter: Adapter[Any, Any],
    model: TaskModel,
    cases: Sequence[Case],
    samples: Sequence[Sample[Any]],
    device: torch.device,
    slot: Slot,
) -> Validation:
    """What the model predicts of cases that it did not see."""
    looked = TestedCases(slot)

    def look(number: int, case: Case) -> Record:
        prediction = adapter.predict([model], samples[number], device)
        for place, held in enumerate(adapter.held(samples[number], prediction)):
            values, key = {f.name: getattr(held, f.name) for f in fields(held)}, f"{number}.{place}"
            looked.arrays[key] = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
            looked.facts[key] = {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}
        return adapter.record(case, samples[number], prediction)

    records = looked.go_through(cases, look)
    return Validation(records, [HeldBackCase(**looked.arrays[key], **facts) for key, facts in looked.facts.items()])
