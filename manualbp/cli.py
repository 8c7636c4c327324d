"""The command line: one verb a class, thin.

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM.

What takes long to load, matplotlib and TensorBoard above all, is imported by the verb that uses it.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from difflib import get_close_matches
from inspect import getsource
from itertools import pairwise, takewhile
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

import tyro
from rich.console import Console

from manualbp.checks.bench import BenchConfig, bench
from manualbp.checks.compare import CompareConfig, compare, print_rows
from manualbp.checks.doctor.command import CheckConfig, check
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.engines import build_engine
from manualbp.checks.locate import LocateConfig, locate, print_location
from manualbp.errors import CheckFailed, Interrupted, UsageError, did_you_mean
from manualbp.explain.config import ErrataConfig, ExplainConfig
from manualbp.training.config import (
    COMPARABLE,
    NOT_RESUMABLE,
    OPEN_ON_RESUME,
    TrainConfig,
    from_mapping,
)
from manualbp.training.display import print_summary
from manualbp.training.run_directory import read_json

DESCRIPTION = "Deep learning with every backward pass written by hand, proved against autograd."

Command: TypeAlias = (
    TrainConfig
    | CompareConfig
    | CheckConfig
    | LocateConfig
    | SelftestConfig
    | BenchConfig
    | ExplainConfig
    | ErrataConfig
)


def run() -> None:
    """Be the program `manualbp`."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        base = _base_config(words)
        command, *others = [_parse(line, base) for line in several(words)]
        if isinstance(command, CompareConfig):
            return _compare(command)
        if isinstance(command, CheckConfig):
            return check(command)
        if isinstance(command, LocateConfig):
            return _locate(command)
        if isinstance(command, BenchConfig):
            return _bench(command)
        if isinstance(command, SelftestConfig):
            return _selftest(command)
        if isinstance(command, (ExplainConfig, ErrataConfig)):
            return _explain(command)
        configs = [command, *(other for other in others if isinstance(other, TrainConfig))]
        return _experiment(configs) if _is_experiment(configs) else _train(command, base)
    except (UsageError, CheckFailed, Interrupted) as error:
        if "--debug" in words:
            raise
        print(f"manualbp: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output (`| head`) has gone: nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(config: TrainConfig, base: TrainConfig) -> int:
    if config.resume is not None:
        _require_unchanged(config, base)
    from manualbp.training.run import train

    result = train(config, build_engine)
    if config.json:
        print(json.dumps(result, indent=2))
    elif not config.quiet:
        print_summary(_console(), result)
    return 0


def _experiment(configs: Sequence[TrainConfig]) -> int:
    from manualbp.training.experiments import experiment

    found = experiment(configs, build_engine)
    if configs[0].json:
        print(json.dumps(found.as_json(), indent=2))
    elif not configs[0].quiet:
        found.print(_console())
    return 0


def _compare(config: CompareConfig) -> int:
    rows = compare(config)
    if config.json:
        print(json.dumps([_as_json(row._asdict()) for row in rows], indent=2, allow_nan=False))
    else:
        print_rows(_console(), rows)
    return 0 if all(row.verdict == "agree" for row in rows) else 1


def _locate(config: LocateConfig) -> int:
    found = locate(config)
    if config.json:
        print(json.dumps(found.as_json(), indent=2, allow_nan=False))
    else:
        print_location(_console(), found)
    return 1 if found.wrong else 0


def _bench(config: BenchConfig) -> int:
    from manualbp.checks.bench.report import print_results

    results = bench(config)
    if config.json:
        print(json.dumps([result.as_json() for result in results], indent=2))
    elif not config.quiet:
        print_results(_console(), results)
    return 0


def _explain(config: ExplainConfig | ErrataConfig) -> int:
    from manualbp.explain.command import explain

    return explain(config)


def _selftest(config: SelftestConfig) -> int:
    from manualbp.checks.doctor.selftest import print_tally, selftest

    tally = selftest(config)
    if config.json:
        print(json.dumps(tally.as_json(), indent=2))
    else:
        print_tally(_console(), tally)
    return 0 if tally.passed else 1


def _console() -> Console:
    """Return standard output, with the colours that we give and none by guess."""
    return Console(highlight=False)


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with None, JSON's null, for NaN and infinity, which JSON has no word for."""
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}


def several(words: Sequence[str]) -> list[list[str]]:
    """Return the command lines of single runs that one with several values stands for.

    `train --lr 0.1 0.2` is `train --lr 0.1` and `train --lr 0.2`; two such options give every pair.
    """
    lines: list[list[str]] = [[]]
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        takes_several = words[0] == "train" and name in COMPARABLE
        more = list(takewhile(_is_value, rest)) if takes_several else []
        rest = rest[len(more) :]
        values = [value, *more] if value else more
        choices = [[option, v] for v in values] if len(values) > 1 else [[word, *more]]
        lines = [line + choice for line in lines for choice in choices]
    return lines


