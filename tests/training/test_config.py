"""The settings of a run: their limits, what they build, and their way through a JSON file."""

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from manualbp.errors import UsageError
from manualbp.losses import Penalty
from manualbp.optimizers import SGD, Adagrad, Adam, AdamW, LookAheadNesterov, Optimizer, RMSprop
from manualbp.schedules import Constant, CosineWithWarmup, Exponential, Schedule, StepDecay
from manualbp.training.config import (
    NOT_RESUMABLE,
    OPEN_ON_RESUME,
    TrainConfig,
    from_mapping,
)


def test_the_defaults_are_valid() -> None:
    TrainConfig().validate()


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("max_epochs", [0, -1], [1]),
        ("accumulate", [0, -1], [1]),
        ("batch_size", [-1], [0, 1]),
        ("patience", [-1], [0, None]),
        ("start_from_epoch", [-1], [0, 3]),
        ("stopping_threshold", [math.nan, math.inf], [-1.0, None]),
        ("divergence_threshold", [math.nan, math.inf], [-1.0, None]),
        ("baseline", [math.nan, -math.inf], [-1.0, None]),
        ("threads", [-1, 1025], [0, 1, 1024]),
        ("seed", [-1, 2**32], [0, 2**32 - 1]),
        ("hidden", [(0,), (8, -1)], [(), (1,)]),
        ("dropout", [-0.1, 1.0, math.nan], [0.0, 0.9]),
        ("label_smoothing", [-0.1, 1.1, math.nan], [0.0, 1.0]),
        ("momentum", [-0.1, 1.0, math.nan], [0.0, 0.99]),
        ("weight_decay", [-0.1, math.nan, math.inf], [0.0, 1.0]),
        ("min_delta", [-0.1, math.nan, math.inf], [0.0, 1.0]),
        ("l1", [-0.1, math.nan, math.inf], [0.0, 1.0]),
        ("l2", [-0.1, math.nan, math.inf], [0.0, 1.0]),
        ("checkpoint_seconds", [-0.1, math.nan, math.inf], [0.0, 1.0]),
        ("lr", [0.0, -0.1, math.nan, math.inf], [1e-9, None]),
        ("clip_norm", [0.0, -0.1, math.nan, math.inf], [1e-9, None]),
        ("clip_value", [0.0, -0.1, math.nan, math.inf], [1e-9, None]),
        ("lockstep_limit", [0.0, -0.1, math.nan, math.inf], [1e-9, None]),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_option(
    name: str, wrong: list[Any], right: list[Any]
) -> None:
    for value in wrong:
        with pytest.raises(UsageError, match=rf"^--{name.replace('_', '-')} is .*: it must be "):
            TrainConfig(**{name: value}).validate()
    for value in right:
        TrainConfig(**{name: value}).validate()


def test_units_are_shown_as_they_are_given() -> None:
    with pytest.raises(UsageError, match=r"^--hidden is 8 0: it must be 1 unit or more a layer$"):
        TrainConfig(hidden=(8, 0)).validate()


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--momentum is 0\.0: it must be more than 0 with "):
        TrainConfig(optimizer="nesterov", momentum=0.0).validate()
    with pytest.raises(UsageError, match=r"^--l1 and --l2 exclude each other"):
        TrainConfig(l1=0.1, l2=0.1).validate()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, SGD(0.05, 0.9, weight_decay=0.003)),
        ({"optimizer": "sgd", "momentum": 0.0, "lr": 2.0}, SGD(2.0, 0.0, weight_decay=0.003)),
        ({"optimizer": "nesterov"}, SGD(0.05, 0.9, weight_decay=0.003, nesterov=True)),
        ({"optimizer": "look-ahead"}, LookAheadNesterov(0.05, 0.9, 0.003)),
        ({"optimizer": "adagrad"}, Adagrad(0.01, weight_decay=0.003)),
        ({"optimizer": "rmsprop"}, RMSprop(0.001, weight_decay=0.003, momentum=0.9)),
        ({"optimizer": "adam", "weight_decay": 0.0}, Adam(0.001, weight_decay=0.0)),
        ({"optimizer": "adamw"}, AdamW(0.001, weight_decay=0.003)),
    ],
)
def test_the_update_rule_has_the_settings(settings: dict[str, Any], rule: Optimizer) -> None:
    built = TrainConfig(**settings).build_optimizer()
    assert type(built) is type(rule)
    assert built == rule


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("constant", Constant()),
        ("step", StepDecay()),
        ("exponential", Exponential()),
        ("cosine", CosineWithWarmup(7)),
    ],
)
def test_the_schedule_is_the_one_named(name: Any, schedule: Schedule) -> None:
    built = TrainConfig(schedule=name, max_epochs=7).build_schedule()
    assert type(built) is type(schedule)
    assert built == schedule


