"""Detectors' networks, all on the trunk of `dl_core.models.detection.trunk`."""
