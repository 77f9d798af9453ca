"""Labelled data sets as users have them: folders, dataset.json, lists, boxes, archives, shards."""

from scanfoundry.finetune.cases.cases import Box, Case, CaseList, LabelledBox, ScanSource
from scanfoundry.finetune.formats.discover import discover

__all__ = ["Box", "Case", "CaseList", "LabelledBox", "ScanSource", "discover"]