def test_the_penalty_is_the_one_asked_for() -> None:
    assert TrainConfig().build_penalty() is None
    assert TrainConfig(l1=0.1).build_penalty() == Penalty(0.1, "l1")
    assert TrainConfig(l2=0.1).build_penalty() == Penalty(0.1, "l2")


UNUSUAL = TrainConfig(
    data="a.csv",
    target="y",
    task="regression",
    model="residual",
    hidden=(3, 2, 1),
    lr=0.1,
    momentum=0.5,
    patience=None,
    clip_norm=1.0,
    dtype="bfloat16",
    seed=7,
    engine="lockstep",
)


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(hidden=()), UNUSUAL])
def test_settings_come_back_from_json_as_they_were(config: TrainConfig) -> None:
    assert from_mapping(json.loads(json.dumps(config.saved())), "config.json") == config


def test_a_file_holds_the_settings_of_the_run_and_no_other() -> None:
    saved = TrainConfig().saved()
    assert saved.keys() == {item.name for item in fields(TrainConfig)} - set(NOT_RESUMABLE)
    assert not {"run_dir", "resume", "config", "json", "quiet"} & saved.keys()
    assert set(OPEN_ON_RESUME) <= saved.keys()


def test_what_a_file_does_not_name_is_as_by_default() -> None:
    assert from_mapping({"seed": 3}, "FILE") == TrainConfig(seed=3)
    assert from_mapping({"lr": 1}, "FILE") == TrainConfig(lr=1.0)


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(UsageError, match=r"^FILE: unknown setting 'optimiser'; .* optimizer\?$"):
        from_mapping({"optimiser": "sgd"}, "FILE")
    for name in NOT_RESUMABLE:
        with pytest.raises(UsageError, match=f"^FILE: unknown setting '{name}'; "):
            from_mapping({name: None}, "FILE")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data", 3, "text"),
        ("target", ["y"], "text or null"),
        ("model", "mpl", "one of mlp, logistic, maxout, residual"),
        ("model", None, "one of mlp, logistic, maxout, residual"),
        ("hidden", 64, "a list of whole numbers"),
        ("hidden", "64", "a list of whole numbers"),
        ("hidden", [64, 0.5], "a list of whole numbers"),
        ("hidden", [True], "a list of whole numbers"),
        ("dropout", "0.5", "a number"),
        ("dropout", True, "a number"),
        ("dropout", None, "a number"),
        ("lr", "fast", "a number or null"),
        ("batch_size", 32.0, "a whole number"),
        ("batch_size", False, "a whole number"),
        ("patience", 1.5, "a whole number or null"),
        ("engine", ["manual"], "one of manual, autograd, lockstep"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping({name: value}, "FILE")
    assert str(caught.value) == f"FILE: {name} is {json.dumps(value)}; expected {expected}"


@pytest.mark.parametrize("name", TrainConfig().saved())
def test_every_setting_has_a_type_that_is_checked(name: str) -> None:
    with pytest.raises(UsageError, match=f"^FILE: {name} is {{}}; expected "):
        from_mapping({name: {}}, "FILE")
