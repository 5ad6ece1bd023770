"""RMSprop with momentum and clipped gradients, against torch."""

import jax.numpy as jnp
import numpy as np
import optax
import torch

from dl_core.train.optimizers import RMSprop


def test_the_update_rule_is_torchs_after_clipping():
    rule = RMSprop(learning_rate=1e-2, epsilon=0.1, clip=1.0)
    random = np.random.default_rng(0)
    start = random.normal(size=7).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.RMSprop(
        [theirs],
        rule.learning_rate,
        rule.decay,
        eps=rule.epsilon,
        momentum=rule.momentum,
    )
    ours, made = jnp.array(start), rule.make(10)
    state = made.init(ours)
    for _ in range(10):
        gradient = 2 * random.normal(size=7).astype(np.float32)
        updates, state = made.update(jnp.array(gradient), state)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_value_([theirs], rule.clip)
        optimizer.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)
