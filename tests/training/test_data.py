"""Data sets: what is loaded, how it is split and standardised, and what is said of bad files."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets

from manualbp.errors import UsageError
from manualbp.training import data
from manualbp.training.data import Data, Split, batches, in_order, load

PARTS = ("train", "val", "test")


def parts(loaded: Data) -> list[Split]:
    return [getattr(loaded, part) for part in PARTS]


def all_of(loaded: Data, field: str) -> np.ndarray:
    return torch.cat([getattr(split, field) for split in parts(loaded)]).numpy()


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path as the user would give it."""

    def write(content: str | bytes, name: str = "file.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def savez(tmp_path):
    def savez(**arrays) -> str:
        np.savez(tmp_path / "file.npz", **arrays)
        return str(tmp_path / "file.npz")

    return savez


def refused(source: str, *expected: str, **options) -> None:
    """Require one line that names all that is expected."""
    with pytest.raises(UsageError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(source, "")) < 300
    for text in expected:
        assert text in message


def csv_of(rows: int = 40, header: str = "a,b,kind\n") -> str:
    """Return rows with two features and the classes no and yes, in turn."""
    return header + "".join(f"{n}.5,{n * n % 13},{'no' if n % 2 else 'yes'}\n" for n in range(rows))


# The bundled sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "features", "outputs", "task"),
    [
        ("digits", 1797, 64, 10, "classification"),
        ("breast_cancer", 569, 30, 2, "classification"),
        ("iris", 150, 4, 3, "classification"),
        ("wine", 178, 13, 3, "classification"),
        ("diabetes", 442, 10, 1, "regression"),
    ],
)
def test_bundled_sets_are_whole_and_as_documented(name, rows, features, outputs, task):
    loaded = load(name, dtype=torch.float64)
    assert (loaded.name, loaded.task) == (name, task)
    assert (loaded.features, loaded.outputs) == (features, outputs)
    assert len(loaded.train) + len(loaded.val) + len(loaded.test) == rows
    assert re.search(rf"^ +{name} +{rows:,} +{features} +{outputs} ", data.__doc__, re.MULTILINE)

    bunch = getattr(datasets, f"load_{name}")()
    theirs = np.column_stack([bunch["data"], bunch["target"]])
    ours = np.column_stack([all_of(loaded, "x"), all_of(loaded, "t")])
    ours, theirs = (sorted_rows(between_0_and_1(table)) for table in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def between_0_and_1(table: np.ndarray) -> np.ndarray:
    """Undo any standardisation: the smallest value of a column becomes 0, the largest 1."""
    low, high = table.min(0), table.max(0)
    return (table - low) / np.where(high > low, high - low, 1.0)


def sorted_rows(table: np.ndarray) -> np.ndarray:
    return table[np.lexsort(table.round(9).T)]


def test_class_names_stand_in_the_order_of_the_indices():
    assert load("breast_cancer").classes == ("malignant", "benign")
    assert load("iris").classes == ("setosa", "versicolor", "virginica")
    assert load("digits").classes == tuple("0123456789")
    assert load("diabetes").classes == ()


def test_xor_is_the_four_points_in_every_part():
    loaded = load("xor", seed=3)
    assert (loaded.task, loaded.classes) == ("classification", ("0", "1"))
    assert (loaded.features, loaded.outputs) == (2, 2)
    for split in parts(loaded):
        assert split.x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert split.t.tolist() == [0, 1, 1, 0]


def test_an_explicit_task_makes_class_numbers_targets_of_a_regression():
    loaded = load("xor", task="regression")
    assert (loaded.task, loaded.classes, loaded.outputs) == ("regression", (), 1)
    assert loaded.train.t.tolist() == [[0], [1], [1], [0]]


def test_unknown_names_are_refused_with_a_suggestion_and_the_list(tmp_path):
    refused("digit", "'digit'", "did you mean 'digits'?", ", ".join(data.DATASETS), ".csv")
    refused("Breast-Cancer", "did you mean 'breast_cancer'?")
    refused(str(tmp_path / "absent.csv"), "absent.csv", "files that exist")
    refused(str(tmp_path), "there is no data set")
    with pytest.raises(UsageError) as caught:
        load("qqqqqq")
    assert "did you mean" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(write):
    refused(write(csv_of(), "file.xlsx"), "file.xlsx", ".csv and .npz")


@pytest.mark.parametrize("source", ["digits", "xor"])
def test_target_is_for_csv_files_only(source, savez):
    refused(source, "target 'y'", "CSV", target="y")
    refused(savez(x=np.eye(20), t=np.arange(20) % 2), "target 'y'", "CSV", target="y")


# Split, standardisation, conversion ---------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_splits_are_disjoint_and_complete(task, savez):
    # The feature is the row's number, so its standardised values tell the rows apart.
    source = savez(x=np.arange(100.0)[:, None], t=np.arange(100) % 3)
    loaded = load(source, task=task, dtype=torch.float64)
    assert [len(split) for split in parts(loaded)] == [70, 15, 15]
    x = np.sort(all_of(loaded, "x")[:, 0])
    np.testing.assert_allclose(np.diff(x), (x[-1] - x[0]) / 99)


def test_splits_are_stratified():
    loaded = load("wine")
    for k, rows in enumerate([59, 71, 48]):
        for split, share in zip(parts(loaded), [0.7, 0.15, 0.15], strict=True):
            assert abs(int((split.t == k).sum()) - share * rows) <= 1


def classes_in(split: Split) -> int:
    return len(split.t.unique())


def test_every_split_has_every_class(savez):
    rng = np.random.default_rng(0)
    for seed in range(60):
        counts = data.FEWEST_ROWS + rng.integers(0, 8, size=rng.integers(2, 9))
        t = np.repeat(np.arange(len(counts)), counts)
        loaded = load(savez(x=rng.normal(size=(len(t), 1)), t=t), seed=seed)
        assert [classes_in(split) for split in parts(loaded)] == [len(counts)] * 3


def test_with_fewer_rows_a_split_could_lack_a_class(savez, monkeypatch):
    # 21 of 30 rows are for training, 4 of each class and 1 more, which leaves 1 row of that class.
    monkeypatch.setattr(data, "FEWEST_ROWS", 6)
    with pytest.raises(ValueError, match="only 1 member"):
        load(savez(x=np.arange(30.0)[:, None], t=np.repeat(np.arange(5), 6)))


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_the_seed_decides_the_split(name):
    first, again, other = load(name, seed=1), load(name, seed=1), load(name, seed=2)
    for part in PARTS:
        a, b, c = (getattr(loaded, part) for loaded in (first, again, other))
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.t, b.t)
        assert not torch.equal(a.x, c.x)


