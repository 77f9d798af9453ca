"""Weights that others released, read safely into our backbones."""

from scanfoundry.backbones.foreign.loading import load_foreign, load_foreign_parts, load_foreign_whole
from scanfoundry.backbones.foreign.report import Report

__all__ = ["Report", "load_foreign", "load_foreign_parts", "load_foreign_whole"]
