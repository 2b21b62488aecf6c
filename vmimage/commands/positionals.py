"""The command line of Invoke's tasks: positional arguments that may be left out, and numbers that are none."""

from __future__ import annotations

from invoke.exceptions import ParseError
from invoke.parser.parser import ParseMachine


def refuse_wrong_values() -> None:
    """Let a value that its option cannot have be an error of the command line; Invoke shows a traceback."""
    see = ParseMachine.see_value

    def see_value(machine: ParseMachine, value: str) -> None:
        flag = machine.flag
        try:
            see(machine, value)
        except ValueError:
            name = flag.name.replace("_", "-") if flag and flag.name else ""
            raise ParseError(f"--{name} {value!r}: no whole number", machine.context) from None

    ParseMachine.see_value = see_value  # type: ignore[method-assign, assignment]


def allow_missing_positionals() -> None:
    """Let a positional argument that is also `optional` be left out: it is then empty.

    Invoke asks for every positional argument: https://github.com/pyinvoke/invoke/issues/159
    """
    complete, handle = ParseMachine.complete_context, ParseMachine.handle

    def leave_out(machine: ParseMachine, *, required: bool = False) -> None:
        for argument in machine.context.missing_positional_args if machine.context else []:
            if argument.optional or required:
                argument.value = ""

    def complete_context(machine: ParseMachine) -> None:
        leave_out(machine)
        complete(machine)

    def handle_token(machine: ParseMachine, token: str) -> None:
        # Otherwise `invoke run --help` would look for an image of that name.
        known = machine.context and (token in machine.context.flags or token in machine.context.inverse_flags)
        if token.startswith("-") and not known and not machine.waiting_for_flag_value:
            leave_out(machine, required=token in ("-h", "--help"))
        handle(machine, token)

    ParseMachine.complete_context = complete_context  # type: ignore[method-assign, assignment]
    ParseMachine.handle = handle_token  # type: ignore[method-assign, assignment]
