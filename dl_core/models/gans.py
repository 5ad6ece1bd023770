"""Generators and critics of images by name.

dcgan     Radford et al., 2016                    dl_core.models.dcgan
standard  the standard CNN of Miyato et al., 2018     (the same, refined)
resnet    the residual networks of Miyato et al.  dl_core.models.sngan_resnet
"""

from typing import Any, Literal

import flax.linen as nn

from dl_core.models import dcgan, sngan_resnet

Architecture = Literal["dcgan", "standard", "resnet"]


def make_generator(architecture: Architecture, **fields: Any) -> nn.Module:
    """Returns `(latents, labels, train=) -> (images, endpoints)`.

    Args:
      architecture: which.
      **fields: `width`, `size`, `channels`, and if need be `classes`, `lowering`.
    """
    if architecture == "resnet":
        return sngan_resnet.Generator(**fields)
    return dcgan.Generator(refined=architecture == "standard", **fields)


def make_critic(architecture: Architecture, **fields: Any) -> nn.Module:
    """Returns `(images, labels, train=) -> (scores, endpoints)`.

    Args:
      architecture: which.
      **fields: `width`, and if need be `constraint`, `iterations`, `batch_norm`,
        `classes`, `conditioning`, `lowering`.
    """
    if architecture == "resnet":
        return sngan_resnet.Critic(**fields)
    return dcgan.Critic(refined=architecture == "standard", **fields)
