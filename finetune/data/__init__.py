"""Labelled data sets as users have them: folders, dataset.json, lists, boxes, archives, shards."""

from scanforge.finetune.data.cases import Box, Case, CaseList, LabelledBox, ScanSource
from scanforge.finetune.data.discover import discover

__all__ = ["Box", "Case", "CaseList", "LabelledBox", "ScanSource", "discover"]
