"""A command line from a dataclass, and how a program ends when something is wrong with what it was given."""

import argparse
import importlib
import math
import sys
import time
import typing
from dataclasses import MISSING, field, fields
from functools import wraps
from pathlib import Path

from lib import processes
from lib.processes import say

METAVARS = {bool: "BOOL", str: "TEXT", int: "N", float: "X"}


class Parser(argparse.ArgumentParser):
    """Bad input is a ValueError, which `exits_cleanly` tells in one sentence."""

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def parser(about: str, command: str = "", **more) -> argparse.ArgumentParser:
    """A command line whose --help has `about` and the program's name as it was started: "train.py", or
    "python -m scripts.plan". command: the word that makes a script start this one, as in "eval.py watch"."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        name = f"python -m {spec.name.removesuffix('.__main__')}"
    else:
        name = f"{Path(sys.argv[0]).name} {command}".strip()
    form = argparse.RawDescriptionHelpFormatter
    return Parser(prog=name, description=about, formatter_class=form, **more)


def opt(default, help: str, group: str = "", *, low=-math.inf, high=math.inf, above=-math.inf):
    """A field of a configuration. `group` starts a new section of --help with this field. It takes numbers
    from low to high and greater than `above`, see check_ranges; the flag of a Literal takes its words."""
    meta = {"help": help, "group": group, "low": low, "high": high, "above": above}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


def parse(kind, argv, about: str, presets: dict | None = None, auto: str = "", why: str = ""):
    """Command line -> an instance of the dataclass `kind`: its defaults, then the preset, then the flags.

    kind: fields made by `opt`; where there are presets, one of them is `preset`. auto: the preset for a
    command line that names none, and why. --help shows `about` and the values of the preset in force.
    ValueError: an unknown flag, a value that cannot be."""
    values, note = {}, ""
    if presets:
        first = Parser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", choices=presets)
        asked = first.parse_known_args(argv)[0].preset
        values = presets[asked or auto] | {"preset": asked or auto}
        note = "" if asked else f"preset {auto}: {why}; --preset {' | '.join(presets)} chooses"
    line = parser(about, usage="%(prog)s [--flag value ...]", allow_abbrev=not presets)
    add_fields(line, kind, values)
    config = check_ranges(kind(**vars(line.parse_args(argv))))
    say(note)
    return config


def start(module: str, *arguments: str) -> int:
    """Runs the main of a program that is named, not imported: the floor below knows of no program."""
    return importlib.import_module(module).main(list(arguments))


def add_fields(parser, kind, values: dict):
    """One flag per field of `kind`, with `values` as defaults where they name it."""
    hints, section = typing.get_type_hints(kind), parser
    for f in fields(kind):
        if f.metadata["group"]:
            section = parser.add_argument_group(f.metadata["group"])
        default = values.get(f.name, f.default_factory() if f.default is MISSING else f.default)
        origin, inner = typing.get_origin(hints[f.name]), typing.get_args(hints[f.name])
        if origin is typing.Literal:
            how = {"choices": inner}
        elif origin is dict:
            how = {"nargs": "*", "action": Settings, "metavar": "KEY=VALUE"}
        else:
            one = inner[0] if origin is list else hints[f.name]
            how = {"type": boolean if one is bool else one, "metavar": METAVARS[one]}
        if origin is list:
            how["nargs"] = len(default) if default and one is float else "*"
        note = "" if default in ("", [], {}) else f" [{default}]"
        help = (f.metadata["help"] + note).replace("%", "%%")
        section.add_argument(f"--{f.name}", default=default, help=help, **how)


class Settings(argparse.Action):
    """--flag key=value key=value: each pair replaces one of the defaults."""

    def __call__(self, parser, namespace, values, option_string=None):
        if wrong := [text for text in values if not text.partition("=")[0] or "=" not in text]:
            raise argparse.ArgumentError(self, f"{wrong[0]!r} is not of the form key=value")
        pairs = dict(text.split("=", 1) for text in values)
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **pairs})


def check_ranges(config):
    """-> `config`, of fields made by `opt`. ValueError: a number is outside the bounds of its field."""
    for f in fields(config):
        value, bounds = getattr(config, f.name), f.metadata
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, (int, float)):
                wrong = {
                    "a finite number": not math.isfinite(x),
                    f"at least {bounds['low']}": x < bounds["low"],
                    f"above {bounds['above']}": x <= bounds["above"],
                    f"at most {bounds['high']}": x > bounds["high"],
                }
                for what, is_wrong in wrong.items():
                    if is_wrong:
                        raise ValueError(f"--{f.name} {x:g}: must be {what}")
    return config


def boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "on", "yes", "1", "false", "off", "no", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return word in ("true", "on", "yes", "1")


def exits_cleanly(main):
    """A main(argv) whose ValueError or OSError becomes one sentence and exit code 2; Ctrl-C ends with 130.
    However it ends, it gives back what it holds."""

    @wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            if not processes.MAIN:
                time.sleep(3)  # torchrun ends this process meanwhile where the main one says the same
            told = " ".join(str(error).split())
            if isinstance(error, OSError) and error.strerror:
                where = f"{error.filename}: " if error.filename else ""
                told = f"{where}{error.strerror}; make room there, mend the path, or choose another --out"
            print(f"error: {told}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        finally:
            processes.ENDING.close()

    return wrapped
