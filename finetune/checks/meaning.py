"""Which classes the values of a data set's label maps can only mean; else the question, with what to type."""

from collections.abc import Mapping, Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import ReadError
from scanfoundry.datasets.readers.grey_levels import FEW, WHITE, are_flat
from scanfoundry.finetune.cases.label_values import MOST, LabelValues, of_names
from scanfoundry.finetune.checks.seen import Seen

SHOWN = 8  # values in a message
MANY = 32  # values without a name that are believed to be classes, however many are left out between them
DENSE = 0.75  # of 1..n occur where more are believed


def decide(
    seen: Seen, named: Mapping[int, str] | None, ignored: Sequence[int], given: bool
) -> tuple[list[str], LabelValues]:
    """The classes of the maps, and what their values are read as.

    named: classes by value, as the data set or the task states them, None where nobody does. given: the task states
    every value itself, and greys of images are the nearest of them. UserError, with what to type, where the values have
    no name or more than one reading.
    """
    others = [value for value in seen.values if value not in ignored]
    if named is None:
        _check_palettes(seen, others)
        _check_has_classes(seen, others)
    elif seen.greys and not given:
        _check_no_greys(seen, others)
    if not given and _is_white(seen, others, named):
        name = named[1] if named else "label 1"
        classes, values = of_names(named or {1: name}, ignored)
        codes = {value: code for value, code in values.read.items() if value != 1}
        return classes, values.model_copy(update={"read": codes | {WHITE: values.read[1]}})
    if named is None:
        _check_one_reading(seen, others, ignored)
        named = {value: f"label {value}" for value in others}
    classes, values = of_names(named, ignored)
    if len(classes) > MOST:
        raise UserError(f"{len(classes)} classes in the label maps; at most {MOST} are learnt")
    strange = [value for value in others if value not in named]
    if given and seen.images:
        values = values.model_copy(update={"nearest": True})
        _check_clear(seen, values)
    elif strange:
        raise UserError(
            f"{seen.holding(strange[-1])}: label {strange[-1]}, but classes are {classes}"
            f"{_of_values(named)}: {_typed(strange, named)}"
        )
    return classes, values


def _check_clear(seen: Seen, values: LabelValues) -> None:
    for source, counts in zip(seen.sources, seen.counts, strict=True):
        try:
            values.codes(counts, True)
        except ReadError as error:
            raise UserError(f"{source}: {error}; or name them all: {_mapping(_main(seen, seen.values))}") from error


def check_plausible_findings(seen: Seen, named: Mapping[int, str] | None) -> None:
    """UserError where the masks of findings hold what is no finding: greys, or 255 beside others without a name."""
    others = seen.values
    if seen.greys or (seen.look and len(others) > FEW and not are_flat(seen.runs)):
        source = seen.sources[seen.greys[0]] if seen.greys else seen.holding(others[-1])
        raise UserError(f"{source}: its greys are not clearly black and white, so no findings; give masks as PNG")
    if named is None and WHITE in others and len(others) > 1 and WHITE - 1 not in others:
        raise UserError(
            f"{seen.holding(WHITE)}: the masks hold 255 beside {_listed([v for v in others if v != WHITE])}: findings, "
            "or where nobody looked? Name the values in task.classes, set task.masks=instances, or take 255 out"
        )


def _is_white(seen: Seen, others: Sequence[int], named: Mapping[int, str] | None) -> bool:
    """Whether every map is an image of 0 and 255, and 255 has no name of its own: it is then 1."""
    return seen.images and list(others) == [WHITE] and (named is None or (WHITE not in named and 1 in named))


def _check_palettes(seen: Seen, others: Sequence[int]) -> None:
    """Palettes that each file made for itself: what is 1 in one may be 0 in the next."""
    if seen.other is None:
        return
    value, colour, source = seen.other
    first, where = seen.colours[value]
    raise UserError(
        f"{source}: its palette draws the value {value} in the colour {tuple(colour)}, that of {where} in "
        f"{tuple(first)}; where a value means the same in all, name them: {_mapping(others)}, else save masks as grey"
    )


def _check_has_classes(seen: Seen, others: Sequence[int]) -> None:
    if seen.greys:
        _check_no_greys(seen, others)
    if others and others[0] < 0:
        raise UserError(
            f"{seen.holding(others[0])}: holds {others[0]}; where that says that nobody looked, set "
            f"task.ignore={others[0]}, else name every value: {_mapping(others)}"
        )
    if len(others) <= FEW:
        return
    flat = are_flat(seen.runs)
    if not flat or len(others) > MOST or (len(others) > MANY and len(others) < DENSE * others[-1]):
        what = "" if flat else " that are no regions"
        instances = "; numbered findings are for a detection with task.masks=instances" if flat else ""
        raise UserError(
            f"{seen.holding(others[-1])}: the label maps hold {len(others)} values{what}, from {others[0]} to "
            f"{others[-1]}: no classes, unless you name those that are: {_mapping(_main(seen, others))}{instances}"
        )


def _check_no_greys(seen: Seen, others: Sequence[int]) -> None:
    source = seen.sources[seen.greys[0]]
    raise UserError(
        f"{source}: JPEG has changed the label values, and they are not clearly black and white; give masks as PNG, "
        f"or say which values were drawn: {_mapping(_main(seen, others))}"
    )


def _check_one_reading(seen: Seen, others: Sequence[int], ignored: Sequence[int]) -> None:
    """255 beside others: 'not looked at' to many, a class to some."""
    if WHITE in others and len(others) > 1 and WHITE - 1 not in others and WHITE not in ignored:
        beside = _listed([value for value in others if value != WHITE])
        never = all(WHITE not in each or not {*each} - {0, WHITE} for each in seen.counts)
        same = ", ".join(f"{value}: foreground" for value in others)
        same = f", where both are one class: task.values: {{{same}}}" if never and len(others) == 2 else ""
        raise UserError(
            f"{seen.holding(WHITE)}: the label maps hold 255 beside {beside}; where it says that nobody looked, set "
            f"task.ignore=255, where it is a class: {_mapping(others)}{same}"
        )


def _main(seen: Seen, others: Sequence[int]) -> list[int]:
    """Of many values those with the most voxels that are no neighbours of each other, nor of 0."""
    totals = {value: sum(each.get(value, 0) for each in seen.counts) for value in others}
    chosen = [0]
    most = max(totals.values())
    for value in sorted(totals, key=lambda value: -totals[value]):
        if totals[value] > most / 20 and all(abs(value - other) > 16 for other in chosen):
            chosen.append(value)
    return sorted(set(chosen) - {0}) or [max(totals)]


def _typed(strange: Sequence[int], named: Mapping[int, str]) -> str:
    return f"name them in {_mapping([*strange], named)}, or leave one out by task.ignore=VALUE"


def _of_values(named: Mapping[int, str]) -> str:
    return "" if [*named] == [*range(1, len(named) + 1)] else f" with the values {_listed([*named])}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def _mapping(values: Sequence[int], named: Mapping[int, str] | None = None) -> str:
    """The key to type."""
    pairs = (dict(named) if named else {}) | {value: f"label {value}" for value in values}
    shown = [f"{value}: {name}" for value, name in sorted(pairs.items())]
    return f"task.values: {{{', '.join(shown[:SHOWN])}{', ...' if len(shown) > SHOWN else ''}}}"
