"""Every picture of every topic is drawn: it says something, and nothing is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from manualbp.explain.page import Drawing
from manualbp.explain.registry import topics

WITHOUT = {"moments", "online-and-batch", "errata", "exercise-2-1-1"}
"""Topics of the lectures that have words and numbers only."""


def lecture_topics() -> list[str]:
    layers = ("manualbp.explain.topics.layers", "manualbp.explain.topics.losses")
    return [
        name
        for name, entry in topics().items()
        if entry.write.__module__ not in layers and name not in WITHOUT
    ]


@pytest.mark.parametrize("name", lecture_topics())
def test_the_pictures_of_a_topic_are_drawn(name: str) -> None:
    drawings = [item for item in topics()[name].page().items if isinstance(item, Drawing)]
    assert drawings
    for drawing in drawings:
        picture = drawing.draw()
        canvas = FigureCanvasAgg(picture)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        assert drawing.caption
        assert picture.axes
        for axes in picture.axes:
            assert axes.lines or axes.images or axes.patches or axes.texts, drawing.name
        assert (pixels < 250).any(axis=2).mean() > 0.005, "blank"
        edge = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((side > 250).all() for side in edge), "cut off"