def test_any_whole_number_is_a_seed():
    for seed in (-1, 2**63):
        assert len(load("iris", seed=seed).train) == 105


def test_features_are_standardised_over_the_training_rows():
    loaded = load("wine", dtype=torch.float64)
    mean, std = loaded.train.x.mean(0), loaded.train.x.std(0, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-12, rtol=0)


def test_regression_targets_are_standardised_over_the_training_rows():
    loaded = load("diabetes", dtype=torch.float64)
    assert loaded.train.t.shape == (309, 1)
    assert loaded.train.t.mean().item() == pytest.approx(0, abs=1e-12)
    assert loaded.train.t.std(correction=0).item() == pytest.approx(1, abs=1e-12)


def test_training_rows_know_nothing_of_the_others(savez):
    number, t = np.arange(100.0), np.arange(100.0) % 9 + 0.5
    before = load(savez(x=number[:, None], t=t), dtype=torch.float64)
    # The numbers keep their order when they are standardised: the rank is the row.
    rows = all_of(before, "x")[:, 0].argsort().argsort()
    others = rows[len(before.train) :]
    number[others] = 1000 * number[others] + 7
    t[others] = -50 * t[others]
    after = load(savez(x=number[:, None], t=t), dtype=torch.float64)
    assert torch.equal(after.train.x, before.train.x)
    assert torch.equal(after.train.t, before.train.t)
    assert not torch.equal(after.val.x, before.val.x)
    assert not torch.equal(after.test.t, before.test.t)


