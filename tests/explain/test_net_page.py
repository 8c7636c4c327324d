"""The walk over a network of one's own: it is right, it notices when it is not, it reads files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from manualbp.errors import UsageError
from manualbp.explain import command
from manualbp.explain.net_page import LOSSES, network_page
from manualbp.explain.page import Given, Line, Page, Paragraph
from manualbp.explain.worked import example, quantities
from manualbp.layers import Linear, Tanh
from manualbp.losses import CrossEntropyLoss
from manualbp.models import ACTIVATIONS
from manualbp.optimizers import SGD

WORKED = {
    "inputs": [0.05, 0.1],
    "targets": [0.01, 0.99],
    "weights": [[[0.15, 0.2], [0.25, 0.3]], [[0.4, 0.45], [0.5, 0.55]]],
    "biases": [[0.35, 0.35], [0.6, 0.6]],
    "learning_rate": 0.5,
    "output_activation": "sigmoid",
}


def walked(
    net: str = "3-4-2",
    activation: str = "tanh",
    loss: str = "cross-entropy",
    values: Path | None = None,
    seed: int = 0,
) -> Page:
    return network_page(net, activation, loss, values, seed)


def lines(page: Page) -> dict[str, Line]:
    return {item.name: item for item in page.items if isinstance(item, Line)}


def given(page: Page) -> dict[str, Any]:
    return {item.name: item.value for item in page.items if isinstance(item, Given)}


def text(page: Page) -> str:
    return " ".join(item.text for item in page.items if isinstance(item, Paragraph))


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "values.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_activations(activation: str) -> None:
    page = walked("2-3-3-2", activation, "half-squared-error", seed=3)
    assert page.wrong == []
    assert page.checked > 30


@pytest.mark.parametrize("loss", LOSSES)
def test_all_losses_with_several_examples(loss: str, file: Any) -> None:
    targets = [[1, 0], [0, 1]]
    values = file({"inputs": [[1, 2, 3], [0.5, -1, 0]], "targets": targets})
    page = walked(loss=loss, values=values)
    assert page.wrong == []
    assert {"a1[1,1]", "a1[2,4]", "dW1[4,i]", "new E"} <= lines(page).keys()


@pytest.mark.parametrize("net", ["5-1", "20-12-5", "7-2-2"])
def test_larger_networks_go_matrix_by_matrix(net: str) -> None:
    page = walked(net, "relu", "mse")
    assert page.wrong == []
    assert ("a1[n,j]" in lines(page)) == (net != "5-1")
    assert ("a1[1]" in lines(page)) == (net == "5-1")


def test_the_worked_example_comes_out(file: Any) -> None:
    page = walked("2-2-2", "sigmoid", "half-squared-error", file(WORKED))
    found, expected = lines(page), quantities(example())
    names = {"a1[2]": "net_h2", "y[1]": "out_o1", "da2[2]": "dE_dnet_o2", "dh1[1]": "dE_dout_h1"}
    names |= {"E": "E_total", "a2[1]": "net_o1", "da1[2]": "dE_dnet_h2"}
    for ours, theirs in names.items():
        assert found[ours].value == pytest.approx(expected[theirs], rel=1e-12)
    new = [[expected[f"w{k}_new"] for k in pair] for pair in ((1, 2), (3, 4))]
    assert found["new W1"].value == [pytest.approx(row, rel=1e-12) for row in new]
    (own,) = example().course([1], "own")
    assert found["new E"].value == pytest.approx(own.error, rel=1e-12)
    assert page.wrong == []


def plainly(numbers: str) -> float:
    """Compute what stands in a line."""
    for sign, python in (("·", "*"), ("½ ", "0.5*"), ("²", "**2")):
        numbers = numbers.replace(sign, python)
    return eval(re.sub(r"(\d) \(", r"\1*(", numbers), {})


@pytest.mark.parametrize("loss", LOSSES)
def test_the_numbers_that_are_put_in_give_the_result(loss: str, file: Any) -> None:
    values = file({"inputs": [[1, 2], [0.5, -1]], "targets": [[1, 0], [0, 1]]})
    computed = 0
    for path in (values, None):
        for line in lines(walked("2-2-2", "tanh", loss, path)).values():
            if line.numbers and not re.search(r"[\[a-z^]", line.numbers):
                computed += 1
                assert isinstance(line.value, float)
                assert plainly(line.numbers) == pytest.approx(line.value, rel=1e-4, abs=1e-5)
    assert computed > 20


@pytest.mark.parametrize(
    ("layer", "method", "wrong_lines"),
    [
        (Tanh, "forward", {"h1[1]", "new E"}),
        (Tanh, "backward", {"da1[1]", "dW1[1,i]", "db1[j]"}),
        (Linear, "forward", {"a1[1]", "a2[1]"}),
        (CrossEntropyLoss, "backward", {"da2[1]", "dW2[1,i]", "dW1[1,i]"}),
    ],
)
def test_a_wrong_pass_is_seen(
    layer: Any, method: str, wrong_lines: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(layer, method)

    def wrong(*arguments: Any, **keywords: Any) -> Any:
        result = right(*arguments, **keywords)
        if method == "forward":
            return result[0] * 1.001, result[1]
        return result * 1.001

    monkeypatch.setattr(layer, method, wrong)
    assert wrong_lines <= {line.name for line in walked().wrong if isinstance(line, Line)}


def test_a_wrong_update_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SGD.update

    def wrong(self: SGD, params: Any, grads: Any, state: Any, coefficients: Any) -> None:
        right(self, params, grads * 1.001, state, coefficients)

    monkeypatch.setattr(SGD, "update", wrong)
    found = {line.name for line in walked().wrong if isinstance(line, Line)}
    assert found == {"new W1", "new b1", "new W2", "new b2"}


def test_units_on_a_kink(file: Any) -> None:
    """(0, 0) and (1, 1) put both hidden units on the kink of ReLU."""
    xor = {
        "inputs": [[0, 0], [1, 1]],
        "targets": [0, 1],
        "weights": [[[1, -1], [-1, 1]], [[1, 1], [-1, -1]]],
    }
    page = walked("2-2-2", "relu", "cross-entropy", file(xor))
    assert page.wrong == []
    assert lines(page)["da1[1,1]"].value == 0
    assert "stands on a kink" in text(page)
    assert "stands on a kink" not in text(walked("2-2-2", "relu", seed=1))


def test_a_rate_that_is_too_large_is_named(file: Any) -> None:
    small = WORKED | {"output_activation": "linear"}
    large = small | {"learning_rate": 10}
    assert "The error falls" in text(walked("2-2-2", "tanh", "mse", file(small)))
    assert "does not fall" in text(walked("2-2-2", "tanh", "mse", file(large)))


def test_saturated_units(file: Any) -> None:
    values = WORKED | {"inputs": [800, -900]}
    for loss in ("mse", "half-squared-error"):
        assert walked("2-2-2", "sigmoid", loss, file(values)).wrong == []
    del values["output_activation"]
    assert walked("2-2-2", "softplus", "bce", file(values)).wrong == []


# Where the numbers are from


def test_the_seed_draws_what_is_not_given() -> None:
    assert walked(seed=1) == walked(seed=1)
    assert given(walked(seed=1)) != given(walked(seed=2))
    drawn = given(walked(seed=1))
    assert len(drawn["W1"]) == 4
    assert drawn["W1"] == [[round(w, 2) for w in row] for row in drawn["W1"]]
    assert sorted(drawn["t"]) == [0, 1]


def test_what_is_given_is_taken(file: Any) -> None:
    found = given(walked("2-2-2", "sigmoid", "half-squared-error", file(WORKED)))
    assert found["x"] == WORKED["inputs"]
    assert found["t"] == WORKED["targets"]
    assert [found["W1"], found["W2"]] == WORKED["weights"]
    assert [found["b1"], found["b2"]] == WORKED["biases"]
    assert found["η"] == 0.5


def test_biases_are_0_where_only_weights_are_given(file: Any) -> None:
    found = given(walked("2-2-2", "tanh", "mse", file({"weights": WORKED["weights"]})))
    assert found["b1"] == found["b2"] == [0, 0]
    assert found["η"] == 0.1


def test_classes_may_be_given_by_number(file: Any) -> None:
    numbers = file({"inputs": [[1, 2, 3], [3, 2, 1]], "targets": [1, 0]})
    rows = file({"inputs": [[1, 2, 3], [3, 2, 1]], "targets": [[0, 1], [1, 0]]}, "rows.json")
    assert walked(values=numbers) == walked(values=rows)
    assert given(walked(values=file({"inputs": [1, 2, 3], "targets": 1})))["t"] == [0, 1]


def test_csv(file: Any) -> None:
    plain = file("0,0,1,0\n0,1,0,1\n", "plain.csv")
    titled = file("x1,x2,t1,t2\n\n0,0,1,0\n0,1,0,1\n", "titled.csv")
    classes = file("x1,x2,class\n0,0,0\n0,1,1\n", "classes.csv")
    pages = [walked("2-3-2", values=path) for path in (plain, titled, classes)]
    assert pages[0] == pages[1] == pages[2]
    assert given(pages[0])["x"] == [[0, 0], [0, 1]]
    assert pages[0].wrong == []
    single = walked("2-1", loss="bce", values=file("0.5,1,1\n", "single.csv"))
    assert given(single)["t"] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": "3"}, "--net 3: expected the widths of its layers, inputs first, such as 3-4-2"),
        ({"net": "3-0-2"}, "--net 3-0-2: expected the widths"),
        ({"net": "784-300-10"}, "has 238,510 parameters: a walk takes at most 5,000"),
        ({"activation": "sigmiod"}, "--activation sigmiod: did you mean sigmoid?"),
        ({"loss": "msee"}, "--loss msee: did you mean mse?"),
        ({"net": "3-1"}, "--net 3-1 has one output: use --loss bce, or a second output"),
    ],
)
def test_what_cannot_be_walked(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        walked(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "expected an object with the keys inputs, targets, weights"),
        ({"weigths": []}, "there is no key 'weigths'; did you mean weights?"),
        ({"inputs": [1, 2]}, "inputs: the shape is 1 x 2, expected N x 3"),
        ({"inputs": []}, "inputs: the shape is 1 x 0, expected N x 3"),
        ({"inputs": 3}, "inputs: expected a list, found 3"),
        ({"inputs": [[1, 2, 3], [1, 2]]}, "inputs: expected numbers, in lists of equal length"),
        ({"inputs": ["1", 2, 3]}, "inputs: expected numbers"),
        ({"inputs": [10**400, 2, 3]}, "inputs: expected numbers"),
        ('{"inputs": [1, 2, -1e200]}', "inputs: expected numbers of at most 1e+50"),
        ('{"inputs": [1, 2, NaN]}', "inputs: expected finite numbers"),
        ({"targets": [0]}, "there are targets without inputs"),
        ({"inputs": [[1, 2, 3]], "targets": [0, 1]}, "targets: there are 2 for 1 rows of inputs"),
        ({"inputs": [1, 2, 3], "targets": 2}, "targets: 2 is no class, expected 0 to 1"),
        ({"inputs": [1, 2, 3], "targets": [0.5, 0.4]}, "should sum to 1"),
        ({"inputs": [1, 2, 3], "targets": [2, -1]}, "takes probabilities, from 0 to 1"),
        ({"weights": [[[1]]]}, "weights: there are 1 entries for 2 layers"),
        ({"weights": [[[1]], [[1]]]}, "weights of layer 1: the shape is 1 x 1, expected 4 x 3"),
        ({"biases": [[1, 2], [1]]}, "biases of layer 1: the shape is 2, expected 4"),
        ({"learning_rate": [1]}, "learning_rate: the shape is 1, expected 1 number"),
        ({"learning_rate": 0}, "learning_rate is 0, expected a number above 0"),
        ({"output_activation": "tan"}, "output_activation 'tan': did you mean tanh?"),
        ({"output_activation": "tanh"}, "--loss cross-entropy wants linear outputs"),
    ],
)
def test_json_that_does_not_fit(content: Any, message: str, file: Any) -> None:
    path = file(content)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        walked(values=path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y\n", "there is no row of numbers"),
        ("1,2,3\n", "line 1 has 3 cells, expected 4 or 5: 3 inputs, then the targets"),
        ("1,2,3,0\n\n1,2,x,0\n", "line 3, column 3 is 'x', expected a number"),
        ("1,2,3,inf\n", "line 1, column 4 is 'inf', expected a number"),
        ("1,2,3,5\n", "targets: 5.0 is no class, expected 0 to 1"),
    ],
)
def test_csv_that_does_not_fit(content: str, message: str, file: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        walked(values=file(content, "values.csv"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a \.json or a \.csv file"):
        walked(values=tmp_path / "values.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        walked(values=tmp_path / "values.json")


def test_the_file_that_the_readme_shows_is_the_worked_example(file: Any) -> None:
    readme = Path(command.__file__).with_name("README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```json\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert [json.loads(text) for text in shown] == [WORKED]
