"""Whole networks; each returns its output and its named activations (endpoints)."""