def test_a_constant_feature_becomes_zero_and_not_noise(savez):
    # The mean of many 0.1 is not 0.1 to the last bit, so that their computed std is not 0.
    x = np.column_stack([np.full(40, 0.1), np.arange(40)])
    loaded = load(savez(x=x, t=np.arange(40) % 2), dtype=torch.float64)
    assert x[:28, 0].std() > 0
    for split in parts(loaded):
        assert split.x[:, 0].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_features_and_numbers_to_predict_have_the_dtype(dtype):
    for split in parts(load("diabetes", dtype=dtype)):
        assert split.x.dtype == split.t.dtype == dtype
    for split in parts(load("iris", dtype=dtype)):
        assert split.x.dtype == dtype
        assert split.t.dtype == torch.int64
        assert split.t.shape == (len(split),)


def test_everything_is_computed_in_float64():
    exact, rounded = load("diabetes", dtype=torch.float64), load("diabetes")
    assert torch.equal(exact.train.x.float(), rounded.train.x)
    assert torch.equal(exact.test.t.float(), rounded.test.t)


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
@pytest.mark.parametrize("source", ["diabetes", "iris", "xor"])
def test_everything_lies_on_the_device(source, device):
    for split in parts(load(source, device=device)):
        assert split.x.device.type == split.t.device.type == "meta"


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(4, [4, 4, 2]), (5, [5, 5]), (0, [10]), (1, [1] * 10), (99, [10])],
)
def test_batches_cover_every_row_once_in_the_order(size, sizes):
    split = Split(torch.arange(20.0).view(10, 2), torch.arange(10))
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    got = list(batches(in_order(split, order), size))
    assert [len(batch) for batch in got] == sizes
    assert torch.equal(torch.cat([batch.t for batch in got]), order)
    assert torch.equal(torch.cat([batch.x for batch in got]), split.x[order])


def test_batches_are_views_of_one_permuted_tensor():
    split = Split(torch.arange(20.0).view(10, 2), torch.arange(10))
    got = list(batches(in_order(split, torch.arange(10).flip(0)), 3))
    for field, width in ("x", 2), ("t", 1):
        tensors = [getattr(batch, field) for batch in got]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        assert [tensor.storage_offset() for tensor in tensors] == [
            0,
            3 * width,
            6 * width,
            9 * width,
        ]
    assert split.t.tolist() == list(range(10))


# CSV: what is understood --------------------------------------------------------------------------


def test_a_csv_file_with_a_header(write):
    loaded = load(write(csv_of(), "two.csv"), dtype=torch.float64)
    assert (loaded.name, loaded.task, loaded.classes) == ("two", "classification", ("no", "yes"))
    assert (loaded.features, loaded.outputs) == (2, 2)
    rows = all_of(loaded, "x")[:, 0].argsort()
    assert len(rows) == 40
    assert all_of(loaded, "t")[rows].tolist() == [1, 0] * 20
    expected = np.array([n * n % 13 for n in range(40)])
    np.testing.assert_allclose(
        between_0_and_1(all_of(loaded, "x"))[rows, 1], between_0_and_1(expected), atol=1e-12
    )


def same(a: Data, b: Data) -> bool:
    return a.classes == b.classes and all(
        torch.equal(getattr(split_a, field), getattr(split_b, field))
        for split_a, split_b in zip(parts(a), parts(b), strict=True)
        for field in ("x", "t")
    )


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(csv_of(header=""), id="no header"),
        pytest.param("\ufeff" + csv_of(), id="byte order mark"),
        pytest.param("\ufeff" + csv_of(header=""), id="byte order mark, no header"),
        pytest.param(csv_of().replace("\n", "\r\n"), id="CRLF"),
        pytest.param(csv_of().replace("\n", "\r"), id="CR"),
        pytest.param(csv_of().rstrip("\n"), id="no line end at the end"),
        pytest.param(csv_of() + "\n\n  \n", id="blank lines at the end"),
        pytest.param(csv_of().replace(",", " , ").replace("\n", " \n"), id="blanks around cells"),
        pytest.param(csv_of().replace(",no", ', "no"'), id="quoted text"),
        pytest.param(csv_of(header='a,"b\nc",kind\n'), id="line end in a name"),
    ],
)
def test_variants_of_the_same_file(variant, write):
    assert same(load(write(variant, "a.csv")), load(write(csv_of(), "b.csv")))


