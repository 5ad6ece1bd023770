"""Convolution, its arithmetic, and what is built of it."""
