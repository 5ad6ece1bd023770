"""Finding objects in a photograph with a trained run, from the command line."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from PIL import Image

from dl_core.config import to_arrays
from dl_core.errors import UserError
from dl_core.ops.boxes import Detections
from dl_core.train.checkpoints import Checkpoints
from dl_core.train.run_directory import open_run
from launch import detect, registry

_EXPERIMENT = "detection.fast_rcnn"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run that has saved its state as it begins."""
    folder = tmp_path_factory.mktemp("detect") / "run"
    experiment = registry.load(_EXPERIMENT)
    config = experiment.preset("smoke")
    with open_run(folder, _EXPERIMENT, config):
        pass
    (stage,) = experiment.stages
    state = jax.jit(stage.init)(to_arrays(config), jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, state, {})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photograph of 80 × 40 pixels with a red left half, kept turned."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.zeros((40, 80, 4), np.uint8)
    pixels[:, :40] = [255, 0, 0, 128]
    exif = Image.Exif()
    exif[0x112] = 6  # To be turned by a quarter to the right.
    Image.fromarray(pixels).rotate(90, expand=True).save(path, exif=exif)
    return path


def test_it_prints_and_draws_what_it_finds(run, photo, tmp_path):
    out = tmp_path / "found.png"
    flags = (f"--run={run}", f"--image={photo}", f"--image={photo}", f"--out={out}")
    result = processes.fork("launch.detect", *flags, "--least_score=0.01").wait()
    assert result.code == 0, result.stderr
    head, row = result.stdout.splitlines()[1:3]
    assert head.split() == ["label", "score", "x_min", "y_min", "x_max", "y_max"]
    label, *numbers = row.split()
    assert label in ("RBC", "WBC", "Platelets")
    score, left, top, right, low = map(float, numbers)
    assert score >= 0.01
    assert 0 <= left < right <= 80
    assert 0 <= top < low <= 40
    for number in (1, 2):
        picture = np.asarray(Image.open(tmp_path / f"found-{number}.png"))
        # Enlarged to be legible, and the right way up.
        assert picture.shape[:2] == (15 * 40, 15 * 80)


def test_boxes_are_in_pixels_of_the_photograph(photo, tmp_path):
    config = registry.load("detection.yolo").preset("smoke")
    assert (config.data.height, config.data.width) == (48, 64)

    def found(config, state, batch):
        # The left half of the network's input, and padding.
        assert batch["image"].shape == (1, 48, 64, 3)
        boxes = jnp.array([[[0.0, 0, 32, 48], [0, 0, 0, 0]]])
        return Detections(boxes, jnp.array([[0.75, 0]]), jnp.array([[1, -1]]))

    detector = detect.Detector(types.SimpleNamespace(detect=found), config, None)
    (image,) = detect.read_images([str(photo)])
    result = detector(image)
    np.testing.assert_allclose(result.boxes, [[0, 0, 40, 40]])
    line = detect.table(result, ("a", "bb"))[1]
    assert line.split() == ["bb", "0.75", "0.0", "0.0", "40.0", "40.0"]
    out = tmp_path / "out.png"
    detect.draw(image, result, ("a", "bb"), out)
    # The photograph is as it was but for the box and its name.
    picture = np.asarray(Image.open(out))[::15, ::15, :3][20:39]
    np.testing.assert_array_equal(picture[:, 3:38], image[20:39, 3:38])
    np.testing.assert_array_equal(picture[:, 42:], image[20:39, 42:])


def test_a_mistake_is_told_in_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match="there is no run in it"):
        detect.restored(tmp_path)
    config = tmp_path / "config.json"
    for content in ("[]", '{"experiment": "detection.yolo"}'):
        config.write_text(content)
        with pytest.raises(UserError, match="is damaged: it holds no config"):
            detect.restored(tmp_path)
    config.write_text('{"experiment": "sequences.adding", "config": {}}')
    with pytest.raises(UserError, match=r"sequences\.adding, which does not detect"):
        detect.restored(tmp_path)
    config.write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        detect.restored(tmp_path)
    saved = json.loads(config.read_text())
    saved["config"]["trunk"]["width"] += 4
    config.write_text(json.dumps(saved))
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(UserError, match="checkpoint"):
        detect.restored(tmp_path)
    config.write_text('{"experiment": "detection.rcnn", "config": {}}')
    with pytest.raises(UserError, match="no checkpoint of its last stage"):
        detect.restored(tmp_path)
    for out, said in (("a.jpg", "a PNG file"), ("no/a.png", "there is no folder no")):
        with pytest.raises(UserError, match=said):
            detect.out_files(out, 1)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        detect.read_images([str(tmp_path / "text.jpg")])
    Image.new("L", (2**16, 1)).save(tmp_path / "long.png")
    with pytest.raises(UserError, match=r"long\.png has 65,536 × 1 pixels"):
        detect.read_images([str(tmp_path / "long.png")])