def test_a_header_of_numbers_and_the_target_is_seen(write):
    rows = "".join(f"{n},{n * n},{n % 2}\n" for n in range(40))
    assert same(load(write("0,1,kind\n" + rows, "a.csv")), load(write(rows, "b.csv")))


def test_a_header_of_numbers_is_seen_by_the_named_target(write):
    rows = "".join(f"{n},{'ab'[n % 2]},{n * n}\n" for n in range(40))
    loaded = load(write("0,kind,1\n" + rows), target="kind")
    assert loaded.classes == ("a", "b")
    assert len(all_of(loaded, "t")) == 40


def test_the_target_by_name(write):
    rows = "".join(f"{'ab'[n % 2]},{n},{n * n}\n" for n in range(40))
    loaded = load(write("kind,n,square\n" + rows), target="kind", dtype=torch.float64)
    assert loaded.classes == ("a", "b")
    assert loaded.features == 2
    order = all_of(loaded, "x")[:, 0].argsort()
    assert all_of(loaded, "t")[order].tolist() == [0, 1] * 20


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        (["10", "9", "-1"], "classification", ("-1", "9", "10")),
        (["1.0", "0.0", "2"], "classification", ("0", "1", "2")),
        (["b", "10", "9"], "classification", ("10", "9", "b")),
        (["1_0", "2", "3"], "classification", ("1_0", "2", "3")),
        (["0.5", "1", "2"], "regression", ()),
    ],
)
def test_the_task_follows_from_the_targets(targets, task, classes, write):
    loaded = load(write("".join(f"{n},{targets[n % 3]}\n" for n in range(42))))
    assert (loaded.task, loaded.classes) == (task, classes)


def test_an_explicit_task_goes_before(write):
    source = write("".join(f"{n},{n % 3}\n" for n in range(42)))
    loaded = load(source, task="regression")
    assert (loaded.task, loaded.outputs) == ("regression", 1)
    assert len(loaded.train.t.unique()) == 3


# CSV: what is refused -----------------------------------------------------------------------------


def with_line(number: int, line: str) -> str:
    """Return csv_of() with this line (the header is line 1) in the place of another."""
    lines = csv_of().split("\n")
    lines[number - 1] = line
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("1,,no", ("line 9, column 'b'", "missing"), id="missing value"),
        pytest.param("1,  ,no", ("line 9, column 'b'", "missing"), id="blank value"),
        pytest.param("1,2,", ("line 9, column 'kind'", "missing"), id="missing target"),
        pytest.param(",,", ("line 9, column 'a'", "missing"), id="empty cells"),
        pytest.param("1,few,no", ("line 9, column 'b'", "'few' is text", "numbers"), id="text"),
        pytest.param("1_000,2,no", ("line 9, column 'a'", "'1_000' is text"), id="underscore"),
        pytest.param('1,"x\ny",no', ("line 9", r"'x\ny' is text"), id="text of two lines"),
        pytest.param(f"1,{'x' * 500},no", ("line 9", "xxx...'"), id="long text"),
        pytest.param("NaN,2,no", ("line 9, column 'a'", "'NaN'", "finite"), id="NaN"),
        pytest.param("1,-inf,no", ("line 9, column 'b'", "'-inf'", "finite"), id="Inf"),
        pytest.param("1,1e999,no", ("line 9, column 'b'", "'1e999'", "finite"), id="overflow"),
        pytest.param("1,2,nan", ("line 9, column 'kind'", "'nan'", "finite"), id="NaN as class"),
        pytest.param("1,2", ("line 9", "2 cells", "expected 3", "line 1"), id="short row"),
        pytest.param("1", ("line 9", "1 cell;", "expected 3", "line 1"), id="one cell"),
        pytest.param("1,2,3,no", ("line 9", "4 cells", "expected 3"), id="long row"),
        pytest.param('1,2,"no', ("line 9", "quotation mark"), id="open quotation mark"),
        pytest.param('1,2,"n"o', ("line 9", "quotation mark"), id="text after a quotation"),
    ],
)
def test_a_bad_line_is_named(line, expected, write):
    refused(write(with_line(9, line)), "file.csv", *expected)


