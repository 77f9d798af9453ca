"""DICOM of every kind: survey the headers, group them into sources, read volumes and images."""

from scanfoundry.datasets.readers.dicom.grouping import group
from scanfoundry.datasets.readers.dicom.headers import Survey, survey
from scanfoundry.datasets.readers.dicom.identifying import identifying_strings
from scanfoundry.datasets.readers.dicom.images import read_image
from scanfoundry.datasets.readers.dicom.volumes import read_volume

__all__ = ["Survey", "group", "identifying_strings", "read_image", "read_volume", "survey"]
