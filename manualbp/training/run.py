"""One run from its settings to its result: data, model, directory, logs, checkpoints, test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from shlex import quote
from time import monotonic
from types import FrameType
from typing import Any, cast

import torch

from manualbp.errors import CheckFailed, Interrupted, UsageError
from manualbp.layers import AnyLayer
from manualbp.models import build
from manualbp.parameters import Parameters
from manualbp.training import checkpoint
from manualbp.training.config import COMPUTED_IN, DTYPES, TrainConfig, resolve_device
from manualbp.training.data import Data, load
from manualbp.training.diagnosis import first_not_finite
from manualbp.training.display import Display
from manualbp.training.early_stopping import EarlyStopping, StopReason
from manualbp.training.engine import Engine, flush_denormals, threads_for
from manualbp.training.injection import inject
from manualbp.training.logs import RunLogs
from manualbp.training.loop import EpochReport, NotFinite, Trainer
from manualbp.training.objective import objective
from manualbp.training.run_directory import (
    RunDirectory,
    default_path,
    json_number,
    new_directory,
    write_json,
)
from manualbp.training.step import TrainingStep

RUNS = Path("runs")
DETAILS_EVERY = 5  # epochs: norms of gradients and updates
HISTOGRAMS_EVERY = 50
EngineBuilder = Callable[
    [TrainConfig, TrainingStep, Parameters, Callable[[], torch.Generator]], Engine
]


class Signals:
    """Notes SIGINT and SIGTERM, for whoever looks at `number`; the second one does not wait."""

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def noted(self) -> Generator[None]:
        """Note signals from here on."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.number is not None:
                raise KeyboardInterrupt
            self.number = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(config: TrainConfig, build_engine: EngineBuilder) -> dict[str, Any]:
    """Train as configured, or go on with `config.resume`, and return what result.json holds.

    Raises UsageError for bad input, before anything is written; CheckFailed when the numbers are
    not finite any more or lockstep finds a difference; Interrupted after a signal. Whatever but
    lockstep ends training, the best weights are in best.pt, the state to go on from is in last.pt.
    """
    return prepare(config, build_engine).start()


def prepare(config: TrainConfig, build_engine: EngineBuilder) -> Run:
    """Return the run, of which nothing is written yet. Raises UsageError for bad input."""
    config.validate()
    device = resolve_device(config.device)
    data = load(
        config.data,
        seed=config.seed,
        dtype=DTYPES[config.dtype],
        target=config.target,
        task=config.task,
        fold=config.fold_of_folds,
    )
    return Run.prepare(config, data, device, build_engine)


