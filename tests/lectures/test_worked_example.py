"""The worked 2-2-2 example of Cazenave and Krzywicki: every number, in both orders of updating."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from manualbp.explain.networks import flat, float64
from manualbp.explain.registry import topics
from manualbp.explain.worked import (
    Biases,
    Example,
    Order,
    Point,
    batch_results,
    error_of_printed_weights,
    example,
    parameters,
    plain_course,
    printed_products,
    quantities,
    recovered_weights,
    sequential_gradient,
)
from manualbp.lectures import rounds_to, setting

AT = (0, 1, 2, 3, 10, 100, 1000, 9999, 10000, 10001)
BIASES: tuple[Biases, ...] = ("fixed", "own", "shared")
ORDERS: dict[str, Order] = {"orig": "original", "upd": "updated"}
MODES = [(biases, short) for biases in BIASES for short in ORDERS]


@cache
def course(biases: Biases, short: str) -> dict[int, Point]:
    return {point.updates: point for point in example().course(AT, biases, ORDERS[short])}


def numbers(point: Point) -> list[float]:
    return [point.error, *point.outputs]


@pytest.mark.figures("C.net_*", "C.out_*", "C.E_o?", "C.E_total", "C.E_initial_again")
@pytest.mark.figures("C.d*", "C.w?_new")
@pytest.mark.figures("S222.net_*", "S222.d*", "S222.??_new")
def test_every_number_on_the_way(lecture: Any) -> None:
    q = quantities(example())
    for name in lecture.names:
        lecture.expect(name, q[name.partition(".")[2]])


@pytest.mark.figures("Z.net_*", "Z.out_*", "Z.dE*", "Z.dout*", "Z.dnet*", "Z.w?_new")
def test_krzywicki_prints_the_same(lecture: Any) -> None:
    q = quantities(example())
    for name in lecture.names:
        lecture.expect(name, q[name.partition(".")[2]])


@pytest.mark.figures("Z.delta_signs")
def test_krzywickis_deltas_have_the_other_sign(lecture: Any) -> None:
    q = quantities(example())
    lecture.expect("Z.delta_signs", [-q[f"dE_dnet_{unit}"] for unit in ("o1", "o2", "h1", "h2")])


@pytest.mark.figures("C.given.*", "Z.given.inputs", "Z.given.targets_used", "Z.given.eta")
def test_what_is_given(lecture: Any) -> None:
    worked, exercise = example(), example("E211")
    weights = parameters(worked.net.params)
    given = {
        "inputs": worked.x[0],
        "targets": worked.target[0],
        "w1": weights[0],
        "w2": weights[1],
        "w5": weights[4],
        "w6": weights[5],
        "b1": weights[8],
        "b2": weights[10],
        "eta": worked.eta,
        "targets_used": worked.target[0, 0],
        "exercise_inputs": exercise.x[0],
        "exercise_target": exercise.target[0, 0],
        "iterations": AT[-2],
    }
    for name in lecture.names:
        lecture.expect(name, given[name.split(".")[-1]], 0)
    assert weights[8:] == [0.35, 0.35, 0.6, 0.6]


@pytest.mark.figures("C.recovered")
def test_the_weights_of_the_lost_picture_follow_from_the_text(lecture: Any) -> None:
    lecture.expect("C.recovered", recovered_weights())
    weights = parameters(example().net.params)
    assert recovered_weights() == pytest.approx([weights[k] for k in (2, 3, 6, 7)], abs=1e-7)


@pytest.mark.figures("C.printed_products")
def test_products_of_printed_numbers(lecture: Any) -> None:
    lecture.expect("C.printed_products", printed_products())


@pytest.mark.figures("S222.traj.*", "S222.final.*")
@pytest.mark.parametrize(("biases", "short"), MODES)
def test_every_way_to_train(lecture: Any, biases: Biases, short: str) -> None:
    mode = f"{biases}.{short}"
    for name in list(lecture.names):
        if mode not in name:
            lecture.names.remove(name)  # another case of this test reads it
    points = course(biases, short)
    for updates in AT:
        lecture.expect(f"S222.traj.{mode}.{updates}", numbers(points[updates]))
        # E is the smallest of the three numbers, and so is held by itself as well.
        assert points[updates].error == pytest.approx(
            lecture[f"S222.traj.{mode}.{updates}"].value[0], rel=1e-11
        )
    lecture.expect(f"S222.final.{mode}", points[10000].parameters)


@pytest.mark.parametrize(("biases", "short"), MODES)
def test_plain_arithmetic_gives_the_same(biases: Biases, short: str) -> None:
    point = course(biases, short)[10000]
    plain = plain_course(example(), 10000, biases, ORDERS[short])
    assert plain == pytest.approx(numbers(point), rel=1e-12)


@pytest.mark.figures("C.E_after_1", "C.E_after_10000", "C.o?_after_10000")
@pytest.mark.figures("C.E_from_printed_outputs", "C.E_from_printed_weights")
def test_the_printed_results_come_from_the_updated_weights(lecture: Any) -> None:
    points = course("fixed", "upd")
    one, last = points[1], points[10000]
    lecture.expect("C.E_after_1", one.error)
    lecture.expect("C.E_after_10000", last.error)
    for k in (1, 2):
        lecture.expect(f"C.o{k}_after_10000", last.outputs[k - 1])

    outputs = [float(lecture[f"C.o{k}_after_10000"].printed) for k in (1, 2)]
    worked = example()
    error, _ = worked.net.loss.forward(float64([outputs]), worked.target)
    lecture.expect("C.E_from_printed_outputs", float(error))
    assert rounds_to(float(error), lecture["C.E_after_10000"].printed)
    # ... while the printed weights give what the stated rule gives, and not what is printed.
    lecture.expect("C.E_from_printed_weights", error_of_printed_weights())
    assert not rounds_to(error_of_printed_weights(), lecture["C.E_after_1"].printed)


@pytest.mark.figures("C.E_after_1", "C.E_after_10000", "C.o?_after_10000")
def test_no_other_variant_and_no_other_count_gives_them(lecture: Any) -> None:
    printed = [lecture[name].printed for name in sorted(lecture.names)]
    found = [
        (mode, updates)
        for mode in MODES
        for updates in (9999, 10000, 10001)
        if all(
            map(
                rounds_to,
                [course(*mode)[1].error, *numbers(course(*mode)[updates])],
                printed,
            )
        )
    ]
    assert found == [(("fixed", "upd"), 10000)]


@pytest.mark.figures("S222_seq.w?_new", "K.trap.sequential")
def test_the_sequential_order_is_not_the_gradient(lecture: Any) -> None:
    weights = course("fixed", "upd")[1].parameters
    for k in range(1, 5):
        lecture.expect(f"S222_seq.w{k}_new", weights[k - 1])
    right, wrong = lecture["K.trap.sequential"].value
    gradient = parameters(example().training().gradients())[:4]
    assert gradient == pytest.approx(right, rel=1e-12)
    assert sequential_gradient(example()) == pytest.approx(wrong, rel=1e-12)
    assert gradient != pytest.approx(wrong, rel=0.1)


def test_the_first_layer_alone_knows_of_the_order() -> None:
    for biases in BIASES:
        original, updated = (course(biases, short)[1].parameters for short in ORDERS)
        assert original[4:8] == updated[4:8]
        assert original[10:] == updated[10:]
        assert original[:4] != updated[:4]


@pytest.mark.figures("S222.float32")
def test_float32(lecture: Any) -> None:
    (point,) = example().to(torch.float32).course([10000])
    # A few roundings of 6e-8: what training does with an error of rounding is to correct it.
    lecture.expect("S222.float32", numbers(point), 3e-7)


@pytest.mark.figures("Z.target0.1", "Z.given.targets_stated")
def test_the_target_0_1_gives_none_of_the_printed_numbers(lecture: Any) -> None:
    names = ("E_total", "dE_dout_o1", "dE_dw5", "w5_new", "w6_new", "dE_dout_h1", "w1_new")
    stated = lecture["Z.given.targets_stated"].value
    worked = example()
    q = quantities(worked)
    other = quantities(Example(worked.net, worked.x, float64([stated]), worked.eta))
    assert flat(example("S222_t0.1").target) == stated
    lecture.expect("Z.target0.1", [other[name] for name in names])
    for name, trap in zip(names, lecture["Z.target0.1"].value, strict=True):
        assert q[name] != pytest.approx(trap, rel=1e-4)


@pytest.mark.figures("Z.trap.transposed_W2")
def test_the_error_is_not_sent_back_through_the_transposed_weights(lecture: Any) -> None:
    right, wrong = lecture["Z.trap.transposed_W2"].value
    worked = example()
    assert quantities(worked)["dE_dout_h1"] == pytest.approx(right, rel=1e-12)
    output = worked.net.stages(worked.x, worked.net.output_error(worked.x, worked.target))[2]
    transposed = worked.net.copy()
    weight = transposed.params.views["2"].weight
    weight.copy_(weight.T.clone())
    views, grads = transposed.params.views["2"], transposed.params.zeros_like().views["2"]
    dx = output.layer.backward(views, output.saved, output.dy, grads)
    assert float(dx[0, 0]) == pytest.approx(wrong, rel=1e-12)


@pytest.mark.figures("Z.trap.w3_label")
def test_net_h1_takes_w2(lecture: Any) -> None:
    right, wrong = lecture["Z.trap.w3_label"].value
    worked = example()
    assert quantities(worked)["net_h1"] == pytest.approx(right, rel=1e-12)
    relabelled = worked.net.copy()
    weight = relabelled.params.views["0"].weight
    weight[0, 1] = setting("S222")["weights"]["w3"]
    changed = Example(relabelled, worked.x, worked.target, worked.eta)
    assert quantities(changed)["net_h1"] == pytest.approx(wrong, rel=1e-12)


@pytest.mark.figures("C.matrix.batch3")
def test_matrices_sum_over_a_batch(lecture: Any) -> None:
    batch = example("S222_batch3")
    lecture.expect("C.matrix.batch3", batch_results(batch))
    parts = zip(torch.split(batch.x, 1), torch.split(batch.target, 1), strict=True)
    alone = [batch_results(Example(batch.net, x, t, batch.eta)) for x, t in parts]
    for k in (1, 2):
        total = torch.stack([results[k] for results in alone]).sum(0)
        assert torch.allclose(batch_results(batch)[k], total, rtol=0, atol=1e-15)


def test_the_page() -> None:
    page = topics()["worked-example"].page()
    assert page.wrong == []
    assert page.checked > 70
