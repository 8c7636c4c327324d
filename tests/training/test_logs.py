"""What RunLogs writes, read back as TensorBoard reads it."""

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from manualbp.errors import UsageError
from manualbp.training import logs as logs_module
from manualbp.training.last_update import LastUpdate
from manualbp.training.logs import RunLogs

# TensorBoard comes without types.
accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
page_accumulator: Any = import_module(
    "tensorboard.backend.event_processing.plugin_event_accumulator"
)
multiplexer: Any = import_module("tensorboard.backend.event_processing.event_multiplexer")
record_writer: Any = import_module("tensorboard.summary.writer.record_writer")
hparams_metadata: Any = import_module("tensorboard.plugins.hparams.metadata")

NAMES = ("0.weight", "0.bias")


def read(directory: Path) -> Any:
    everything = accumulator.STORE_EVERYTHING_SIZE_GUIDANCE
    return accumulator.EventAccumulator(str(directory), everything).Reload()


def read_as_page(directory: Path) -> Any:
    """Read as `tensorboard --load_fast=false` does: all values are tensors."""
    return page_accumulator.EventAccumulator(str(directory), {"tensors": 0}).Reload()


def runs(logdir: Path) -> dict[str, list[str]]:
    """Return the runs that TensorBoard finds in a directory, each with its tags."""
    found = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload().Runs()
    return {
        run: [*tags["scalars"], *tags["histograms"], *tags["images"], *tags["tensors"]]
        for run, tags in found.items()
    }


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(directory)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def histogram(run: Path, tag: str) -> Any:
    """Return the only histogram of that tag."""
    (event,) = read(run / "train").Histograms(tag)
    return event.histogram_value


def picture(run: Path) -> NDArray[np.uint8]:
    (event,) = read(run / "val").Images("result/confusion_matrix")
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def an_update(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
) -> LastUpdate:
    """Return an update that left the weights as they are."""
    return LastUpdate(weights, weights, weights if gradients is None else gradients)


def log_epoch(logs: RunLogs, epoch: int) -> None:
    """Log all that a run logs in an epoch; the numbers differ by epoch and by tag."""
    logs.epoch(
        epoch,
        train={"loss": 1 / epoch, "accuracy": 1 - 0.9 / epoch},
        val={"loss": 1.1 / epoch, "accuracy": 1 - 1.3 / epoch},
        learning_rate=0.1 / epoch,
    )

    def tensors(numbers: Callable[[int], list[float]]) -> dict[str, Tensor]:
        return {name: torch.tensor(numbers(i), dtype=torch.float64) for i, name in enumerate(NAMES)}

    update = LastUpdate(
        before=tensors(lambda i: [1, 0]),
        after=tensors(lambda i: [1, 1e-3 * i / epoch]),
        gradients=tensors(lambda i: [0, -i / epoch]),
    )
    logs.last_update(epoch, update, histograms=True)
    logs.difference(epoch, gradients=1e-15 * epoch, parameters=1e-16 * epoch)
    logs.flush()


def log_result(logs: RunLogs) -> None:
    logs.confusion_matrix(2, torch.eye(2, dtype=torch.int64), ("a", "b"))
    logs.hparams({"lr": 0.1, "optimizer": "sgd"}, {"test_loss": 0.3, "test_accuracy": 0.97})


