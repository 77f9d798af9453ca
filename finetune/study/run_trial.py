"""One trial, from its cases to its result: trained, tested, written down whole or not at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scanfoundry.configs.files import write_json, write_whole
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.recipes import head_of
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.model_file import adapter_for, save_model
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.study.context import TrialContext
from scanfoundry.finetune.study.ensemble import Ensemble, TrainingData, train_ensemble
from scanfoundry.finetune.study.sample_cache import SampleReader
from scanfoundry.finetune.study.split import TrialCases
from scanfoundry.finetune.study.testing import PICTURES, evaluate_models, save_pictures, testing_time
from scanfoundry.finetune.study.trial import RESULT, TrialName, TrialResult
from scanfoundry.finetune.task import Adapter
from scanfoundry.finetune.training.saving import Snapshot
from scanfoundry.finetune.training.slot import Slot
from scanfoundry.finetune.training.transfer import StartWeights


def run_trial(
    config: FinetuneConfig,
    spec: Spec,
    name: TrialName,
    cases: TrialCases,
    checked: Checked,
    start: StartWeights | None,
    context: TrialContext,
) -> TrialResult:
    """Train, test on every case, and write pictures, weights (if they are kept) and, last, the result.

    Args:
        config: the configuration of the study.
        spec: the specification of all models of the study; `Adapter` says how it becomes this trial's.
        name: of the trial.
        cases: to train from and to test on.
        checked: what is known of the cases.
        start: the weights that it starts from, None from scratch.
        context: where and how the trial runs.
    """
    adapter = adapter_for(spec).with_spec(head=head_of(name.arm.recipe)).surveyed(cases.train, checked)
    reader = context.samples.reader(adapter)
    samples = [reader.labelled(case) for case in cases.train]
    adapter = adapter.planned(samples)
    data = TrainingData(cases.train, samples, [reader.unlabelled(case) for case in cases.unlabelled])
    if context.budget is not None:
        seconds = _share_of_budget(context, adapter, reader, cases.test)
        context = replace(context, setup=replace(context.setup, seconds=seconds))
    setup, slot = context.setup, Slot(context.saved, "")
    ensemble = train_ensemble(config, adapter, data, start, setup, context.store, context.progress, slot)
    del samples, data
    if ensemble.held is not None:
        adapter = adapter.settled(ensemble.held, config.validation)
    context.folder.mkdir(parents=True, exist_ok=True)
    (context.folder / RESULT).unlink(missing_ok=True)
    records, worst = evaluate_models(adapter, reader, ensemble.models, cases.test, config.worst_cases, context)
    write_whole(context.folder / PICTURES, lambda part: save_pictures(part, worst))
    if context.keep_weights:
        steps = [history.steps for history in ensemble.histories]
        trained: dict[str, Any] = {"arm": name.arm.name, "shots": name.shots, "seed": name.seed, "steps": steps}
        if context.teacher is not None:
            trained["teacher"] = context.teacher
        save_model(context.folder, ensemble.models, adapter.with_spec(trained=trained).spec, context.seen)
    result = _result(name, cases, context, adapter.spec, ensemble, records)
    write_json(context.folder / RESULT, result.model_dump(mode="json"))
    context.saved.clear()
    return result


def _result(
    name: TrialName, cases: TrialCases, context: TrialContext, spec: Spec, ensemble: Ensemble, records: list[Record]
) -> TrialResult:
    return TrialResult(
        digest=context.digest,
        arm=name.arm.name,
        shots=name.shots,
        seed=name.seed,
        train_cases=[case.key for case in cases.train],
        unlabelled_cases=len(cases.unlabelled),
        transferred=ensemble.transferred,
        histories=ensemble.histories,
        validation=ensemble.held.records if ensemble.held else [],
        temperature=spec.temperature,
        postprocess=spec.postprocess,
        records=records,
        spent=context.saved.spent,
    )


def _share_of_budget(
    context: TrialContext, adapter: Adapter[Any, Any], reader: SampleReader, cases: Sequence[Case]
) -> float:
    """Seconds to train for: those that an earlier start of the trial was given, else its share of the budget."""
    assert context.budget is not None
    before = context.saved.read("budget")
    if before is not None:
        return float(before.facts["seconds"])
    context.saved.clear()  # what was trained under another time is of no use
    seconds = context.budget.training(testing_time(adapter, reader, cases, context.setup.device))
    context.saved.write("budget", Snapshot(facts={"seconds": seconds}), "its start")
    return seconds
