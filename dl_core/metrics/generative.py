"""All measures of generated images by a classifier's features, as one metric.

    def eval_step(config, state, batch):
        extract = load_extractor(config.classifier)
        real, generated = extract(batch["image"]), extract(images)
        return {"quality": Generative.of(real, generated, batch["mask"])}

writes the rows test/frechet, test/kernel, …. The numbers depend on the classifier: name
them after it.
"""

from typing import Self

import numpy as np
from flax import struct
from jaxtyping import Array, Float

from dl_core.metrics.classifier_score import classifier_score
from dl_core.metrics.distances import diversity
from dl_core.metrics.features import Outputs
from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.kernel import kernel_distance
from dl_core.metrics.moments import gaussian
from dl_core.metrics.precision_recall import precision_recall

COLLAPSED = 0.1
"""Diversity below which a generator is said to have collapsed."""

_NAMES = (
    "frechet",
    "kernel",
    "kernel_low",
    "kernel_high",
    "score",
    "score_real",
    "precision",
    "recall",
    "diversity",
    "collapsed",
)


@struct.dataclass
class Generative:
    """Generated against real images, kept as all the features and logits.

    Neighbours and kernels need every pair of examples, so the rows are kept, not their
    moments; `FrechetDistance` does without.
    """

    real: Float[Array, "batch d"]
    generated: Float[Array, "batch d"]
    real_logits: Float[Array, "batch classes"]
    generated_logits: Float[Array, "batch classes"]
    mask: Float[Array, " batch"]

    @classmethod
    def of(
        cls, real: Outputs, generated: Outputs, mask: Float[Array, " batch"]
    ) -> Self:
        """Returns the metric of the examples whose mask is 1; traceable.

        Args:
          real: what an extractor makes of a batch of real images.
          generated: what it makes of as many generated ones.
          mask: which of both count.
        """
        return cls(real[0], generated[0], real[1], generated[1], mask)

    def merge(self, other: Self) -> Self:
        """Returns the metric of both sets of examples."""
        return type(self)(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)])
                for name in self.__dataclass_fields__
            )
        )

    def compute(self) -> dict[str, float]:
        """Returns the measures; all are NaN if a feature or a logit is not finite.

        frechet: Fréchet distance (`dl_core.metrics.frechet`).
        kernel, kernel_low, kernel_high: kernel distance and its 95 % confidence
          interval (`dl_core.metrics.kernel`).
        score, score_real: classifier score of the generated and of the real images, in
          one split (`dl_core.metrics.classifier_score`).
        precision, recall: with k = 3 (`dl_core.metrics.precision_recall`).
        diversity: mean distance between generated images over that between real ones.
        collapsed: 1 where the diversity is below `COLLAPSED`, else 0.
        """
        kept = np.asarray(self.mask) > 0
        arrays = (self.real, self.generated, self.real_logits, self.generated_logits)
        rows = [np.asarray(array, np.float64)[kept] for array in arrays]
        if not all(np.isfinite(array).all() for array in rows):
            return dict.fromkeys(_NAMES, float("nan"))
        real, generated, real_logits, generated_logits = rows
        varied = diversity(real, generated)
        return dict(
            zip(
                _NAMES,
                [
                    frechet_distance(*gaussian(real), *gaussian(generated)),
                    *kernel_distance(real, generated),
                    float(classifier_score(generated_logits)[0]),
                    float(classifier_score(real_logits)[0]),
                    *precision_recall(real, generated),
                    varied,
                    float(varied < COLLAPSED),
                ],
                strict=True,
            )
        )