def test_lines_are_counted_as_in_an_editor(write):
    # A blank line, and a header of two lines, stand before the bad one.
    content = 'a,"b\r\nc",kind\r\n\r\n1,2,no\r\n1,few,no\r\n'
    refused(write(content), "line 5, column", "'few'")


def test_a_file_without_header_names_columns_by_number(write):
    refused(write(csv_of(header="") + "1,few,no\n"), "line 41, column 2 (no header)", "'few'")


def test_a_bad_first_row_is_no_header(write):
    refused(write(csv_of(header="1,few,no\n")), "line 1, column 2 (no header)", "'few'")
    refused(write(csv_of(header="1,,no\n")), "line 1, column 2 (no header)", "missing")
    refused(write(csv_of(header=",,no\n")), "line 1, column 1 (no header)", "missing")
    numbers = "".join(f"{n},{n},{n % 2}\n" for n in range(40))
    refused(write("1,2,\n" + numbers), "line 1, column 3 (no header)", "missing")


def test_a_single_row_of_numbers_is_no_header(write):
    refused(write("1,2,no\n"), "one class", "'no'")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", ("empty",), id="empty"),
        pytest.param("\ufeff\r\n \n", ("empty",), id="blank lines only"),
        pytest.param("a,b,kind\n", ("only a header",), id="header only"),
        pytest.param("kind\nno\nyes\n", ("no feature column", "commas"), id="one column"),
        pytest.param("a;b\n1;2\n", ("separated by ';'", "commas"), id="semicolons"),
        pytest.param(csv_of().encode("utf-16"), ("line 1", "not UTF-8"), id="UTF-16"),
        pytest.param(csv_of().encode() + b"1,2,f\xfcr\n", ("line 42", "UTF-8"), id="Latin-1"),
    ],
)
def test_a_bad_file_is_refused(content, expected, write):
    refused(write(content), "file.csv", *expected)


def test_an_unknown_target_is_refused(write):
    refused(write(csv_of()), "'Kin'", "did you mean 'kind'?", "'a', 'b', 'kind'", target="Kin")
    refused(write(csv_of(header="")), "'kind'", "line 1 is no header", target="kind")
    refused(write(csv_of(header="a,a,kind\n")), "'a' more than once", target="a")
    refused(write(csv_of(header="AGE,b,kind\n")), "did you mean 'AGE'?", target="age")
    header = ",".join(f"c{n}" for n in range(500))
    refused(write(header + "\n"), "'c9', ...", target="qqqqqq")


def test_text_is_refused_as_a_number_to_predict(write, savez):
    refused(write(csv_of()), "line 2, column 'kind'", "'yes' is text", task="regression")
    t = np.array(["no", "yes"] * 20)
    refused(savez(x=np.eye(40), t=t), "'no' is text", "regression", task="regression")


def test_fractions_are_refused_as_classes(write, savez):
    content = "".join(f"{n},{n % 3 / 2}\n" for n in range(42))
    refused(write(content), "target 0.5", "whole numbers", task="classification")
    t = np.ones((40, 2))
    refused(savez(x=np.eye(40), t=t), "(40, 2)", "expected shape (40,)", task="classification")


def test_one_class_is_refused(write, savez):
    refused(write(csv_of().replace("yes", "no")), "one class", "'no'", "two or more")
    refused(savez(x=np.eye(40), t=np.full(40, 3)), "one class", "'3'")


