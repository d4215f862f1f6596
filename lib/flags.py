"""A command line from a dataclass, and how a program ends when something is wrong with what it was given."""

from __future__ import annotations

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


def called(command: str = "") -> str:
    """How this program was started: "train.py", or "python -m scripts.plan". command: the word that makes a
    script start this one, as in "eval.py watch"."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"{Path(sys.argv[0]).name} {command}".strip()


def parser(about: str, command: str = "", **more) -> argparse.ArgumentParser:
    """A command line whose --help has the program's name as it was started, and the first paragraph of
    `about`."""
    return argparse.ArgumentParser(prog=called(command), description=about.split("\n\n")[0], **more)


def opt(default, help: str, group: str = "", *, low=None, high=None, above=None, choices: tuple = ()):
    """A field of a configuration. `group` starts a new section of --help with this field; low, high
    (inclusive), above (exclusive) and choices are what `check_ranges` allows. A Literal allows its words."""
    meta = {"help": help, "group": group, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


def parse(kind, presets: dict[str, dict], about: str, argv=None, auto: str = "", why: str = ""):
    """Command line -> an instance of the dataclass `kind`: its defaults, then the preset, then the flags.

    kind: fields made by `opt`, one of them `preset`. auto: what --preset auto means on this machine, and why.
    --help shows the values of the preset in force. SystemExit(2): an unknown flag, a value of the wrong type.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="auto")
    preset = first.parse_known_args(argv)[0].preset
    chosen = auto if preset == "auto" else preset
    form = {"usage": "%(prog)s [--flag value ...]", "formatter_class": argparse.RawDescriptionHelpFormatter}
    line = argparse.ArgumentParser(prog=called(), description=about, allow_abbrev=False, **form)
    if chosen not in presets:
        line.error(f"--preset {preset}: choose one of {', '.join(presets)}, auto")
    add_fields(line, kind, presets[chosen] | {"preset": chosen})
    values = vars(line.parse_args(argv))
    if preset == "auto":
        say(f"preset {chosen}: {why}; --preset {' | '.join(presets)} chooses")
    return kind(**values | {"preset": chosen})


def read(kind, argv, about: str, **more):
    """Command line -> an instance of the dataclass `kind`, without presets. about, more: see `parser`."""
    line = parser(about, **more)
    add_fields(line, kind, {})
    return kind(**vars(line.parse_args(argv)))


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
        hint, kind_of = hints[f.name], typing.get_origin(hints[f.name])
        one = typing.get_args(hint)[0] if kind_of is list else hint
        words = choices_of(f, hint)
        readers = {bool: boolean, dict: setting, typing.Literal: str}
        how = {"type": readers.get(kind_of or one, readers.get(one, one))}
        if kind_of is list:
            how |= {"nargs": len(default) if default and one is float else "*"}
        elif kind_of is dict:
            how |= {"nargs": "*", "action": Settings, "metavar": "KEY=VALUE"}
        how.setdefault("metavar", {bool: "BOOL", str: "TEXT", int: "N", float: "X"}.get(one, "VALUE"))
        shown = " ".join(f"{k}={v}" for k, v in default.items()) if isinstance(default, dict) else default
        help = f.metadata["help"].replace("%", "%%")
        if words:
            help = " | ".join(words) + ("; " + help if help else "")
        note = "" if shown in ("", [], {}) else f" [{shown}]".replace("%", "%%")
        section.add_argument(f"--{f.name}", default=default, help=help + note, **how)


class Settings(argparse.Action):
    """--flag key=value key=value: each pair replaces one of the defaults."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **dict(values)})


def setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "on", "yes", "1", "false", "off", "no", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return word in ("true", "on", "yes", "1")


def check_ranges(config):
    """ValueError: a field outside of what its `opt` and its type allow."""
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        value, m = getattr(config, f.name), f.metadata
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{f.name} {value}: must be a finite number")
        if m["low"] is not None and value < m["low"]:
            raise ValueError(f"--{f.name} {value}: must be at least {m['low']}")
        if m["above"] is not None and value <= m["above"]:
            raise ValueError(f"--{f.name} {value}: must be above {m['above']}")
        if m["high"] is not None and value > m["high"]:
            raise ValueError(f"--{f.name} {value}: must be at most {m['high']}")
        words = choices_of(f, hints[f.name])
        for word in (value if isinstance(value, list) else [value]) if words else ():
            if word not in words:
                raise ValueError(f"--{f.name} {word}: choose one of {', '.join(words)}")


def choices_of(f, hint) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else f.metadata["choices"]


def differences(was: dict, now: dict, but: tuple = ()) -> str:
    """The flags whose value changed, with both values; "" where none did."""
    names = [name for name in now if name not in but and was.get(name, now[name]) != now[name]]
    return ", ".join(f"--{name} {now[name]} (was {was[name]})" for name in names)


def sentence(error: Exception) -> str:
    """What a user can mend, in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; make room there, mend the path, or choose another --out"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; make room on the disk, or choose another --out"
    return " ".join(str(error).split())


def exits_cleanly(main):
    """A main(argv) whose ValueError or OSError becomes one sentence and exit code 2; Ctrl-C ends with 130."""

    @wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            if not processes.MAIN:
                time.sleep(3)  # torchrun ends this process meanwhile where the main one says the same
            print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            raise SystemExit(130) from None

    return wrapped
