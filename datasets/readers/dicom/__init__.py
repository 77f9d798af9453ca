"""DICOM of every kind: scan the headers, group them into sources, read volumes and images."""

from scanfoundry.datasets.readers.dicom.grouping import group
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.identity import identifying_strings
from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers
from scanfoundry.datasets.readers.dicom.images import read_image
from scanfoundry.datasets.readers.dicom.volumes import read_volume

__all__ = ["FileHeader", "group", "identifying_strings", "read_image", "read_volume", "scan_headers"]