def test_a_class_with_too_few_rows_is_named(write):
    refused(write(csv_of() + "1,2,maybe\n"), "class 'maybe' has 1 row (41 rows, 3 classes)", "7")
    refused(write(csv_of() + "1,2,maybe\n" * 6), "class 'maybe' has 6 rows")
    assert load(write(csv_of() + "1,2,maybe\n" * 7)).outputs == 3


def test_fewer_rows_than_could_hold_the_classes_are_refused(write):
    refused(write("1,a\n2,b\n3,c\n"), "class 'a' has 1 row (3 rows, 3 classes)", "7")


def test_whole_numbers_meant_to_be_predicted_are_told_the_way_out(write):
    source = write("".join(f"{n},{n}\n" for n in range(40)))
    refused(source, "class '0' has 1 row", "set task regression")
    assert load(source, task="regression").task == "regression"


def test_too_few_rows_for_a_regression_are_refused(write):
    rows = [f"{n},{n}.5\n" for n in range(7)]
    refused(write("".join(rows[:6])), "6 rows", "7 or more")
    assert [len(split) for split in parts(load(write("".join(rows))))] == [4, 1, 2]


# NPZ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t", "y"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, bool])
def test_an_npz_file_of_classes(name, dtype, savez):
    x = np.arange(40.0)[:, None]
    loaded = load(savez(x=x, **{name: (np.arange(40) % 2).astype(dtype)}), dtype=torch.float64)
    assert (loaded.name, loaded.task, loaded.classes) == ("file", "classification", ("0", "1"))
    order = all_of(loaded, "x")[:, 0].argsort()
    assert all_of(loaded, "t")[order].tolist() == [0, 1] * 20


def test_an_npz_file_of_class_names(savez):
    loaded = load(savez(x=np.arange(40)[:, None], t=np.array(["yes", "no"] * 20)))
    assert loaded.classes == ("no", "yes")


def test_an_npz_file_of_several_numbers_to_predict(savez):
    t = np.column_stack([np.arange(40), 3 * np.arange(40), -np.arange(40)])
    loaded = load(savez(x=np.arange(40)[:, None], t=t), dtype=torch.float64)
    assert (loaded.task, loaded.features, loaded.outputs) == ("regression", 1, 3)
    for split in parts(loaded):
        torch.testing.assert_close(split.t, split.x * torch.tensor([1.0, 1.0, -1.0]))


X, T = np.arange(80.0).reshape(40, 2), np.arange(40) % 2


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        pytest.param({"a": X, "b": T}, ("no array 'x'", "'a', 'b'"), id="no x"),
        pytest.param({"x": X, "labels": T}, ("no array 't' or 'y'", "'x', 'labels'"), id="no t"),
        pytest.param({}, ("no array 'x'", "none"), id="no array"),
        pytest.param({"x": X.reshape(40, 2, 1), "t": T}, ("(40, 2, 1)", "(N, I)"), id="rank of x"),
        pytest.param({"x": X[:, 0], "t": T}, ("'x' has shape (40,)", "(N, I)"), id="x of rank 1"),
        pytest.param({"x": X[:, :0], "t": T}, ("(40, 0)", "(N, I)"), id="no feature"),
        pytest.param({"x": X[:0], "t": T[:0]}, ("(0, 2)", "(N, I)"), id="no row"),
        pytest.param(
            {"x": X, "y": T[:, None, None]}, ("'y' has shape (40, 1, 1)", "(N, O)"), id="rank of y"
        ),
        pytest.param({"x": X, "t": X[:, :0]}, ("'t' has shape (40, 0)",), id="no target column"),
        pytest.param({"x": X, "t": 3}, ("'t' has shape ()",), id="one target"),
        pytest.param({"x": X, "t": T[:39]}, ("'x' has 40 rows", "'t' has 39"), id="lengths"),
        pytest.param({"x": X.astype(str), "t": T}, ("'x' has type <U", "numbers"), id="text in x"),
        pytest.param({"x": X + 0j, "t": T}, ("'x' has type complex",), id="complex x"),
        pytest.param({"x": X, "t": X.astype(str)}, ("'t' has type <U",), id="text of rank 2"),
    ],
)
def test_bad_arrays_are_refused(arrays, expected, savez):
    refused(savez(**arrays), "file.npz", *expected)