def test_each_tag_holds_its_value_at_each_epoch_in_float32(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        for epoch in (1, 2, 3):
            log_epoch(logs, epoch)
        log_result(logs)

    def series(value: Callable[[int], float]) -> list[tuple[int, float]]:
        return [(epoch, float(np.float32(value(epoch)))) for epoch in (1, 2, 3)]

    assert scalars(tmp_path / "train") == {
        "loss": series(lambda e: 1 / e),
        "accuracy": series(lambda e: 1 - 0.9 / e),
        "updates/learning_rate": series(lambda e: 0.1 / e),
        "updates/gradient_norm/0.weight": series(lambda e: 0),
        "updates/gradient_norm/0.bias": series(lambda e: 1 / e),
        "updates/update_to_weight/0.weight": series(lambda e: 0),
        "updates/update_to_weight/0.bias": series(lambda e: 1e-3 / e),
        "vs_autograd/gradients": series(lambda e: 1e-15 * e),
        "vs_autograd/parameters": series(lambda e: 1e-16 * e),
    }
    assert scalars(tmp_path / "val") == {
        "loss": series(lambda e: 1.1 / e),
        "accuracy": series(lambda e: 1 - 1.3 / e),
        "result/test_loss": [(4, float(np.float32(0.3)))],
        "result/test_accuracy": [(4, float(np.float32(0.97)))],
    }


def test_tensorboard_finds_two_runs_and_no_other_tags(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        logs.configuration({"lr": 0.1})
        log_epoch(logs, 1)
        log_result(logs)
    found = runs(tmp_path)
    assert found.keys() == {"train", "val"}
    assert set(found["train"]) - scalars(tmp_path / "train").keys() == {
        "configuration/text_summary",
        *(f"weights/{name}" for name in NAMES),
        *(f"weights_gradient/{name}" for name in NAMES),
    }
    assert set(found["val"]) - scalars(tmp_path / "val").keys() == {
        "result/confusion_matrix",
        "_hparams_/session_start_info",
    }


@pytest.mark.parametrize(
    ("score", "open_groups"), [("accuracy", ["accuracy", "loss"]), ("r2", ["loss", "r2"])]
)
def test_the_two_groups_that_tensorboard_opens_are_loss_and_score(
    tmp_path: Path, score: str, open_groups: list[str]
) -> None:
    with RunLogs(tmp_path) as logs:
        logs.epoch(1, train={"loss": 1, score: 0}, val={"loss": 1, score: 0}, learning_rate=0.1)
        logs.last_update(1, an_update({"0.bias": torch.ones(3)}), histograms=True)
        logs.difference(1, gradients=0, parameters=0)
        log_result(logs)
    groups = {tag.split("/")[0] for tags in runs(tmp_path).values() for tag in tags}
    groups.remove("_hparams_")  # has no chart
    assert len(groups) == 7
    assert sorted(groups)[:2] == open_groups


def test_numbers_that_are_not_finite_or_too_large_are_logged_as_such(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        logs.epoch(1, train={"loss": 1e300}, val={"loss": float("nan")}, learning_rate=0.1)
    assert scalars(tmp_path / "train")["loss"] == [(1, float("inf"))]
    ((_, loss),) = scalars(tmp_path / "val")["loss"]
    assert np.isnan(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_histograms_count_every_number_between_smallest_and_largest(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    # bfloat16 holds 1e-9, which float16 does not.
    gradient = (torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 1e-9).to(dtype)
    weight = torch.tensor([1.0, 2, 2, 3], dtype=dtype, requires_grad=True)
    update = an_update({"0.bias": weight}, {"0.bias": gradient})
    with RunLogs(tmp_path) as logs:
        logs.last_update(5, update, histograms=True)
    bias = histogram(tmp_path, "weights/0.bias")
    # 2 ∛4 = 3.2, so 3 bins of 2/3 each. TensorBoard wants an empty bin to the left of them.
    np.testing.assert_allclose(bias.bucket_limit, [1, 5 / 3, 7 / 3, 3])
    assert bias.bucket == [0, 1, 2, 1]
    many = histogram(tmp_path, "weights_gradient/0.bias")
    assert many.min == many.bucket_limit[0] == gradient.float().min()
    assert many.max == many.bucket_limit[-1] == gradient.float().max()
    assert many.num == sum(many.bucket) == gradient.numel()
    assert len(many.bucket) == 1 + 64  # 2 ∛40000 = 68.4
    (event,) = read(tmp_path / "train").Histograms("weights/0.bias")
    assert event.step == 5


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0, float("nan")],
        [float("inf"), 1.0],
        [1e300, 1.0],  # infinite in float32
    ],
)
def test_no_histogram_of_an_empty_or_not_finite_tensor(tmp_path: Path, values: list[float]) -> None:
    bad = torch.tensor(values, dtype=torch.float64)
    good = torch.ones(3)
    with RunLogs(tmp_path) as logs:
        logs.last_update(1, an_update({"bad": bad}, {"bad": bad}), histograms=True)
        logs.last_update(2, an_update({"good": good}), histograms=True)
    tags = read(tmp_path / "train").Tags()["histograms"]
    assert tags == ["weights/good", "weights_gradient/good"]


def test_epochs_that_wait_are_written_in_order(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        for epoch in (1, 2, 3):
            logs.epoch(epoch, train={"loss": epoch}, val={"loss": epoch}, learning_rate=0.1)
        assert "loss" not in scalars(tmp_path / "train")
    for split in ("train", "val"):
        assert scalars(tmp_path / split)["loss"] == [(1, 1), (2, 2), (3, 3)]


def test_large_updates_do_not_wait_to_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "MOST_KEPT", 3 * 4 * 10)  # three tensors of ten numbers
    drawn: list[int] = []

    class Update(LastUpdate):
        @property
        def gradient_norms(self) -> dict[str, float]:
            drawn.append(1)
            return super().gradient_norms

    weights = {"0.bias": torch.ones(5)}
    with RunLogs(tmp_path) as logs:
        for epoch, expected in enumerate([0, 0, 3, 3, 3, 6], 1):
            logs.last_update(epoch, Update(weights, weights, weights), histograms=False)
            assert len(drawn) == expected


@pytest.mark.parametrize("value", [0.0, 1.0, -1e17, 1e38])
def test_histogram_of_equal_numbers(tmp_path: Path, value: float) -> None:
    with RunLogs(tmp_path) as logs:
        logs.last_update(1, an_update({"0.bias": torch.full((7,), value)}), histograms=True)
    bias = histogram(tmp_path, "weights/0.bias")
    assert bias.num == sum(bias.bucket) == 7
    assert {bias.min, bias.max, *bias.bucket_limit} == {np.float32(value)}


def test_the_configuration_is_a_table_in_which_values_stand_as_they_are(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        logs.configuration({"lr": 0.1, "hidden": (128, 64), "file": "a|b*c`\n__d__", "empty": ""})
    (event,) = read(tmp_path / "train").Tensors("configuration/text_summary")
    (text,) = event.tensor_proto.string_val
    assert event.step == 0
    assert text.decode().splitlines() == [
        "| setting | value |",
        "|:--|:--|",
        "| lr | `0.1` |",
        "| hidden | `(128, 64)` |",
        "| file | `a|b*c' __d__` |",
        "| empty |  |",
    ]


def test_hparams_of_every_kind_and_the_name_of_the_run(tmp_path: Path) -> None:
    hparams = {"lr": 0.1, "batch_size": 32, "nesterov": True, "optimizer": "sgd"}
    with RunLogs(tmp_path / "2026-01-01_digits") as logs:
        logs.hparams(hparams, {"test_loss": 0.3})
    content = read(tmp_path / "2026-01-01_digits" / "val").PluginTagToContent("hparams")
    row = content["_hparams_/session_start_info"]
    info = hparams_metadata.parse_session_start_info_plugin_data(row)
    assert info.group_name == "2026-01-01_digits"
    kinds = {name: value.WhichOneof("kind") for name, value in info.hparams.items()}
    assert {name: getattr(info.hparams[name], kind) for name, kind in kinds.items()} == hparams


def test_the_confusion_matrix_has_true_classes_down_and_predicted_ones_across(
    tmp_path: Path,
) -> None:
    with RunLogs(tmp_path) as logs:
        logs.confusion_matrix(7, torch.tensor([[5, 5], [0, 10]]), ("a", "b"))
    (event,) = read(tmp_path / "val").Images("result/confusion_matrix")
    assert event.step == 7
    image = picture(tmp_path)
    # All of row b is in one cell, below right, which has the darkest blue there is.
    rows, columns = np.nonzero((image == [8, 48, 107]).all(axis=2))
    middle, centre = rows.min(), columns.min()
    above_left, above_right, below_left = (
        int(image[middle + i, centre + j, 0]) for i, j in ((-9, -9), (-9, 9), (9, -9))
    )
    assert 8 < above_left == above_right < below_left


@pytest.mark.parametrize("k", [2, 20, 50, 150])
def test_a_confusion_matrix_of_many_classes_with_unkind_names(tmp_path: Path, k: int) -> None:
    matrix = torch.zeros(k, k, dtype=torch.int64)  # no example at all
    matrix[0, 1] = 123_456
    names = tuple(f"$\\frac{i}$ and a name that is far too long to print" for i in range(k))
    with RunLogs(tmp_path) as logs:
        logs.confusion_matrix(1, matrix, names)
    height, width, _ = picture(tmp_path).shape
    assert 300 <= height == width <= 1100
    assert plt.get_fignums() == []


def interrupted(source: Path, target: Path, cut: int) -> None:
    """Copy a run as SIGKILL leaves it, its last records cut `cut` bytes short."""
    shutil.copytree(source, target)
    for file in target.glob("*/*"):
        file.write_bytes(file.read_bytes()[:-cut])
    of_a_minute_ago(target)


def of_a_minute_ago(run: Path) -> None:
    """Let the event files tell that they were opened 60 s before they were."""
    for file in run.glob("*/*"):
        second = file.name.split(".")[3]
        file.rename(file.with_name(file.name.replace(second, str(int(second) - 60))))


def everything(run: Path) -> Iterator[tuple[str, str, int, object]]:
    """Yield directory, tag, step and value of all that was logged."""
    for directory in ("train", "val"):
        for tag, values in scalars(run / directory).items():
            yield from ((directory, tag, step, value) for step, value in values)
        events = read(run / directory)
        tags = events.Tags()
        for tag in tags["histograms"]:
            for event in events.Histograms(tag):
                yield directory, tag, event.step, event.histogram_value
        for tag in tags["images"]:
            for event in events.Images(tag):
                yield directory, tag, event.step, event.encoded_image_string
        for tag in tags["tensors"]:
            for event in events.Tensors(tag):
                yield directory, tag, event.step, event.tensor_proto.SerializeToString()


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_resumed_run_reads_as_one_never_interrupted(tmp_path: Path, cut: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with RunLogs(whole) as logs:
        logs.configuration({"lr": 0.1})
        for epoch in range(1, 6):
            log_epoch(logs, epoch)
            if epoch == 4:
                interrupted(whole, killed, cut)
        log_result(logs)
    with RunLogs(killed, resume_after=2) as logs:
        for epoch in range(3, 6):
            log_epoch(logs, epoch)
        log_result(logs)
    assert list(everything(killed)) == list(everything(whole))
    for directory in ("train", "val"):  # the page has a reader of its own
        shown = read_as_page(killed / directory).Tensors("loss")
        assert [event.step for event in shown] == [1, 2, 3, 4, 5]


def test_a_finished_run_can_be_resumed_for_more_epochs(tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    with RunLogs(longer) as logs:
        log_epoch(logs, 1)
        logs.hparams({"lr": 0.1}, {"test_loss": 0.5})
    of_a_minute_ago(longer)
    with RunLogs(longer, resume_after=1) as logs:
        log_epoch(logs, 2)
        logs.hparams({"lr": 0.1}, {"test_loss": 0.3})
    with RunLogs(whole) as logs:
        log_epoch(logs, 1)
        log_epoch(logs, 2)
        logs.hparams({"lr": 0.1}, {"test_loss": 0.3})
    for directory in ("train", "val"):
        assert scalars(longer / directory) == scalars(whole / directory)


def test_a_run_killed_after_its_last_epoch_logs_its_result_once(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        log_epoch(logs, 1)
        logs.hparams({"lr": 0.1}, {"test_loss": 0.3})
    of_a_minute_ago(tmp_path)
    with RunLogs(tmp_path, resume_after=1) as logs:
        logs.hparams({"lr": 0.1}, {"test_loss": 0.3})
    assert scalars(tmp_path / "val")["result/test_loss"] == [(2, float(np.float32(0.3)))]


def test_a_run_resumed_before_its_first_epoch_logs_its_configuration_once(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        logs.configuration({"lr": 0.1})
        log_epoch(logs, 1)
    of_a_minute_ago(tmp_path)
    with RunLogs(tmp_path, resume_after=0) as logs:
        logs.configuration({"lr": 0.1})
    events = read_as_page(tmp_path / "train")  # EventAccumulator hides no text
    steps = {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert {tag: found for tag, found in steps.items() if found} == {
        "configuration/text_summary": [0]
    }


def test_the_file_of_a_resumed_run_is_read_last(tmp_path: Path) -> None:
    # The names differ in the second, the machine, the process and a counter, in this order.
    first = tmp_path / "val" / f"events.out.tfevents.{int(time.time())}.zzz.9.9"
    first.parent.mkdir()
    first.touch()
    with RunLogs(tmp_path, resume_after=1):
        assert min((tmp_path / "val").iterdir()) == first


def test_files_from_the_future_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    file = tmp_path / "train" / f"events.out.tfevents.{int(time.time()) + 3600}.host.1.0"
    file.touch()
    with pytest.raises(UsageError, match=r"the clock is 3[56]\d\d s behind the event files in .+"):
        RunLogs(tmp_path, resume_after=1)
    assert list(tmp_path.rglob("*.*")) == [file]


def test_after_a_flush_a_copy_of_the_files_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = record_writer.RecordWriter.write

    def write_slowly(writer: object, data: bytes) -> None:
        time.sleep(0.01)
        write(writer, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", write_slowly)
    with RunLogs(tmp_path / "run") as logs:
        log_epoch(logs, 1)  # train has the most to write, and all ends with a flush
        shutil.copytree(tmp_path / "run", tmp_path / "epoch")
        log_result(logs)  # val alone
        logs.flush()
        shutil.copytree(tmp_path / "run", tmp_path / "result")
    in_the_end = list(everything(tmp_path / "run"))
    assert list(everything(tmp_path / "result")) == in_the_end
    assert list(everything(tmp_path / "epoch")) == [
        entry for entry in in_the_end if not entry[1].startswith(("result/", "_hparams_/"))
    ]


def test_the_files_are_closed_when_the_run_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with RunLogs(tmp_path) as logs:
            logs.epoch(1, train={"loss": 1.0}, val={"loss": 1.0}, learning_rate=0.1)
            assert threading.active_count() == before + 2  # the threads that write the two files
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert threading.active_count() == before
    assert scalars(tmp_path / "val") == {"loss": [(1, 1.0)]}


def test_closing_twice_opens_no_new_file(tmp_path: Path) -> None:
    with RunLogs(tmp_path) as logs:
        logs.close()
    assert len(list(tmp_path.glob("*/*"))) == 2
