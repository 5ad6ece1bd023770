"""Generators and critics of images by name.

dcgan     Radford et al., 2016                    dl_core.models.dcgan
standard  the standard CNN of Miyato et al., 2018     (the same, refined)
resnet    the residual networks of Miyato et al.  dl_core.models.sngan_resnet
"""

from typing import Any, Literal

import flax.linen as nn

from dl_core.models import dcgan, sngan_resnet

Architecture = Literal["dcgan", "standard", "resnet"]


def make_generator(architecture: Architecture, width: int, **fields: Any) -> nn.Module:
    """Returns `(latents, labels, train=) -> (images, endpoints)`.

    Args:
      architecture: which.
      width: of the critic that it plays against. As published, the residual generator
        has twice as many channels (256 and 128), the others as many.
      **fields: `size`, `channels`, and if need be `classes`, `lowering`.
    """
    if architecture == "resnet":
        return sngan_resnet.Generator(2 * width, **fields)
    return dcgan.Generator(width, refined=architecture == "standard", **fields)


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
