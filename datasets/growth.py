"""What a run is told of sources that have grown: by how much, and from which step on new scans are drawn."""

from scanfoundry.datasets.plan import SamplingPlan
from scanfoundry.datasets.sampling.stream import Stream


def growth_of(plan: SamplingPlan) -> list[str]:
    """A line for each source that grew as the last segment of a plan began; steps are counted from 1, as in the log."""
    if plan.before is None:
        return []
    found = []
    for number, source in enumerate(plan.config.sources):
        if plan.before.manifest_hash[source.name] == plan.manifest_hash[source.name]:
            continue
        added = {stream.number: _added(plan, stream) for stream in plan.current if stream.source == number}
        joining = [
            _joins(plan, kind, part)
            for kind, each in enumerate(plan.kinds)
            for part, stream in enumerate(each.streams)
            if added.get(stream)
        ]
        gone = sum(len(plan.streams[each.number].gone) for each in plan.before.current if each.source == number)
        found.append(
            f"source '{source.name}' has grown by {sum(added.values())} scans after step {plan.begins}"
            + (f": they join from step {min(joining) + 1} on" if joining else "")
            + (f"; {gone} of the others are left out from now on, see data.holdout" if gone else "")
        )
    return found


def _added(plan: SamplingPlan, stream: Stream) -> int:
    """The scans of a stream that the segment before did not sample."""
    if stream.rest is None:
        return stream.visits.rows
    before = plan.streams[stream.rest.stream.number]
    return stream.visits.rows - (before.visits.rows - len(before.gone))


def _joins(plan: SamplingPlan, number: int, part: int) -> int:
    """The step in which a stream of a kind of steps first visits its own rows."""
    kind = plan.kinds[number]
    rest = plan.streams[kind.streams[part]].rest
    visit = kind.visits + kind.mixture.find(part, 0 if rest is None else rest.visits)
    steps = (visit * plan.config.crops_per_visit - kind.crops) // kind.batch
    return plan.begins + plan.schedule.find(number, steps)
