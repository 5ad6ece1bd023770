"""Flax Linen layers that more than one experiment uses."""
