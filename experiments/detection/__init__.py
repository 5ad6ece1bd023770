"""Finding objects: from classified proposals to detectors of one look."""
