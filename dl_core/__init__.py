"""The library: pure functions, Flax modules, data and the one training loop."""