@dataclass
class Run:
    """A run under way: the trainer, and what happens to its reports."""

    config: TrainConfig
    data: Data
    device: torch.device
    step: TrainingStep
    params: Parameters
    trainer: Trainer
    display: Display
    directory: RunDirectory = field(init=False)
    logs: RunLogs = field(init=False)
    validation: Mapping[str, float] = field(default_factory=dict[str, float], init=False)
    """Loss and score of the best weights, when the run has ended."""
    _saved_at: float = field(default=0.0, init=False)
    _signals: Signals = field(default_factory=Signals, init=False)

    @classmethod
    def prepare(
        cls, config: TrainConfig, data: Data, device: torch.device, build_engine: EngineBuilder
    ) -> Run:
        """Build everything that needs no directory. Raises UsageError for settings that clash."""
        goal = objective(data, config.loss, config.reduction, config.label_smoothing)
        model: AnyLayer = build(
            config.model,
            data.features,
            goal.outputs,
            hidden=config.hidden,
            activation=config.activation,
            dropout=config.dropout,
            initializer=config.initializer,
        )
        if config.inject is not None:
            model = inject(model, config.inject)
        step = TrainingStep(
            model,
            goal.loss,
            config.build_optimizer(),
            config.build_penalty(),
            config.clip_norm,
            config.clip_value,
            micro_batch=config.batch_size if config.accumulate > 1 else 0,
        )
        seed = config.seed if config.init_seed is None else config.init_seed
        start = torch.Generator().manual_seed(seed)
        params = model.parameters(start, dtype=DTYPES[config.dtype], device=device)
        params = Parameters(params.shapes, params.flat, rounded_to=COMPUTED_IN[config.precision])

        def masks() -> torch.Generator:
            return torch.Generator(device).manual_seed(config.seed)

        stopper = EarlyStopping(
            monitor=config.monitor,
            patience=config.patience,
            min_delta=config.min_delta,
            baseline=config.baseline,
            start_from_epoch=config.start_from_epoch,
            stopping_threshold=config.stopping_threshold,
            divergence_threshold=config.divergence_threshold,
        )
        monitors = [
            f"{part}_{what}" for part in ("val", "train") for what in ("loss", goal.score_name)
        ]
        if config.monitor not in monitors:
            raise UsageError(
                f"--monitor {config.monitor}: with {data.name} there are {', '.join(monitors)}"
            )
        trainer = Trainer(
            engine=build_engine(config, step, params, masks),
            objective=goal,
            schedule=config.build_schedule(),
            learning_rate=config.learning_rate,
            train=goal.targets(data.train),
            val=goal.targets(data.val).to(device),
            batch_size=config.batch_size * config.accumulate,
            max_epochs=config.max_epochs,
            stopper=stopper,
            seed=config.seed,
        )
        display = Display(config.max_epochs, goal.score_name, quiet=config.quiet)
        return cls(config, data, device, step, params, trainer, display)

    def start(self) -> dict[str, Any]:
        """Open a directory, train there from the first epoch or where an earlier run stopped, and
        return what result.json holds.
        """
        configure_processor(self.config, self.trainer)
        with ExitStack() as stack:
            self.open(stack.enter_context(open_directory(self.config)))
            stack.callback(self.close)
            return self.run()

    def open(self, directory: RunDirectory) -> None:
        """Load the checkpoint if there is one, write config.json, open the logs."""
        self.directory = directory
        resumed = self.config.resume is not None
        if resumed and directory.last.exists():
            self._load_checkpoint()
        write_json(directory.config, self.config.saved())
        after = self.trainer.progress.epoch if resumed else None
        self.logs = RunLogs(directory.path, resume_after=after, trial=directory.trial)
        if not after:
            self.logs.configuration(self.config.saved())

    def close(self) -> None:
        """Close display and logs."""
        self.display.close()
        self.logs.close()

    def run(self) -> dict[str, Any]:
        """Train, then test with the best weights and write the result."""
        self._saved_at = monotonic()
        try:
            with self._signals.noted():
                waits = "compiling the step, half a minute the first time"
                self.display.start(
                    self.trainer.progress.epoch, waits if self.config.compile else ""
                )
                reason = self.trainer.fit(self)
        except Interrupted:
            self._save()
            self._finish("interrupted")
            raise
        except NotFinite as error:
            self._save()
            tensor = first_not_finite(self.trainer, self.step.model, self.params)
            where = f"at step {self.trainer.progress.steps} {tensor}" if tensor else error
            self._finish("non-finite")
            raise CheckFailed(
                f"{where} is not finite any more; a smaller --lr or --clip-norm may help"
            ) from None
        except CheckFailed:
            # Of lockstep, amid an update: there is no state to save.
            self._log_differences(self.trainer.progress.epoch + 1)
            raise
        self._save()
        result = self._finish(reason)
        if reason == "non-finite":
            epoch = self.trainer.progress.epoch
            raise CheckFailed(f"{self.config.monitor} is not finite any more after epoch {epoch}")
        return result

    def wants_details(self, epoch: int) -> bool:
        """Return whether this epoch logs the norms of gradients and updates."""
        return epoch == 1 or epoch % DETAILS_EVERY == 0

    def after_update(self, trainer: Trainer) -> None:
        """Look for a signal, and save when it is time, between two updates."""
        self._raise_if_signalled()
        seconds = self.config.checkpoint_seconds
        if seconds and monotonic() - self._saved_at > seconds:
            self._save()

    def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
        """Log the epoch, save when it is time, and look for a signal."""
        epoch = report.epoch
        self.logs.epoch(
            epoch, train=report.train, val=report.val, learning_rate=report.learning_rate
        )
        if report.last_update:
            histograms = epoch == 1 or epoch % HISTOGRAMS_EVERY == 0
            self.logs.last_update(epoch, report.last_update, histograms=histograms)
        self._log_differences(epoch)
        self.display.epoch(report, trainer.stopper)
        if monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self._save()
        self._raise_if_signalled()

    def _log_differences(self, epoch: int) -> None:
        """Log how far lockstep's two sides lay apart at most in this epoch."""
        take: Callable[[], Mapping[str, float]] | None = getattr(
            self.trainer.engine, "take_differences", None
        )
        if take:
            self.logs.difference(epoch, **take())

    def _save(self) -> None:
        """Write best.pt for whoever uses the weights, and last.pt to go on from.

        The logs come first, so that they hold at least all epochs that the checkpoint has.
        """
        self.logs.flush()
        if self.trainer.best:
            best = {"weights": dict(self.trainer.best), "epoch": self.trainer.stopper.best_epoch}
            checkpoint.save(self.directory.best, best)
        checkpoint.save(self.directory.last, self.trainer.snapshot())
        self._saved_at = monotonic()

    def _load_checkpoint(self) -> None:
        """Go back to where last.pt stands."""
        last = checkpoint.load(self.directory.last)
        try:
            self.trainer.restore(last)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UsageError(
                f"checkpoint {self.directory.last} is of another model or run: {what}"
            ) from error

    def _finish(self, reason: StopReason) -> dict[str, Any]:
        """Evaluate the best weights on the test split; log and write the result.

        A fold has no test: it is there to choose by, and the test is for what has been chosen.
        """
        trainer, goal = self.trainer, self.trainer.objective
        if trainer.best:
            trainer.engine.load_weights(trainer.best)
        self.validation = val = goal.metrics(trainer.engine.predict(trainer.val.x), trainer.val.t)
        test = trainer.val if self.config.fold else goal.targets(self.data.test).to(self.device)
        y = trainer.engine.predict(test.x)
        metrics = goal.metrics(y, test.t)
        epoch, stopper = trainer.progress.epoch, trainer.stopper
        if goal.task == "classification":
            K = len(self.data.classes)
            cells = K * goal.labels(test.t) + goal.classes(y)  # row: true, column: predicted
            matrix = torch.bincount(cells, minlength=K * K).view(K, K)
            best_epoch = stopper.best_epoch or epoch
            self.logs.confusion_matrix(best_epoch, matrix, self.data.classes)
        seconds = trainer.progress.seconds
        score = goal.score_name
        if self.config.fold:
            measured = {"best_val_loss": val["loss"], f"best_val_{score}": val[score]}
        else:
            measured = {"best_val_loss": val["loss"]}
            measured |= {"test_loss": metrics["loss"], f"test_{score}": metrics[score]}
        measured = {name: json_number(value) for name, value in measured.items()}
        result = {
            "run_dir": str(self.directory.path),
            "engine": self.config.engine,
            "device": self.device.type,
            "dtype": self.config.dtype,
            "precision": self.config.precision,
            "tf32": self.config.tf32,
            "epochs": epoch,
            "stopped_reason": reason,
            "best_epoch": stopper.best_epoch,
            **measured,
            "seconds": seconds,
            "steps_per_second": trainer.progress.steps / seconds if seconds else 0.0,
        }
        settings = self.config.saved()
        if self.config.fold_of_folds:  # one row stands for all folds
            settings["fold"] = f"each of {self.config.fold_of_folds[1]}"
        self.logs.hparams(
            {name: _plain(value) for name, value in settings.items()},
            {name: value for name, value in measured.items() if value is not None},
        )
        self.logs.flush()
        write_json(self.directory.result, result)
        return result

    def _raise_if_signalled(self) -> None:
        if self._signals.number is not None:
            command = f"manualbp train --resume {quote(str(self.directory.path))}"
            raise Interrupted(self._signals.number, f"interrupted; go on with: {command}")


