"""DICOM: from any pile of files to trustworthy volumes and images."""
