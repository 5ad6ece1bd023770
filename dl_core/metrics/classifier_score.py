"""The score that a classifier gives to generated images: sure of each, and varied.

Salimans et al., "Improved techniques for training GANs", 2016, section 4, where the
classifier is an Inception network (the Inception score).
"""

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp


def classifier_score(
    logits: Float[np.ndarray, "n classes"], splits: int = 1
) -> Float[np.ndarray, " splits"]:
    """Returns exp(E KL(p(y|x) ‖ p(y))) of each split, in float64.

    It lies between 1 and the number of classes. Published scores are mean and deviation
    over 10 splits of 50,000 images; of few images it is too low, as p(y) is estimated
    from the same ones.

    Args:
      logits: of the images, in the order in which they are split.
      splits: consecutive parts, as equal as can be, that are scored by themselves.

    Raises:
      ValueError: if there are fewer images than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"classifier_score: {splits} splits of logits {np.shape(logits)}: expected "
            "1 or more, and no more than there are rows"
        )
    return np.array(
        [
            _score(part)
            for part in np.array_split(np.asarray(logits, np.float64), splits)
        ]
    )


def _score(logits: Float[np.ndarray, "n classes"]) -> float:
    given = log_softmax(logits, axis=1)
    marginal = logsumexp(given, axis=0) - np.log(len(given))
    return float(np.exp(np.mean(np.sum(np.exp(given) * (given - marginal), axis=1))))
