"""The compiler's sums are right, whatever the installed jaxlib's own default."""

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
import jax
{first}
import dl_core
matrix = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
points = np.random.default_rng(1).normal(size=(40_000, 3)).astype(np.float32)
found = jax.jit(lambda x: 0.5 + (matrix * x[:, None]).sum(2))(points)
np.testing.assert_allclose(found, 0.5 + points @ matrix.T, atol=1e-5)
"""


@pytest.mark.parametrize("first", ["", "import jax.numpy"])
def test_products_and_sums_over_many_rows_are_right(first, monkeypatch):
    """Those of jaxlib 0.10.2 are not, from 32,768 elements on (jax#39103)."""
    monkeypatch.delenv("XLA_FLAGS")
    code = PROGRAM.format(first=first)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