@pytest.mark.parametrize("factor", [2.0**1000, 2.0**-1000])
def test_numbers_whose_squares_overflow_are_standardised_as_others(factor, savez):
    usual, large = (load(savez(x=x, t=T)) for x in (X, X * factor))
    assert torch.equal(usual.train.x, large.train.x)


def test_numbers_that_are_not_finite_are_located(savez):
    x, t = X.copy(), X.copy()
    x[3, 1] = np.nan
    refused(savez(x=x, t=T), "x[3, 1] is nan", "finite")
    t[5, 0] = -np.inf
    refused(savez(x=X, t=t), "t[5, 0] is -inf", "finite")
    refused(savez(x=X, y=t[:, 0]), "y[5] is -inf", "finite")


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("bad", ["x", "t"])
def test_pickled_objects_are_refused_and_not_executed(bad, savez, tmp_path):
    mark = tmp_path / "mark"
    objects = np.array([Bomb(mark)] * 40, dtype=object)
    source = savez(**({"x": X, "t": T} | {bad: objects}))
    refused(source, f"array {bad!r}", "numbers or text")
    assert not mark.exists()
    with np.load(source, allow_pickle=True) as archive:  # the bomb is a real one
        assert archive[bad].shape == (40,)
    assert mark.exists()


def test_a_pickle_named_npz_is_refused_and_not_executed(write, tmp_path):
    mark = tmp_path / "mark"
    refused(write(pickle.dumps(Bomb(mark)), "file.npz"), "not an .npz file")
    assert not mark.exists()


def test_a_file_that_is_no_npz_is_refused(write):
    refused(write(csv_of(), "file.npz"), "file.npz", "not an .npz file", "numpy.savez")
    refused(write("", "file.npz"), "not an .npz file")
    npy = io.BytesIO()
    np.save(npy, X)
    refused(write(npy.getvalue(), "file.npz"), "not an .npz file")


def test_a_truncated_npz_file_is_refused(write, savez):
    content = Path(savez(x=X, t=T)).read_bytes()
    for length in (1, 40, len(content) // 2, len(content) - 1):
        refused(write(content[:length], "cut.npz"), "cut.npz", "cut short")


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no header", id="no header"),
        pytest.param(b"\x93NUMPY\x01\x00\x02\x00{(", id="broken header"),
        pytest.param(
            b"\x93NUMPY\x01\x00\x46\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 9)}".ljust(0x46),
            id="terabytes",
        ),
        pytest.param(b"\x93NUMPY\x01\x00\x98\x3a" + b" " * 15000, id="reason of several lines"),
    ],
)
def test_a_damaged_array_is_refused(array, tmp_path):
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("x.npy", array)
        archive.writestr("t.npy", array)
    refused(str(tmp_path / "file.npz"), "array 'x' cannot be read", "numpy.savez")


def test_only_npy_members_are_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("x", b"")
        archive.writestr("t.npy", b"")
    refused(str(tmp_path / "file.npz"), "no array 'x'; in the file: 't'")


def test_a_changed_byte_is_found(savez, write):
    content = bytearray(Path(savez(x=X, t=T)).read_bytes())
    content[400] ^= 1
    refused(write(bytes(content), "file.npz"), "array 'x' cannot be read")


def test_arrays_that_are_not_asked_for_are_not_read(savez):
    source = savez(x=X, t=T, meta=np.array([{}], dtype=object))
    assert load(source).features == 2


# Files that cannot be read ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file.csv", "file.npz"])
def test_a_directory_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    refused(str(tmp_path / name), name, "cannot be read")


def test_a_forbidden_file_is_refused(write, monkeypatch):
    # Not by chmod: it stops no superuser, and tests may run as one.
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    source = write(csv_of())
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    refused(source, "file.csv", "cannot be read", "Permission denied")
