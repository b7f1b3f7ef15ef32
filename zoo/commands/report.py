"""The command ``zoo report``: tables of results, from cards, results files and run folders."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checks.errors import UserError
from zoo.commands.columns import aligned

if TYPE_CHECKING:
    from zoo.commands.pages import Documentation
    from zoo.evaluation.results import Table
    from zoo.evaluation.runs import Run


def report(args: argparse.Namespace) -> None:
    """Print tables of results, or write them into the documentation, or check them."""
    from zoo.commands.pages import Documentation

    _check(args)
    if args.runs:
        _report_runs(args)
        return
    documentation = Documentation(args.folder)
    if args.check or args.write:
        if args.write and (changed := documentation.write()):
            print(f"Wrote {', '.join(changed)}")
        if problems := documentation.problems():  # after --write, tables that are on no page
            print("\n".join(problems))
            sys.exit(1)
        print(f"{len(documentation.shown())} tables agree with their sources")
    elif args.names:
        print("\n".join(_text(documentation.table(name), args.format) for name in args.names), end="")
    else:
        _list(documentation)


def _check(args: argparse.Namespace) -> None:
    """Check that the options fit together."""
    kinds = {"NAME": args.names, "--runs": args.runs, "--check": args.check, "--write": args.write}
    if len(given := [name for name, value in kinds.items() if value]) > 1:
        raise UserError(f"zoo report takes one of {' and '.join(given)} at a time: leave out the others")
    of_runs = {"--metric": args.metric, "--points": args.points, "-o": args.output}
    if wrong := [name for name, value in of_runs.items() if value and not args.runs]:
        raise UserError(f"{wrong[0]} is an option of --runs: add for example --runs 'runs/vade/*'")
    if args.format == "csv" and len(args.names) > 1:
        raise UserError(f"--format csv prints one table at a time, got {', '.join(args.names)}")
    if args.points and not args.metric:
        raise UserError("--points needs the name of a metric: add for example --metric val/loss")
    if args.output and args.output.suffix not in (".csv", ".png"):
        raise UserError(f"-o takes a name that ends in .csv or .png, got {args.output}")
    if args.points and args.output and args.output.suffix != ".csv":
        raise UserError(f"--points writes CSV files, got {args.output}: zoo curves draws learning curves")
    if args.output:
        from zoo.training.outputs import check_writable

        if args.output.is_dir():
            raise UserError(f"{args.output} cannot be written: it is a folder. Give the name of a file")
        check_writable(args.output)


def _text(table: "Table", form: str) -> str:
    from zoo.evaluation.results import in_csv, in_markdown

    return in_csv(table) if form == "csv" else in_markdown(table) + "\n"


def _list(documentation: "Documentation") -> None:
    """Print the name, the source and the page of each table."""
    from zoo.commands.pages import CARDS, WIDE

    shown = documentation.shown()
    rows = [["TABLE", "SOURCE", "PAGE"], [WIDE, CARDS, ""]]
    rows += [[name, source, shown.get(name, "")] for name, source in documentation.sources.items()]
    print("\n".join(aligned(rows)))


def _report_runs(args: argparse.Namespace) -> None:
    """Print metrics of run folders over seeds, or the points of their learning curves."""
    from zoo.evaluation import runs
    from zoo.training.shell import pasted

    found = runs.find_runs(args.runs, alike=not args.points)
    if args.points:
        table = runs.points(found, args.metric)
        print(_text(table, args.format), end="")
    else:
        spreads = runs.over_seeds(found, args.metric)
        table = runs.as_rows(spreads)
        print(_text(table if args.format == "csv" else runs.as_table(spreads), args.format), end="")
        if args.format != "csv":
            seeds = ", ".join(str(run.seed) for run in found)
            about = "The interval is that of Student's t. It assumes that the results are normal."
            print(f"\nSeeds: {seeds}. {about if len(found) > 1 else 'One run gives no spread and no interval.'}")
    if args.output:
        if args.output.suffix == ".csv":
            _write_results(args.output, found, table)
        else:
            from zoo.evaluation.seeds import draw_seeds

            draw_seeds(dict(runs.with_units(spreads, found[0].metrics)), args.output)
        print(f"Wrote {pasted(args.output)}", file=sys.stderr)


def _write_results(path: Path, found: "list[Run]", table: "Table") -> None:
    """Write a results file. Its command and hardware are those that the card or checkpoint of the first run records."""
    from zoo.evaluation.results import write_results
    from zoo.hub import record_of

    try:
        record = found[0].card or record_of(found[0].folder) or {}
    except UserError:  # the checkpoints were removed, and the table does not need them
        record = {}
    about = {
        "command": record.get("command", "not recorded"),
        "seed": ", ".join(str(run.seed) for run in found),
        "hardware": record.get("hardware", "not recorded"),
    }
    write_results(path, about, table.columns, table.rows)
