"""Check the arguments of ``zoo`` before torch is imported, so that errors appear at once."""

import argparse
from pathlib import Path

from zoo.checks.errors import UserError
from zoo.checks.sources import SAFETENSORS, check_name, check_source, export_folder
from zoo.checks.values import check_integer

LEAST = {"n": 1, "draws": 2, "batch_size": 1, "importance_samples": 0, "bound_images": 0, "samples": 2, "size": 1}


def check_numbers(args: argparse.Namespace) -> None:
    """Check numbers.

    Raises:
        UserError: if a number is out of range.
    """
    given = {key: value for key, value in vars(args).items() if value is not None}
    for key, least in LEAST.items():
        if key in given:
            check_integer(key.replace("_", "-"), given[key], least)
    if given.get("bound_images", 0) % 5:
        raise UserError(f"bound-images must be a multiple of 5, got {given['bound_images']}")
    if not 0 <= given.get("seed", 0) < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2^32 - 1, got {given['seed']}")


def check_arguments(args: argparse.Namespace) -> None:
    """Check checkpoints, run folders and output files.

    Raises:
        UserError: if a checkpoint or run is missing, or a file cannot be written.
    """
    given = {key: value for key, value in vars(args).items() if value is not None}
    if "source" in given and (args.command, args.source) != ("compare", "toy"):
        args.source = check_source(args.source)
    if "name" in given:
        from zoo.training.outputs import check_writable

        args.folder = export_folder(args.folder)
        check_name(args.name, args.force, args.folder)
        check_writable(args.folder / f"{args.name}{SAFETENSORS}")
    for run in given.get("runs", []):
        _check_run(run)
    if "output" in given:
        _check_output(args)
    if "dry_run" in given:
        from zoo.training.outputs import check_writable

        check_writable(args.dry_run / "README.md")
    if "csv" in given:
        _check_results(args.csv)


def _check_run(run: Path) -> None:
    path = run / "metrics.csv"
    if not path.is_file():
        raise UserError(f"there is no {path}: give the folder of a run, such as runs/vae/2026-11-21_10-00-00")


def _check_output(args: argparse.Namespace) -> None:
    from zoo.training.outputs import check_picture, check_writable, vectors_format

    if args.command == "vectors":
        vectors_format(args.output, args.binary)
    else:
        check_picture(args.output)
    if args.output.is_dir():
        raise UserError(f"{args.output} cannot be written: it is a folder. Give the name of a file")
    check_writable(args.output)


def _check_results(path: Path) -> None:
    from zoo.training.outputs import check_writable

    if path.suffix != ".csv" or path.is_dir():
        raise UserError(f"a results file must be a file that ends in .csv, got {str(path)!r}")
    check_writable(path)