def _is_value(word: str) -> bool:
    return not re.match(r"--?[A-Za-z]", word)


def _is_experiment(configs: Sequence[TrainConfig]) -> bool:
    """Return whether these settings, one for each run, ask for more than a run."""
    some = configs[0]
    injects = some.inject is not None and some.resume is None
    return len(configs) > 1 or some.find_lr or injects or bool(some.cross_validate or some.restarts)


def _fold_help(config: type[Any]) -> None:
    """Give tyro what an option's docstring says on one line; it would keep the line breaks."""
    (definition,) = ast.parse(getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    kinds = get_type_hints(config, include_extras=True)
    for option, text in pairwise(definition.body):
        match option, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                help = tyro.conf.arg(help=" ".join(words.split()))
                config.__annotations__[name] = Annotated[kinds[name], help]
            case _:
                pass


for verb in get_args(Command):
    _fold_help(verb)


def _parse(words: list[str], base: TrainConfig) -> Command:
    """Return the command that the words describe.

    tyro describes a mistake in several lines; here it becomes one line.
    """
    commands: Any = (
        Annotated[TrainConfig, tyro.conf.subcommand("train", default=base)]
        | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
        | Annotated[CheckConfig, tyro.conf.subcommand("check")]
        | Annotated[LocateConfig, tyro.conf.subcommand("locate")]
        | Annotated[BenchConfig, tyro.conf.subcommand("bench")]
        | Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
        | Annotated[ErrataConfig, tyro.conf.subcommand("errata")]
        | Annotated[SelftestConfig, tyro.conf.subcommand("selftest")]
    )

    def parse() -> Command:
        return tyro.cli(
            commands,
            prog="manualbp",
            description=DESCRIPTION,
            args=words,
            config=(tyro.conf.OmitArgPrefixes,),
        )

    stderr = io.StringIO()
    try:
        # With no terminal for its output tyro leaves out frames and colours.
        with redirect_stdout(io.StringIO()), redirect_stderr(stderr):
            return parse()
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise UsageError(_in_one_line(stderr.getvalue())) from None
    return parse()  # prints the help again, for everyone to see


def _in_one_line(text: str) -> str:
    """Return what tyro says of a mistake, without the title above it and the help below it."""
    _, message, *hints = re.split(r"^ *-+ *$", text, flags=re.MULTILINE)
    said = [message.split("Got errors:")[0]]
    for hint in hints:
        if "Perhaps you meant:" in hint:
            # Of the suggestions the nearest option is enough.
            options = re.findall(r"^ *(--[\w-]+)", hint, flags=re.MULTILINE)
            typed = re.findall(r"--[\w-]+", message)
            said += [f"Perhaps you meant: {get_close_matches(typed[0], options, 1, 0.0)[0]}"]
        elif "helptext" not in hint:
            said.append(hint)
    # On a narrow terminal the full stop may stand on a line of its own.
    line = "; ".join(" ".join(part.split()).replace(" .", ".") for part in said)
    choice = re.fullmatch(
        r"invalid choice '(.*)' for argument '(.*)'\. Expected .* \((.*)\)\.", line
    )
    if choice is None:
        return line
    word, option, listed = choice.groups()
    names = re.findall(r"'([^']*)'", listed)
    # Where an option may be left out tyro shuffles the names, and None among them.
    return f"{option} {word}: {did_you_mean(word, sorted({*names} - {'None'}))}"


def _base_config(words: list[str]) -> TrainConfig:
    """Return what the options change: the defaults, --config FILE, or the run of --resume RUN."""
    for option in ("--resume", "--config"):
        value = _value_of(option, words)
        if value is not None:
            path = Path(value)
            if option == "--resume" and not path.is_dir():
                raise UsageError(f"--resume {path}: there is no such run directory")
            path = path / "config.json" if option == "--resume" else path
            if option == "--resume" and not path.exists():
                raise UsageError(f"there is no run to resume in {value}: it has no config.json")
            return from_mapping(read_json(path), str(path))
    return TrainConfig()


def _value_of(option: str, words: list[str]) -> str | None:
    """Return the value that tyro is going to find: the last one."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def _require_unchanged(config: TrainConfig, base: TrainConfig) -> None:
    """Raise UsageError for an option that would make a resumed run another run."""
    for name in ("run_dir", "config"):
        if getattr(config, name) is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} and --resume exclude each other: a run has one already")
    open_ones = [*NOT_RESUMABLE, *OPEN_ON_RESUME]
    if base.schedule == "cosine":
        open_ones.remove("max_epochs")  # the learning rate depends on it
    for item in fields(config):
        old, new = getattr(base, item.name), getattr(config, item.name)
        if item.name not in open_ones and old != new:
            option = item.name.replace("_", "-")
            raise UsageError(
                f"--{option} {new}: the run to resume has {old}; a resumed run keeps its settings"
            )
