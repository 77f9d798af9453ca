"""Labelled data sets as users have them: folders, dataset.json, lists, boxes, archives, shards."""

from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.cases.cases import Case, CaseList, ScanSource
from scanfoundry.finetune.formats.discover import discover

__all__ = ["Boxes", "Case", "CaseList", "ScanSource", "discover"]
