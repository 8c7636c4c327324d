"""The 2-1-1 exercise of Cazenave, with weights of our own, in four ways to train it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from manualbp.explain.registry import topics
from manualbp.explain.topics.worked_example import EXERCISE, exercise_course
from manualbp.explain.worked import Point, example, parameters
from manualbp.lectures import setting

AT = (0, 1, 2, 10, 100, 1000, 10000)


@cache
def course(mode: str) -> list[Point]:
    return exercise_course(mode, AT)


@pytest.mark.figures("E211.forward")
def test_forward_and_error(lecture: Any) -> None:
    worked = example("E211")
    net = worked.net
    stages = net.stages(worked.x, net.output_error(worked.x, worked.target))
    error = net.error(worked.x, worked.target)
    lecture.expect("E211.forward", [*(float(stage.y) for stage in stages), error])


@pytest.mark.figures("E211.grads")
def test_gradients(lecture: Any) -> None:
    lecture.expect("E211.grads", parameters(example("E211").training("own").gradients()))


@pytest.mark.figures(*(f"E211.{mode}.*" for mode in EXERCISE))
def test_training(lecture: Any) -> None:
    for mode in EXERCISE:
        for point in course(mode):
            numbers = [point.error, *point.outputs, *point.parameters]
            lecture.expect(f"E211.{mode}.{point.updates}", numbers)
            error = lecture[f"E211.{mode}.{point.updates}"].value[0]
            if error > 1e-20:  # below, E is nothing but rounding
                # E is ½ (out - t)², so it loses as many digits as out - t does.
                assert point.error == pytest.approx(error, rel=1e-12, abs=1e-15 * error**0.5)


@pytest.mark.parametrize("mode", EXERCISE)
def test_the_output_reaches_its_target(mode: str) -> None:
    (output,) = course(mode)[-1].outputs
    assert output == pytest.approx(setting("E211")["target"], abs=1e-14)


def test_the_ways_differ() -> None:
    ends = {mode: tuple(course(mode)[-1].parameters) for mode in EXERCISE}
    assert len(set(ends.values())) == len(EXERCISE)


def test_the_page() -> None:
    page = topics()["exercise-2-1-1"].page()
    assert page.wrong == []
    assert page.checked > 10
