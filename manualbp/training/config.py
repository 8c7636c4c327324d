"""Every option of a training run, one field each: the command line, config.json and --resume."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch

from manualbp.errors import UsageError, did_you_mean
from manualbp.initializers import Initializer
from manualbp.losses import Penalty, Reduction
from manualbp.models import ActivationName, ModelName
from manualbp.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LookAheadNesterov,
    Optimizer,
    RMSprop,
)
from manualbp.schedules import Constant, CosineWithWarmup, Exponential, Schedule, StepDecay
from manualbp.training.objective import LossName

OptimizerName = Literal["sgd", "nesterov", "look-ahead", "adagrad", "rmsprop", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "exponential", "cosine"]
EngineName = Literal["manual", "autograd", "lockstep"]
DtypeName = Literal["float32", "float64", "bfloat16"]
PrecisionName = Literal["full", "bf16-mixed"]
DeviceName = Literal["auto", "cpu", "cuda"]

DTYPES: Mapping[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}

MOST_THREADS = 1024
"""More than processors have; torch dies of numbers much larger, and does not say why."""

COMPUTED_IN: Mapping[PrecisionName, torch.dtype | None] = {
    "full": None,
    "bf16-mixed": torch.bfloat16,
}
"""The type that the model's passes compute in; None is that of the parameters."""

LEARNING_RATES: Mapping[OptimizerName, float] = {
    "sgd": 0.05,
    "nesterov": 0.05,
    "look-ahead": 0.05,
    "adagrad": 0.01,
    "rmsprop": 0.001,
    "adam": 0.001,
    "adamw": 0.001,
}

