"""What is wrong with a command line, in one sentence of the project's own words: typer has its own, in a box of five lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cluster.wording import has_sentence, nearest, setting_fault

# Typer gives only the last of its exceptions for command lines a public name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_NO_COMMAND = re.compile(r"No such command '(.*?)'", re.DOTALL)
_NO_CHOICE = re.compile(r"(?s:'(.*)') is not one of (.*?)\.?")
_TOO_MANY = re.compile(r"Got unexpected extra argument(?:\(s\)|s?) \((.*)\)", re.DOTALL)


@contextmanager
def one_sentence(show: Callable[[str], None]) -> Iterator[None]:
    """A wrong command line within is shown by ``show``, and ends the command with status 2."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        show(usage_fault(error))
        raise typer.Exit(2) from None


def usage_fault(error: Any) -> str:
    """What is wrong, and which command's ``-h`` shows what there is.

    Args:
        error: typer's.
    """
    context = error.ctx
    help_of = f" ({context.command_path} -h)" if context is not None else ""
    return f"{_fault(error)}{help_of}"


def _fault(error: Any) -> str:
    parameters = error.ctx.command.params if error.ctx is not None else []
    if hasattr(error, "possibilities"):
        known = [name for each in parameters for name in (*each.opts, *each.secondary_opts) if name.startswith("-")]
        return f"unknown option {error.option_name}{_did_you_mean(error.option_name, known)}"
    if hasattr(error, "option_name"):
        return f"{error.option_name}: {_of_option(error.message)}"
    if isinstance(error, typer.BadParameter):
        name = error.param_hint or _name(error.param)
        return f"{name} is missing" if hasattr(error, "param_type") else f"{name}: {_of_value(error)}"
    if found := _NO_COMMAND.match(error.message):
        return f"unknown command {found[1]}{_did_you_mean(found[1], error.ctx.command.commands)}"
    if found := _TOO_MANY.fullmatch(error.message):
        return f"{found[1]}: one argument too many" if " " not in found[1] else f"{found[1]}: too many arguments"
    return error.message


def _name(parameter: Any) -> str:
    """Of an option, as it may be written; of an argument, as the usage line has it."""
    if parameter is None:
        return "the command line"
    options = [name for name in parameter.opts if name.startswith("-")]
    return max(options, key=len) if options else parameter.metavar or parameter.name.upper()


def _of_option(message: str) -> str:
    if "does not take a value" in message:
        return "takes no value"
    return "needs a value" if "requires an argument" in message else message


def _of_value(error: Any) -> str:
    # Typer leaves what is wrong to pydantic, whose sentences are for programmers; these are the settings' own.
    faults: list[Any] = getattr(error.__cause__, "errors", list)()
    said = setting_fault(faults[0]) if faults and has_sentence(faults[0]["type"]) else error.message
    if found := _NO_CHOICE.fullmatch(said):
        *others, last = (f'"{one}"' for one in re.findall(r"'([^']*)'", found[2]))
        return f'must be {", ".join(others)} or {last}, got "{found[1]}"'
    return said.removesuffix(".")


def _did_you_mean(typed: str, known: Iterable[str]) -> str:
    names = list(known)
    found = _only_one_with_all_words_of(typed, names) or nearest(typed, names)
    return f"; did you mean {found}?" if found else ""


def _only_one_with_all_words_of(typed: str, names: list[str]) -> str | None:
    """--rate is nothing but --request-rate."""
    words = set(re.findall(r"[a-z0-9]+", typed.lower()))
    found = [name for name in names if words and words <= set(re.findall(r"[a-z0-9]+", name))]
    return found[0] if len(found) == 1 else None
