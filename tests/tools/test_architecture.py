"""The picture of how the package is made names what there is."""

import pathlib
import re
from operator import attrgetter
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

import keras_vd
from tests.helpers.models import REPOSITORY
from tools import architecture
from tools.architecture import LARGE, SMALL

PACKAGE = pathlib.Path(keras_vd.__file__).parent
PICTURE = REPOSITORY / "docs" / "architecture.svg"
PLACE = re.compile(r"\w+(?:/|\.py)")
BOXES = [
    box
    for rows in (architecture.WAY, architecture.STEP)
    for box in sum(rows, ())
]
CALLS = [
    (name, box)
    for box in BOXES
    if box.colour == architecture.CALL
    for name in box.lines
]


def texts_of(path):
    """What the picture says, from top to bottom."""
    elements = ElementTree.parse(path).iter()
    return [x.text.strip() for x in elements if x.tag.endswith("}text")]


def shapes_of(path):
    """Coordinates of all that the picture draws."""
    elements = ElementTree.parse(path).iter()
    paths = [x.get("d") for x in elements if x.tag.endswith("}path")]
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", " ".join(paths))]


def test_the_picture_is_what_the_command_draws(tmp_path):
    path = tmp_path / "architecture.svg"
    architecture.main([str(path)])
    assert texts_of(path) == texts_of(PICTURE)
    np.testing.assert_allclose(shapes_of(path), shapes_of(PICTURE), atol=0.01)
    again = tmp_path / "again.svg"
    architecture.draw(again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("name", "box"), CALLS, ids=[x for x, _ in CALLS])
def test_what_users_call_is_public_and_where_the_picture_says(name, box):
    function = attrgetter(name)(keras_vd)
    assert name.partition(".")[0] in keras_vd.__all__
    place = PLACE.match(box.small[0]).group()
    module = f"keras_vd.{place.removesuffix('/').removesuffix('.py')}"
    assert f"{function.__module__}.".startswith(f"{module}.")


def test_the_way_names_the_verbs():
    """Oracle: the README's example, and its one call for all."""
    verbs = {
        "to_variational",
        "prune",
        "to_deterministic",
        "shrink",
        "compress",
    }
    assert verbs < {name for name, _ in CALLS}


def test_every_place_exists():
    places = [x for box in BOXES for x in PLACE.findall(" ".join(box.small))]
    assert {"posteriors/", "pruning.py"} < set(places)
    for place in places:
        assert (PACKAGE / place).exists(), place
        assert (PACKAGE / place).is_dir() == place.endswith("/")


def test_the_step_names_what_a_posterior_has():
    layer = keras_vd.layers.VDDense(2)
    layer.build((None, 3))
    words = " ".join(line for box in BOXES for line in box.lines)
    names = ("theta", "log_sigma2", "prior", "kl_divergence", "kl_weight")
    for name in (*names, "add_loss"):
        assert name in words
        assert hasattr(layer.kernel_posterior, name), name


def test_the_letters_stay_within_their_boxes():
    """Oracle: widths of the glyphs; most other fonts are narrower."""
    step = architecture.COLUMN + architecture.GAP
    for box in BOXES:
        is_code = box.colour == architecture.CALL
        family = "monospace" if is_code else "sans-serif"
        bold = FontProperties(family=family, weight="bold")
        lines = [(x.rpartition(".")[2], LARGE, bold) for x in box.lines]
        lines += [(x, SMALL, FontProperties()) for x in box.small]
        for text, size, font in lines:
            width = TextPath((0, 0), text, size, prop=font).get_extents().width
            assert 0 < width < box.columns * step - architecture.GAP - 6, text