def configure_processor(config: TrainConfig, trainer: Trainer) -> None:
    """Set, for this process, the number of threads and how exactly the processors compute."""
    parameters = sum(weight.numel() for weight in trainer.engine.weights().values())
    rows = trainer.batch_size or len(trainer.train)
    torch.set_num_threads(config.threads or threads_for(parameters, rows))
    flush_denormals()
    # Sets the newer switch of torch, cuda.matmul.fp32_precision, too. torch.compile reads both, and
    # would fail where they differ.
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    backends = cast(Any, torch.backends)
    backends.mkldnn.matmul.fp32_precision = "ieee"  # the CPU's, which it sets besides
    backends.cudnn.allow_tf32 = config.tf32  # the older switch, which torch.export reads besides
    for part in (backends.cudnn.conv, backends.cudnn.rnn):  # which by themselves use TF32
        part.fp32_precision = "tf32" if config.tf32 else "ieee"
    # With --precision bf16-mixed, too, a product sums in float32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def open_directory(config: TrainConfig) -> RunDirectory:
    """Return the directory of a new run, or of the one to go on with, locked."""
    if config.resume is not None:
        return RunDirectory.resume(config.resume)
    path = config.run_dir or default_path(
        RUNS,
        data=config.data,
        model=config.model,
        engine=config.engine,
        seed=config.seed,
        now=datetime.now(),
    )
    return RunDirectory.create(path)


def open_experiment(config: TrainConfig, name: str) -> RunDirectory:
    """Return the directory of a new experiment, locked: --run-dir, or one named like this."""
    name = f"{Path(config.data).stem}_{name}"
    return RunDirectory.create(config.run_dir or new_directory(RUNS, name, datetime.now()))


def _plain(value: Any) -> bool | str | float | int:
    """Return a setting as TensorBoard's hparams take it."""
    if isinstance(value, bool | int | float | str):
        return value
    return "-" if value is None else " ".join(map(str, value))
