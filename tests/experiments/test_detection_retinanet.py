"""RetinaNet's loss against the paper's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dl_core.config import replace, to_arrays
from dl_core.models.detection import retinanet
from experiments.detection import retinanet as experiment

CONFIG = to_arrays(replace(experiment.Config(), experiment.PRESETS["smoke"]))


def test_the_loss_is_the_papers():
    random = np.random.default_rng(0)
    image = random.standard_normal((2, 48, 64, 3)).astype(np.float32)
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0, :2] = [[2, 3, 12, 12], [20, 8, 44, 30]]
    batch = {"image": image, "boxes": boxes, "labels": np.int32([[2, 1, -1], [-1] * 3])}

    def run(batch):
        state = experiment.init(CONFIG, jax.random.key(0))
        _, metrics = experiment.train_step(CONFIG, state, batch, jax.random.key(1))
        answers = experiment.network(CONFIG).apply(
            {"params": state.params}, batch["image"], train=True
        )
        assign = jax.vmap(retinanet.assign, (None, None, 0, 0, None))
        wanted = assign(
            CONFIG.head, experiment.anchors(CONFIG), batch["boxes"], batch["labels"], 3
        )
        return metrics["loss"], answers, wanted

    loss, *outputs = jax.jit(run)(jax.tree.map(jnp.asarray, batch))
    (logits, codes), wanted = jax.tree.map(lambda x: torch.tensor(np.array(x)), outputs)
    p = torch.sigmoid(logits.double())
    yes = -0.25 * (1 - p) ** 2 * torch.log(p)
    no = -0.75 * p**2 * torch.log(1 - p)
    classified = torch.where(wanted.classes, yes, no)[wanted.counted].sum()
    located = torch.nn.functional.smooth_l1_loss(
        codes[wanted.objects], wanted.codes[wanted.objects], beta=1 / 9, reduction="sum"
    )
    expected = (classified + located) / wanted.objects.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
