"""Noise that rings and is echoed: a signal whose best prediction is known.

White noise goes through a recursion, x[t] = Σ a[k − 1] x[t − k] + noise, that rings at
one frequency and echoes what it made after some delays. The outcome is a Gaussian
process, so the best prediction of a sample from those before it is linear, and follows
from the autocovariance (the normal equations; Brockwell & Davis, "Time series: theory
and methods", 1991, chapter 5). No model that reads `reach` samples can, on average,
code the next one in fewer bits than `least_bits`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dl_core.config import config, static
from dl_core.ops import mu_law


@config
class Signal:
    """The signal that is modelled."""

    length: int = static(512, "Samples of a sequence.", at_least=2)
    levels: int = static(256, "µ-law levels of a sample.", at_least=2)
    delays: tuple[int, ...] = static((20, 90), "Of the echoes, in samples.", at_least=1)
    gain: float = static(0.8, "Of each echo.", above=0, at_most=0.95)

    @property
    def scored(self) -> int:
        """From which sample on the test counts: those before it know too little."""
        return self.length // 2


RINGING = (1.8 * math.cos(0.2 * math.pi), -0.81)
"""Recursion of the noise: it rings, with a period of 10 samples."""
LOUDNESS = 0.25
"""Standard deviation of the signal, whose largest amplitude is 1."""


@functools.cache
def recursion(signal: Signal) -> Float[np.ndarray, " memory"]:
    """Returns a of x[t] = Σ a[k − 1] x[t − k] + noise, which the signal follows."""
    polynomial = np.array([1, *np.negative(RINGING)])
    for delay in signal.delays:
        echo = np.zeros(delay + 1)
        echo[0], echo[-1] = 1, -signal.gain
        polynomial = np.convolve(polynomial, echo)
    return -polynomial[1:]


@functools.cache
def response(signal: Signal) -> np.ndarray:
    """Returns the spectrum by which white noise becomes the signal, on a circle.

    The recursion is run over a circle of a power of two samples, at least twice the
    sequence's and so many that the echoes have died out: what is cut from it is a piece
    of the endless signal, with all of its past.
    """
    heard = max(signal.delays) * math.log(1e-4) / math.log(signal.gain)
    size = 2 ** math.ceil(math.log2(max(2 * signal.length, heard)))
    spectrum = 1 / np.fft.rfft(np.append(1, -recursion(signal)), size)
    power = np.fft.irfft(np.abs(spectrum) ** 2)[0]
    return LOUDNESS / math.sqrt(power) * spectrum


def sound(signal: Signal, key: jax.Array, count: int) -> Float[Array, "count length"]:
    """Returns `count` sequences of the signal, before quantisation."""
    spectrum = response(signal)
    noise = jax.random.normal(key, (count, 2 * len(spectrum) - 2))
    filtered = jnp.fft.irfft(jnp.fft.rfft(noise) * jnp.asarray(spectrum, "complex64"))
    return filtered[:, : signal.length]


@functools.cache
def best_prediction(
    signal: Signal, reach: int
) -> tuple[Float[np.ndarray, " context"], float]:
    """Returns the weights of the last samples, the newest first, and the error's σ.

    They solve the normal equations of the signal's autocovariance. More samples than
    its recursion reads are of no use, so there are no more weights.
    """
    covariance = np.fft.irfft(np.abs(response(signal)) ** 2)
    context = min(reach, len(recursion(signal)))
    lags = np.abs(np.subtract.outer(np.arange(context), np.arange(context)))
    right = covariance[1 : context + 1]
    weights = np.linalg.solve(covariance[lags], right)
    return weights, float(np.sqrt(covariance[0] - weights @ right))


def least_bits(
    signal: Signal,
    reach: int,
    x: Float[Array, "batch length"],
    codes: Int[Array, "batch length"],
) -> Float[Array, "batch scored"]:
    """Returns −log₂ of each level's probability given the `reach` samples before it.

    Args:
      signal: which process `x` is drawn from.
      reach: how many samples are known, before quantisation.
      x: the signal before quantisation.
      codes: its levels.

    Returns:
      The bits of the samples that are scored, the second half of each sequence.
    """
    weights, sigma = best_prediction(signal, reach)
    places = np.arange(signal.scored, signal.length)
    past = x[:, places[:, None] - 1 - np.arange(len(weights))]
    mean = past @ jnp.asarray(weights, jnp.float32)
    codes = codes[:, signal.scored :]
    log = mu_law.log_probability(codes, mean, sigma, signal.levels)
    return -log / math.log(2)


def autocorrelation(
    x: Float[np.ndarray, "count time"], lags: Int[np.ndarray, " lags"]
) -> Float[np.ndarray, " lags"]:
    """Returns the correlation of samples so far apart, over all sequences."""
    time = x.shape[1]
    power = (x**2).mean()
    return np.array([(x[:, lag:] * x[:, : time - lag]).mean() for lag in lags]) / power
