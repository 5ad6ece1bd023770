"""Losses of detectors: focal, smooth l1, and YOLO's sum of squares.

Elementwise where not said otherwise: what is summed or averaged, and by what it is
divided, is the detector's own. Settings may be traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sigmoid_focal(
    logits: Float[Array, "..."],
    targets: Bool[Array, "..."] | Float[Array, "..."],
    alpha: float | Array | None = None,
    gamma: float | Array = 0.0,
) -> Float[Array, "..."]:
    """Returns the focal loss of yes-or-no questions, -α_t (1 - p_t)^γ log p_t.

    Lin et al., "Focal loss for dense object detection", ICCV 2017. Where the answer is
    yes p_t is the sigmoid of the logit and α_t is α, where it is no each is 1 minus
    that. With γ = 0 it is cross-entropy weighted by α, bit for bit, and so is its
    gradient. It is computed from logarithms, without a power of 0, and so is finite
    wherever the logits are, gradient included, for any γ.

    Args:
      logits: of yes.
      targets: 1 for yes, 0 for no.
      alpha: weight of yes, 1 minus that of no. Without it both are 1.
      gamma: how strongly what is known already is discounted.
    """
    targets = jnp.asarray(targets)
    right = jnp.where(targets > 0, logits, -logits)
    loss = jax.nn.softplus(-right) * jnp.exp(-gamma * jax.nn.softplus(right))
    return loss if alpha is None else jnp.where(targets > 0, alpha, 1 - alpha) * loss


def softmax_focal(
    logits: Float[Array, "... classes"],
    labels: Int[Array, "..."],
    alpha: float | Float[Array, " classes"] | None = None,
    gamma: float | Array = 0.0,
) -> Float[Array, "..."]:
    """Returns the focal loss of a choice among two or more classes.

    As `sigmoid_focal`, with p_t the softmax's probability of the right class.

    Args:
      logits: of each class.
      labels: the right class.
      alpha: weight of each class, or of all. Without it 1.
      gamma: how strongly what is known already is discounted.
    """
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    total = jax.nn.logsumexp(logits, axis=-1)
    loss = total - jnp.sum(jnp.where(right, logits, 0), axis=-1)
    wrong = jax.nn.logsumexp(jnp.where(right, -jnp.inf, logits), axis=-1) - total
    loss = loss * jnp.exp(gamma * wrong)
    if alpha is None:
        return loss
    return jnp.broadcast_to(jnp.asarray(alpha), logits.shape[-1:])[labels] * loss


def smooth_l1(
    errors: Float[Array, "..."], beta: float | Array = 1.0
) -> Float[Array, "..."]:
    """Returns x² / 2β for errors below β and |x| - β / 2 beyond (Fast R-CNN).

    Girshick, "Fast R-CNN", ICCV 2015, with β = 1; Faster R-CNN's proposals have β = 1/9
    in the authors' code. With β = 0 it is |x|.
    """
    # Of slope 0 at 0, as torch's; that of JAX's absolute value is 1.
    size = errors * jnp.sign(errors)
    inside = jnp.square(errors) / (2 * jnp.where(beta > 0, beta, 1))
    return jnp.where(size < beta, inside, size - beta / 2)


def yolo_sum_of_squares(
    codes: Float[Array, "*cells predictors 4"],
    confidences: Float[Array, "*cells predictors"],
    classes: Float[Array, "*cells classes"],
    target_codes: Float[Array, "*cells 4"],
    target_confidences: Float[Array, "*cells predictors"],
    target_classes: Float[Array, "*cells classes"],
    responsible: Bool[Array, "*cells predictors"],
    *,
    coordinates: float | Array = 5.0,
    no_object: float | Array = 0.5,
) -> dict[str, Array]:
    """Returns the parts of YOLO's loss, each summed over all cells.

    Redmon et al., "You only look once", CVPR 2016, equation 3. Cells without an object
    have no responsible predictor, and cost only their confidences.

    Args:
      codes: what each predictor says of its box: the centre's place in the cell, and
        the square roots of width and height.
      confidences: of each predictor that it has an object.
      classes: of each cell, the probability of each class.
      target_codes: what the responsible predictor should say.
      target_confidences: what a responsible predictor should say: the IoU of its box
        with the object (or 1); of others the value is not read.
      target_classes: one-hot.
      responsible: at most one predictor of each cell.
      coordinates: weight of "coordinates".
      no_object: weight of "no_object".

    Returns:
      "coordinates", "object", "no_object", "classes": their sum is the loss.
    """
    apart = jnp.square(codes - target_codes[..., None, :]).sum(-1)
    wanted = jnp.where(responsible, target_confidences, 0)
    doubt = jnp.square(confidences - wanted)
    confusion = jnp.square(classes - target_classes).sum(-1)
    return {
        "coordinates": coordinates * jnp.sum(apart, where=responsible),
        "object": jnp.sum(doubt, where=responsible),
        "no_object": no_object * jnp.sum(doubt, where=~responsible),
        "classes": jnp.sum(confusion, where=responsible.any(-1)),
    }
