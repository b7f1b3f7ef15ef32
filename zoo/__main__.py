"""The command ``zoo COMMAND``, which is also ``python -m zoo COMMAND``."""

import sys
from pathlib import Path

import zoo

# ``python -m`` searches the working folder first. A user's random.py or lightning/ there would hide the library.
# The working folder is removed from the path unless it holds the zoo itself.
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).absolute() != zoo.WEIGHTS.parent.parent:
    del sys.path[0]

import argparse
from io import TextIOWrapper

from zoo.checks.errors import UserError
from zoo.commands import completion
from zoo.commands.conditions import parse_conditions
from zoo.commands.parser import parser
from zoo.training.error_lines import one_line_errors
from zoo.training.interruption import ended_by_signals


def main() -> None:
    with one_line_errors():
        if completion.asked():
            completion.answer(parser(train=True))
        arguments = parser()
        args = arguments.parse_args()
        if args.command is None:
            arguments.print_help()
            return
        if args.command in ("list", "report", "resume", "completion"):
            args.run(args)
            return
        from zoo.training.arguments import check_arguments, check_numbers
        from zoo.training.threads import prepare_threads

        prepare_threads()
        try:
            check_numbers(args)
            for text in vars(args).get("condition", []):
                parse_conditions(text)
        except UserError as error:
            arguments.commands[args.command].error(str(error))
        check_arguments(args)
        work(args)


def work(args: argparse.Namespace) -> None:
    """Run a command that needs torch, and print each log message on its own line."""
    import logging

    from zoo.training.messages import log_above_bars

    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    with log_above_bars():
        args.run(args)


def run() -> None:
    """Run the command of the command line. Hydra reads all words after ``train``; the parser reads other commands."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # it is None if the program starts with a closed stream
            stream.reconfigure(errors="backslashreplace")  # letters that the terminal does not have
    if sys.argv[1:2] == ["train"]:
        from zoo.commands import training

        training.run(sys.argv[2:])
        return
    with ended_by_signals():
        main()


if __name__ == "__main__":
    run()
