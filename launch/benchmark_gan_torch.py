"""The networks and the step of `launch.benchmark_gan` once more, in torch."""

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from launch.benchmark_gan import BETAS, DECAY, RATE, Case

Variables = Mapping[str, Any]
Batch = Mapping[str, np.ndarray]


def networks(
    case: Case, variables: tuple[Variables, Variables]
) -> tuple[nn.Module, nn.Module]:
    """Returns the generator and the critic, with the weights of ours."""
    width, side = case.width, case.size // 8
    widths = [width * n for n in ((8, 4, 2, 1) if case.refined else (4, 2, 1))]
    layers = [nn.Linear(case.latent, widths[0] * side**2, bias=False)]
    layers += [nn.Unflatten(1, (widths[0], side, side))]
    layers += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for ins, outs in itertools.pairwise(widths):
        layers += [nn.ConvTranspose2d(ins, outs, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(outs), nn.ReLU()]
    if case.refined:
        layers += [nn.Conv2d(width, case.channels, 3, 1, 1)]
    else:
        layers += [nn.ConvTranspose2d(width, case.channels, 4, 2, 1)]
    generator = nn.Sequential(*layers, nn.Tanh())

    widths = [width * n for n in ((1, 1, 2, 2, 4, 4, 8) if case.refined else (1, 2, 4))]
    windows = (3, 4, 3, 4, 3, 4, 3) if case.refined else (4, 4, 4)
    layers, ins = [], case.channels
    for outs, window in zip(widths, windows, strict=True):
        normalised = case.batch_norm and bool(layers)
        stride = 2 if window == 4 else 1
        conv = nn.Conv2d(ins, outs, window, stride, 1, bias=not normalised)
        layers += [spectral_norm(conv)] + [nn.BatchNorm2d(outs)] * normalised
        layers += [nn.LeakyReLU(0.1 if case.refined else 0.2)]
        ins = outs
    layers += [nn.Flatten(), spectral_norm(nn.Linear(ins * side**2, 1)), nn.Flatten(0)]
    critic = nn.Sequential(*layers)
    for network, ours in zip((generator, critic), variables, strict=True):
        _copy(ours, network, side)
    return generator, critic


def _copy(variables: Variables, network: nn.Module, side: int) -> None:
    """Writes our parameters and singular vectors into the layers, in their order."""
    kinds = {
        nn.Linear: "Dense",
        nn.Conv2d: "Conv",
        nn.ConvTranspose2d: "ConvTranspose",
        nn.BatchNorm2d: "BatchNorm",
    }
    counts = dict.fromkeys((*kinds.values(), "SpectralNorm"), 0)

    def following(kind, collection="params"):
        counts[kind] += 1
        return variables[collection][f"{kind}_{counts[kind] - 1}"]

    def write(target, values):
        target.data.copy_(torch.tensor(np.asarray(values)))

    for layer in network:
        kind = next((k for t, k in kinds.items() if isinstance(layer, t)), None)
        if kind is None:
            continue
        ours = following(kind)
        if layer.bias is not None:
            write(layer.bias, ours["bias"])
        if kind == "BatchNorm":
            write(layer.weight, ours["scale"])
            continue
        kernel = np.asarray(ours["kernel"])
        if not hasattr(layer, "parametrizations"):
            write(layer.weight, in_order(kind, kernel, side))
            continue
        write(layer.parametrizations.weight.original, in_order(kind, kernel, side))
        vectors = following("SpectralNorm", "batch_stats")["kernel"]
        (norm,) = layer.parametrizations.weight
        write(norm._u, vectors["u"])
        right = np.asarray(vectors["v"]).reshape(*kernel.shape[:-1], 1)
        write(norm._v, in_order(kind, right, side).ravel())


def in_order(kind: str, kernel: np.ndarray, side: int) -> np.ndarray:
    """Returns a kernel of ours as torch has it: channels before pixels, outputs first.

    Args:
      kind: of the layer: Dense, Conv or ConvTranspose.
      kernel: whose last axes are inputs and outputs.
      side: of the square image that a dense layer of the generator makes, and that of
        the critic reads (the one with a single output).
    """
    if kind == "ConvTranspose":
        return kernel.transpose(2, 3, 0, 1)
    if kind == "Conv":
        return kernel.transpose(3, 2, 0, 1)
    ins, outs = kernel.shape
    if outs == 1:
        return kernel.reshape(side, side, -1).transpose(2, 0, 1).reshape(1, ins)
    return kernel.reshape(ins, side, side, -1).transpose(3, 1, 2, 0).reshape(outs, ins)


def step(
    case: Case,
    variables: tuple[Variables, Variables],
    batches: tuple[Batch, Batch],
    layout: str = "channels_last",
    *,
    dtype: str = "float32",
    device: str = "cpu",
) -> Callable[[], tuple[nn.Module, nn.Module]]:
    """Returns a call that takes one more step, and returns both networks.

    Args:
      case: the game.
      variables: with which it begins, of our networks.
      batches: what the critic's updates read, stacked, and what the generator's does.
      layout: of images in memory, the name of one of torch's memory formats.
      dtype: of the products.
      device: on one that is no CPU the networks are compiled.
    """
    formats = {"device": device, "memory_format": getattr(torch, layout)}
    generator, critic = (n.to(**formats) for n in networks(case, variables))
    average = copy.deepcopy(generator)
    options = {"lr": RATE, "betas": BETAS, "fused": True}
    generator_optimizer = torch.optim.Adam(generator.parameters(), **options)
    critic_optimizer = torch.optim.Adam(critic.parameters(), **options)
    real, generated = (
        {name: torch.tensor(array, device=device) for name, array in batch.items()}
        for batch in batches
    )
    images = [x.permute(0, 3, 1, 2).contiguous() for x in real["example"]]
    images = [x.to(**formats) for x in images]
    generate, criticise = generator, critic
    if device != "cpu":
        generate, criticise = torch.compile(generator), torch.compile(critic)

    def floating(network):
        state = network.state_dict(keep_vars=True).values()
        return [x.detach() for x in state if x.is_floating_point()]

    kept = floating(average), floating(generator)
    low = torch.autocast(
        device, getattr(torch, dtype), enabled=dtype != "float32", cache_enabled=False
    )

    def call():
        critic.requires_grad_(True)
        for examples, latents in zip(images, real["latent"], strict=True):
            with low:
                with torch.no_grad():
                    fakes = generate(latents)
                scores, others = criticise(torch.cat([examples, fakes])).chunk(2)
                loss = functional.relu(1 - scores).mean()
                loss = loss + functional.relu(1 + others).mean()
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
        critic.requires_grad_(False)
        with low:
            loss = -criticise(generate(generated["latent"])).mean()
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        torch._foreach_lerp_(*kept, 1 - DECAY)
        if device != "cpu":
            torch.cuda.synchronize()
        return generator, critic

    return call
