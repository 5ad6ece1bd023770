"""Augmentation on the device: pure functions of (key, image, …) for jit and vmap.

Geometry is one affine matrix an example. Parts are composed by product, the image is
read once, and boxes, keypoints and masks go through the same matrix. Colour and noise
act on the image alone. Every function takes one example; `jax.vmap` takes a batch:

    def augment(key, example):
        crop, turn, light = jax.random.split(key, 3)
        matrix = compose(
            random_affine(turn, (480, 640), degrees=15, shear=5),
            random_resized_crop(crop, (480, 640), (224, 224)),
        )
        example = warp_example(example, matrix, (224, 224))
        image = color_jitter(light, example["image"], brightness=0.4, hue=0.1)
        return {**example, "image": image}

    examples = jax.vmap(augment)(jax.random.split(key, batch_size), examples)

Sizes are static, strengths (degrees, factors, probabilities) may be traced: a sweep
over them is one program.

Coordinates are continuous, x to the right and y down: the pixel of row i and column j
is the square from (j, i) to (j + 1, i + 1), its centre at (j + 0.5, i + 0.5), and an
image is [0, width] × [0, height]. So a box mirrors to
(width − x_max, y_min, width − x_min, y_max), without a −1.

Images are floats from 0 to 1, or bytes from 0 to 255; the result has the image's dtype.
Bytes are computed on as floats and rounded to the nearest at the end of each function,
so a chain of several is more precise on floats. Augment before standardising.

Class-balanced sampling ("label shuffle") is an order of examples, hence with the data:
`dl_core.data.balanced`.
"""

from dl_core.ops.augment.affine import (
    compose,
    crop,
    dihedral,
    flip,
    invert,
    rotation,
    scaling,
    shear,
    translation,
)
from dl_core.ops.augment.annotations import move_boxes, move_keypoints, move_points
from dl_core.ops.augment.color import (
    adjust_brightness,
    adjust_colors,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
)
from dl_core.ops.augment.example import warp_example
from dl_core.ops.augment.noise import (
    cutout,
    gaussian_blur,
    gaussian_noise,
    random_gaussian_blur,
)
from dl_core.ops.augment.pca import PrincipalColors, pca_jitter, principal_colors
from dl_core.ops.augment.sampling import (
    random_affine,
    random_crop,
    random_dihedral,
    random_flip,
    random_resized_crop,
)
from dl_core.ops.augment.warp import warp

__all__ = [
    "PrincipalColors",
    "adjust_brightness",
    "adjust_colors",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "color_jitter",
    "compose",
    "crop",
    "cutout",
    "dihedral",
    "flip",
    "gaussian_blur",
    "gaussian_noise",
    "invert",
    "move_boxes",
    "move_keypoints",
    "move_points",
    "pca_jitter",
    "principal_colors",
    "random_affine",
    "random_crop",
    "random_dihedral",
    "random_flip",
    "random_gaussian_blur",
    "random_resized_crop",
    "rotation",
    "scaling",
    "shear",
    "translation",
    "warp",
    "warp_example",
]
