"""Metrics in one file outside of the project: one of segmentation, one of every task."""


def worst_case(records):
    """The lowest score of all cases."""
    return min((record["score"] for record in records if record["score"] is not None), default=float("nan"))


def share_scored(records):
    """The share of the cases that have a score."""
    return sum(record["score"] is not None for record in records) / len(records)


PLUGINS = {
    "metric": [("segmentation", "worst dice", worst_case, "higher"), (None, "scored", share_scored, "higher")],
}
