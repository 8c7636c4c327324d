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
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin, get_type_hints

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
    | BenchConfig
    | ExplainConfig
    | ErrataConfig
    | SelftestConfig
)
VERBS: dict[str, type[Any]] = {
    kind.__name__.removesuffix("Config").lower(): kind for kind in get_args(Command)
}


def run() -> None:
    """Be the program `manualbp`."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _require_command(words)
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
        name = _field(option)
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


for command in VERBS.values():
    _fold_help(command)


def _parse(words: list[str], base: TrainConfig) -> Command:
    """Return the command that the words describe.

    tyro describes a mistake in several lines; here it becomes one line.
    """
    defaults: dict[str, Any] = {"train": {"default": base}}
    commands: Any = Union[  # noqa: UP007  the other form takes no tuple
        tuple(
            Annotated[kind, tyro.conf.subcommand(verb, **defaults.get(verb, {}))]
            for verb, kind in VERBS.items()
        )
    ]

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
            raise UsageError(_in_one_line(stderr.getvalue(), words)) from None
    return parse()  # prints the help again, for everyone to see


def _in_one_line(text: str, words: Sequence[str]) -> str:
    """Return what tyro says of a mistake, without the title above it and the help below it."""
    message = re.split(r"^ *-+ *$", text, flags=re.MULTILINE)[1]
    # On a narrow terminal the full stop may stand on a line of its own.
    line = " ".join(message.split()).replace(" .", ".")
    if line.startswith("Unrecognized"):
        return _unknown(line, words)
    if missing := re.match(r"Missing value for argument '(.*)'", line):
        return f"{missing[1]}: the value is missing"
    if wrong := re.match(r"Error parsing (--[\w-]+)", line):
        option = wrong[1]
        kinds = _kinds(words[0], _field(option))
        number = "whole number" if int in kinds else "number"
        expected = f"{number}s" if tuple in kinds else f"a {number}"
        return f"{option} {_typed(option, words)}: expected {expected}"
    if choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected (.*)", line):
        word, option, listed = choice.groups()
        # Where an option may be left out tyro shuffles the names, and None among them.
        names = sorted({*re.findall(r"'([^']*)'", listed)} - {"None"})
        return f"{option} {word}: {did_you_mean(word, names)}"
    return line


def _unknown(line: str, words: Sequence[str]) -> str:
    """Return what there is instead of the words that tyro, in this line, does not recognise."""
    verb, *rest = words
    known = [f"--{item.name.replace('_', '-')}" for item in fields(VERBS[verb])]
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    unknown = [o for o in options if f"--{_field(o)}".replace("_", "-") not in known]
    near = get_close_matches(unknown[0], known, 1) if unknown else []
    hint = f"did you mean {near[0]}?" if near else f"see manualbp {verb} --help"
    if unknown:
        return f"{verb} has no option {unknown[0]}; {hint}"
    (word, *_) = re.findall(r"options: ([^ ,]+)", line)
    return f"{verb}: {word} is not the value of an option; {hint}"


def _kinds(verb: str, name: str) -> set[Any]:
    """Return the types that the values of an option may have; tuple among them for a list."""
    kinds: list[Any] = [get_type_hints(VERBS[verb])[name]]
    found: set[Any] = set()
    while kinds:
        kind = kinds.pop()
        found.add(get_origin(kind) or kind)
        kinds += get_args(kind)
    return found


def _typed(option: str, words: Sequence[str]) -> str:
    """Return what was typed after an option, the last time that it was given."""
    parts = [part for word in words for part in word.split("=", 1)]
    place = len(parts) - parts[::-1].index(option)
    return " ".join(takewhile(_is_value, parts[place:]))


def _field(option: str) -> str:
    """Return the name of what an option sets: --no-json sets json."""
    return re.sub("^--(no-)?", "", option).replace("-", "_")


def _require_command(words: Sequence[str]) -> None:
    """Raise UsageError unless the first word is a command, or asks for help."""
    first = words[0] if words else ""
    if first in (*VERBS, "-h", "--help"):
        return
    there_are = f"there are: {', '.join(VERBS)}"
    if not first or first.startswith("-"):
        raise UsageError(f"expected a command first, as in manualbp train; {there_are}")
    hint = did_you_mean(first, list(VERBS))
    raise UsageError(f"{first}: there is no such command; {hint}")


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


def _value_of(option: str, words: Sequence[str]) -> str | None:
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
