"""Sequences: temporal convolutions, recurrence, memory over long delays."""