DEFAULT_RATES: Mapping[OptimizerName, tuple[float, ...]] = {
    name: (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
    if rate == 0.001
    # Rules that divide by the length of the gradient take smaller steps.
    else (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    for name, rate in LEARNING_RATES.items()
}
"""What --cross-validate chooses from, if not told."""

NOT_RESUMABLE = (
    *("cross_validate", "restarts", "find_lr"),
    *("run_dir", "resume", "config", "json", "quiet", "debug"),
)
"""Options of one call of the program, not of the run: they are not kept in config.json."""

COMPARABLE = (
    *("model", "activation", "dropout", "initializer", "l1", "l2", "optimizer", "lr", "momentum"),
    *("weight_decay", "schedule", "batch_size", "clip_norm"),
)
"""Options that take several values on the command line, for a run with each."""

OPEN_ON_RESUME = (
    *("max_epochs", "patience", "stopping_threshold", "divergence_threshold"),
    "checkpoint_seconds",
)
"""Options of the run that may change when it is resumed: they do not touch what is computed."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on a data set and watch it in TensorBoard.

    With no options: an MLP on scikit-learn's digits, every backward pass by hand.
    """

    data: str = "digits"
    """digits, breast_cancer, iris, wine, diabetes (regression), xor, or the path of a CSV or .npz
    file."""
    target: str | None = None
    """Name of the column to predict in a CSV file; the last one if not given."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """What the targets of a file are; auto: text and whole numbers are classes."""
    model: ModelName = "mlp"
    """mlp, logistic (one linear layer), maxout, or residual."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of each hidden layer."""
    activation: ActivationName = "relu"
    """Activation function of the hidden layers."""
    dropout: float = 0.0
    """Probability that a hidden unit is left out while training."""
    initializer: Initializer = "he"
    """How the weights begin: he suits relu, xavier tanh; torch is torch.nn's default."""
    loss: LossName = "auto"
    """auto: cross-entropy for classes, mse for numbers."""
    reduction: Reduction = "mean"
    """Mean or sum of the loss over a batch."""
    label_smoothing: float = 0.0
    """Cross-entropy: this share of each target is spread over all classes."""
    l1: float = 0.0
    """λ of the penalty λ Σ|w| on the weights."""
    l2: float = 0.0
    """λ of the penalty λ ½Σw² on the weights."""
    optimizer: OptimizerName = "sgd"
    """nesterov is torch's form, look-ahead the classical one."""
    lr: float | None = None
    """Learning rate; not given: 0.05 for sgd and both nesterov, 0.01 for adagrad, else 0.001.
    Several, 0.001 0.01 0.1, are compared by a run with each; so are several batch sizes,
    optimizers, activations, and so on."""
    momentum: float = 0.9
    """Momentum of sgd, nesterov, look-ahead and rmsprop."""
    weight_decay: float = 0.003
    """Weight decay of the optimizer, on all parameters."""
    schedule: ScheduleName = "constant"
    """Learning-rate schedule; cosine warms up over 5 epochs and ends at 0 after max-epochs."""
    batch_size: int = 32
    """Rows of a batch; 1 is online, 0 the full batch."""
    accumulate: int = 1
    """Batches whose gradients are added up for one update."""
    max_epochs: int = 100
    """Epochs at most."""
    patience: int | None = 20
    """Epochs without improvement after which to stop; None: never."""
    min_delta: float = 0.0
    """By how much the monitored value must improve to count."""
    monitor: str = "val_loss"
    """What early stopping watches: val_loss, train_loss, val_accuracy, train_accuracy, or with
    regression val_r2, train_r2."""
    stopping_threshold: float | None = None
    """Stop as soon as the monitored value is as good as this."""
    divergence_threshold: float | None = None
    """Stop as soon as the monitored value is worse than this."""
    baseline: float | None = None
    """Until the monitored value is better than this, every epoch counts against the patience."""
    start_from_epoch: int = 0
    """Before this epoch nothing counts: not for the best weights, not against the patience."""
    clip_norm: float | None = None
    """Shorten the gradient to this length."""
    clip_value: float | None = None
    """Bring each number of the gradient into [-c, c]."""
    device: DeviceName = "auto"
    """auto: CUDA where there is one, else the CPU."""
    dtype: DtypeName = "float32"
    """Type of all numbers of the network."""
    precision: PrecisionName = "full"
    """bf16-mixed: the passes of the network in bfloat16; parameters, loss, sums of gradients and
    update in float32."""
    tf32: bool = False
    """Matrix products of float32 on CUDA in TF32: quicker, with 10 bits after the point for
    float32's 23."""
    seed: int = 0
    """Seed of the split, the start, the order of the examples and the dropout masks."""
    init_seed: int | None = None
    """Seed of the initial weights alone; not given: the seed."""
    fold: str | None = None
    """2/4: of 4 equal parts of all rows but those for the test, the second is for validation, the
    others are for training, and there is no test."""
    threads: int = 0
    """Threads on the CPU; 0: one where a step is too small to be worth sharing, else all cores."""
    engine: EngineName = "manual"
    """manual: by hand; autograd: the twin through torch.autograd and torch.optim; lockstep: both on
    the same batches, compared at every step."""
    compile: bool = False
    """Pass the whole hand-written step through torch.compile as one program, which is faster for
    small networks; takes a C++ compiler and, the first time, half a minute."""
    lockstep_limit: float | None = None
    """Largest relative difference that lockstep lets pass; not given: 1e-9 in float64, 1e-3 in
    float32, 0.5 in bfloat16."""
    inject: str | None = None
    """BUG:TENSOR, such as sign:0.weight: train twice, without and with this mistake in one gradient
    of the backward pass, and lay the curves over each other. TENSOR is a parameter, or 1.x, what
    layer 1 hands on. BUG is sign, factor (of 2), zero, transposed (of a square matrix), noise,
    off-by-one (the last row is left out) or missing-activation-derivative (of 1.x)."""
    checkpoint_seconds: float = 5.0
    """Seconds between two checkpoints; 0: after every epoch. The last one is always written."""
    cross_validate: int | None = None
    """Choose among the learning rates, or whatever has several values, by the mean validation loss
    over so many folds; then train with the best one and test it."""
    restarts: int | None = None
    """Train from so many different initial weights, all else the same, and name the best."""
    find_lr: bool = False
    """Learning-rate range test: let the rate grow from update to update until the loss diverges,
    and suggest the one at which it fell fastest."""
    run_dir: Path | None = None
    """Directory of the run; not given: a new one under runs/ named by time and settings."""
    resume: Path | None = None
    """Continue the run in this directory, with its own settings."""
    config: Path | None = None
    """JSON file with settings, such as a run's config.json; options given here go before it."""
    json: bool = False
    """Print the result as JSON on standard output."""
    quiet: bool = False
    """No progress display and no summary."""
    debug: bool = False
    """Show the traceback of an error."""

    def saved(self) -> dict[str, Any]:
        """Return the settings of the run as config.json holds them."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_RESUMABLE}

    def validate(self) -> None:
        """Raise UsageError for the first number that is out of range."""
        at_least_one = ("max_epochs", "accumulate")
        at_least_zero = ("batch_size", "patience", "start_from_epoch")
        non_negative = ("momentum", "weight_decay", "min_delta", "l1", "l2", "checkpoint_seconds")
        finite = ("stopping_threshold", "divergence_threshold", "baseline")
        at_least_two = ("cross_validate", "restarts")
        positive = ("lr", "clip_norm", "clip_value", "lockstep_limit")
        for name in at_least_one:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in at_least_zero:
            value = getattr(self, name)
            self._require(name, value is None or value >= 0, "0 or more")
        self._require("threads", 0 <= self.threads <= MOST_THREADS, f"from 0 to {MOST_THREADS}")
        for name in non_negative:
            value = getattr(self, name)
            self._require(name, isfinite(value) and value >= 0, "0 or more")
        for name in positive:
            value = getattr(self, name)
            self._require(name, value is None or (isfinite(value) and value > 0), "more than 0")
        for name in finite:
            value = getattr(self, name)
            self._require(name, value is None or isfinite(value), "a finite number")
        for name in at_least_two:
            value = getattr(self, name)
            self._require(name, value is None or value >= 2, "2 or more")
        self._require("hidden", all(units >= 1 for units in self.hidden), "1 unit or more a layer")
        for name in ("seed", "init_seed"):
            value = getattr(self, name)
            self._require(name, value is None or 0 <= value < 2**32, "from 0 to 4294967295")
        part, parts = self.fold_of_folds or (1, 2)
        self._require("fold", 1 <= part <= parts >= 2, "a part of 2 or more, such as 2/4")
        self._require("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        self._require("label_smoothing", 0 <= self.label_smoothing <= 1, "from 0 to 1")
        self._require("momentum", self.momentum < 1, "below 1")
        if self.optimizer == "nesterov":
            self._require("momentum", self.momentum > 0, "more than 0 with --optimizer nesterov")
        if self.compile and (self.engine != "manual" or self.dropout):
            raise UsageError("--compile goes with --engine manual and without --dropout")
        if self.inject is not None and (self.engine == "autograd" or self.compile):
            raise UsageError(
                "--inject goes with --engine manual or lockstep and without --compile: "
                "the mistake is in the hand-written pass"
            )
        if self.precision == "bf16-mixed" and self.dtype != "float32":
            raise UsageError(f"--precision bf16-mixed goes with --dtype float32, not {self.dtype}")
        if self.l1 and self.l2:
            raise UsageError("--l1 and --l2 exclude each other: choose one penalty")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, name)
            shown = " ".join(map(str, self.hidden)) if name == "hidden" else value
            raise UsageError(f"--{name.replace('_', '-')} is {shown}: it must be {rule}")

    @property
    def learning_rate(self) -> float:
        """Return the learning rate, given or the optimizer's default here."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def fold_of_folds(self) -> tuple[int, int] | None:
        """Return (2, 4) for the fold 2/4; (0, 0), which is out of range, for what is no fold."""
        if self.fold is None:
            return None
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.fold)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def build_optimizer(self) -> Optimizer:
        """Return the update rule."""
        lr, decay = self.learning_rate, self.weight_decay
        if self.optimizer in ("sgd", "nesterov"):
            nesterov = self.optimizer == "nesterov"
            return SGD(lr, self.momentum, weight_decay=decay, nesterov=nesterov)
        if self.optimizer == "look-ahead":
            return LookAheadNesterov(lr, self.momentum, decay)
        if self.optimizer == "adagrad":
            return Adagrad(lr, weight_decay=decay)
        if self.optimizer == "rmsprop":
            return RMSprop(lr, weight_decay=decay, momentum=self.momentum)
        return (Adam if self.optimizer == "adam" else AdamW)(lr, weight_decay=decay)

    def build_schedule(self) -> Schedule:
        """Return the learning-rate schedule."""
        if self.schedule == "cosine":
            return CosineWithWarmup(self.max_epochs)
        return {"constant": Constant(), "step": StepDecay(), "exponential": Exponential()}[
            self.schedule
        ]

    def build_penalty(self) -> Penalty | None:
        """Return the penalty λR(w), if there is one."""
        if self.l1:
            return Penalty(self.l1, "l1")
        return Penalty(self.l2, "l2") if self.l2 else None


def resolve_device(name: str) -> torch.device:
    """Return the device; UsageError if CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: there is no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Return the configuration that a JSON file holds; UsageError for what does not belong."""
    names = [item.name for item in fields(TrainConfig) if item.name not in NOT_RESUMABLE]
    for name in values:
        if name not in names:
            raise UsageError(f"{where}: unknown setting {name!r}; {did_you_mean(name, names)}")
    kinds = get_type_hints(TrainConfig)
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            expected = _in_words(kinds[name])
            raise UsageError(f"{where}: {name} is {json.dumps(value)}; expected {expected}")
    settings = dict(values)
    if "hidden" in settings:
        settings["hidden"] = tuple(settings["hidden"])  # JSON has lists only
    return TrainConfig(**settings)


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value from JSON is of this type; for a float a whole number will do."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(v, parts[0]) for v in cast("list[Any]", value))
    # Not isinstance: True is no number here.
    return type(value) in ((int, float) if kind is float else (kind,))


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is UnionType:
        return " or ".join(_in_words(part) for part in parts)
    if origin is tuple:
        return "a list of whole numbers"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return {**words, NoneType: "null"}[kind]
