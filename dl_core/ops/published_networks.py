"""Published networks as lists of layers, and their published receptive fields.

The layers are those of TF-Slim (tensorflow/models, research/slim/nets), down to its
paddings and to the place of the strides: its residual networks have them in the last
unit of a block. What does not change a receptive field is left out: 1×1 convolutions
with stride 1, normalisation, activations, and a branch that has the window of another.
The numbers are those of the README of google-research/receptive_field, for images of
224 × 224: the padding "same" depends on the image's size.
"""

from dl_core.ops.receptive_field import Branches, Layer, Network, ReceptiveField

IMAGE_SIZE = 224
"""Pixels, in each dimension, for which the published numbers hold."""

_CONV3, _CONV5 = Layer(3, padding="same"), Layer(5, padding="same")
_REDUCE = Layer(3, stride=2)
_REDUCE_SAME = Layer(3, stride=2, padding="same")


def _cross(size: int) -> list[Network]:
    """Returns a 1×n and an n×1 convolution, one after the other."""
    return [Layer((1, size), padding="same"), Layer((size, 1), padding="same")]


_FORK = Branches(*_cross(3))
_INCEPTION_STEM = [_REDUCE, Layer(3), _CONV3, _REDUCE, Layer(3), _REDUCE]
_INCEPTION_A = Branches([], _CONV3, [_CONV3, _CONV3])
_INCEPTION_A5 = Branches([], _CONV5, [_CONV3, _CONV3])
_INCEPTION_B = Branches([], _cross(7), 2 * _cross(7), _CONV3)
_REDUCTION_A = Branches(_REDUCE, [_CONV3, _REDUCE])
_REDUCTION_B = Branches(_REDUCE, [*_cross(7), _REDUCE])
_REDUCTION_SAME = Branches(_REDUCE_SAME, [_CONV3, _REDUCE_SAME])


def alexnet_v2() -> Network:
    """Krizhevsky, "One weird trick for parallelizing …", 2014; to pool5."""
    middle = [_REDUCE, _CONV5, _REDUCE, _CONV3, _CONV3, _CONV3, _REDUCE]
    return [Layer(11, stride=4), *middle]


def vgg_16() -> Network:
    """Simonyan & Zisserman, 2015; to pool5."""
    halve = Layer(2, stride=2)
    return [[_CONV3] * count + [halve] for count in (2, 2, 3, 3, 3)]


def inception_v2() -> Network:
    """Ioffe & Szegedy, "Batch normalization", 2015; to Mixed_5c."""
    stem = [Layer(7, stride=2, padding="same"), _REDUCE_SAME, _CONV3, _REDUCE_SAME]
    blocks = [2 * [_INCEPTION_A], _REDUCTION_SAME, 4 * [_INCEPTION_A]]
    return [stem, blocks, _REDUCTION_SAME, 2 * [_INCEPTION_A]]


def inception_v3() -> Network:
    """Szegedy et al., "Rethinking the Inception architecture", 2016; to Mixed_7c."""
    block_c = Branches([], _FORK, [_CONV3, _FORK])
    blocks = [3 * [_INCEPTION_A5], _REDUCTION_A, 4 * [_INCEPTION_B]]
    return [_INCEPTION_STEM, blocks, _REDUCTION_B, 2 * [block_c]]


def inception_v4() -> Network:
    """Szegedy et al., "Inception-v4, …", 2017; to Mixed_7d."""
    mixed_4a = Branches(Layer(3), [*_cross(7), Layer(3)])
    stem = [_REDUCE, Layer(3), _CONV3, _REDUCE, mixed_4a, _REDUCE]
    block_c = Branches([], _FORK, [*_cross(3), _FORK], _CONV3)
    blocks = [4 * [_INCEPTION_A], _REDUCTION_A, 7 * [_INCEPTION_B]]
    return [stem, blocks, _REDUCTION_B, 3 * [block_c]]


def inception_resnet_v2() -> Network:
    """Szegedy et al., "Inception-v4, …", 2017; to Conv2d_7b_1x1."""
    block17, block8 = Branches([], _cross(7)), Branches([], _cross(3))
    blocks = [_INCEPTION_A5, 10 * [_INCEPTION_A], _REDUCTION_A, 20 * [block17]]
    return [_INCEPTION_STEM, blocks, _REDUCTION_A, 10 * [block8]]


def mobilenet_v1() -> Network:
    """Howard et al., 2017; to Conv2d_13_pointwise."""
    strides = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    return [Layer(3, stride, padding="same") for stride in strides]


def resnet_v1(*units: int) -> Network:
    """He et al., 2016; to block4.

    Args:
      *units: bottleneck units in each of the four blocks.
    """

    def unit(stride: int) -> Network:
        return Branches(Layer(1, stride), Layer(3, stride, padding=1))

    blocks = [
        [unit(1)] * (count - 1) + [unit(stride)]
        for count, stride in zip(units, (2, 2, 2, 1), strict=True)
    ]
    return [Layer(7, stride=2, padding=3), _REDUCE_SAME, blocks]


PUBLISHED: dict[str, tuple[Network, ReceptiveField]] = {
    "alexnet_v2": (alexnet_v2(), ReceptiveField(195, 32, 64)),
    "vgg_16": (vgg_16(), ReceptiveField(212, 32, 90)),
    "inception_v2": (inception_v2(), ReceptiveField(699, 32, 318)),
    "inception_v3": (inception_v3(), ReceptiveField(1311, 32, 618)),
    "inception_v4": (inception_v4(), ReceptiveField(2071, 32, 998)),
    "inception_resnet_v2": (inception_resnet_v2(), ReceptiveField(3039, 32, 1482)),
    "mobilenet_v1": (mobilenet_v1(), ReceptiveField(315, 32, 126)),
    "resnet_v1_50": (resnet_v1(3, 4, 6, 3), ReceptiveField(483, 32, 239)),
    "resnet_v1_101": (resnet_v1(3, 4, 23, 3), ReceptiveField(1027, 32, 511)),
    "resnet_v1_152": (resnet_v1(3, 8, 36, 3), ReceptiveField(1507, 32, 751)),
    "resnet_v1_200": (resnet_v1(3, 24, 36, 3), ReceptiveField(1763, 32, 879)),
}
"""The layers of each network, and the size, stride and padding published for it."""
