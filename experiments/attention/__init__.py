"""Attention: what is far away, found by what it is."""
