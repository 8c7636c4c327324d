"""A layer as a subject: the same numbers as the layer's own passes, on the very tensors."""

import torch

from manualbp.checks.agreement import by_hand, make_inputs
from manualbp.checks.doctor.subject import AccumulatingPass, LayerSubject
from manualbp.checks.registry import layer_cases


def test_a_layer_gives_its_own_gradients():
    for case in layer_cases():
        inputs = make_inputs(case, torch.float64, "cpu", 0)
        expected = by_hand(case.layer, inputs, training=case.training)
        subject = LayerSubject(case.layer, case.training)
        done = subject.run({"x": inputs.x, **inputs.parameters.named()})
        gradients = done.backward([inputs.dy])
        assert torch.equal(done.outputs[0], expected.pop("y"))
        assert {f"d{name}" for name in gradients} == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[f"d{name}"], rtol=1e-12, atol=1e-12)


def test_a_layer_adds_to_what_is_there():
    case = next(case for case in layer_cases() if case.layer.shapes())
    inputs = make_inputs(case, torch.float64, "cpu", 0)
    arguments = {"x": inputs.x, **inputs.parameters.named()}
    done = LayerSubject(case.layer, case.training).run(arguments)
    assert isinstance(done, AccumulatingPass)
    once = done.backward([inputs.dy])
    start = {name: torch.ones_like(w) for name, w in inputs.parameters.named().items()}
    summed = done.backward_onto([inputs.dy], start)
    for name, one in start.items():
        assert torch.equal(one, torch.ones_like(one))
        torch.testing.assert_close(summed[name], once[name] + 1)
