"""DICOM of every kind: survey the headers, group them into sources, read volumes and images."""

from scanforge.datasets.readers.dicom.grouping import group
from scanforge.datasets.readers.dicom.headers import Survey, survey
from scanforge.datasets.readers.dicom.identifying import identifying_strings
from scanforge.datasets.readers.dicom.images import read_image
from scanforge.datasets.readers.dicom.volumes import read_volume

__all__ = ["Survey", "group", "identifying_strings", "read_image", "read_volume", "survey"]
