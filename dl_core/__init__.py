"""The library: pure functions, Flax modules, data and the one training loop."""

import importlib.metadata
import os

_WRONG_SUMS = ("0.10.2", "0.11.0")
"""jaxlibs whose CPU compiler hands products and sums to YNNPACK, which gets some wrong
or crashes, without a word (jax#39103, jax#39257)."""

if importlib.metadata.version("jaxlib") in _WRONG_SUMS:
    _flags, _flag = (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_experimental_ynn_fusion_type",
    )
    if _flag not in _flags:
        # Read when JAX first looks for devices: what ran before has no such protection.
        os.environ["XLA_FLAGS"] = f"{_flags} {_flag}=".strip()
