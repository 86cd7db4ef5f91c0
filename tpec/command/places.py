"""The files that `quantize` reads and writes, from what its command line names; checked before any work is done."""

import argparse
import glob
import os
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from ..errors import TpecError
from ..files.naming import default_output, is_model_name, named_output, names_folder, refuse_shared_outputs
from ..files.replace import disk_errors, exists, is_folder, refuse_unwritable

#: What a report's name may end in: a page for people, or data for programs.
PAGES, DATA = (".html", ".htm"), (".json",)


def input_paths(given: Iterable[str]) -> list[Path]:
    """The inputs, with wildcards resolved (Windows shells pass them on); one that matches nothing stays as it is.

    Raises TpecError for a folder that cannot be read.
    """
    return [Path(name) for pattern in given for name in _matches(pattern)]


def output_paths(options: argparse.Namespace, inputs: list[Path]) -> list[Path]:
    """One output for each input. Raises TpecError where names collide or would mislead readers."""
    outputs = [default_output(path, options.keep_distillation) for path in inputs]
    if options.output is not None and names_folder(options.output):
        outputs = [Path(options.output, path.name) for path in outputs]
    elif options.output is not None and len(inputs) == 1:
        outputs = [named_output(options.output)]
    elif options.output is not None:
        raise TpecError(f"{options.output} is not a folder: with several inputs, give the results' folder as "
                        "-o.")
    refuse_shared_outputs(inputs, outputs)
    return outputs


def check_texts(options: argparse.Namespace, inputs: list[Path], outputs: list[Path]) -> None:
    """Raises TpecError if the report or the recipe could not be written, or would replace a model."""
    places = (("--report", "report", options.report), ("--write-recipe", "recipe", options.write_recipe))
    for flag, word, path in places:
        if path is None:
            continue
        if len(inputs) > 1:
            raise TpecError(f"{flag} takes one input: run it for each.")
        if not is_folder(path.parent, "written") or is_folder(path, "written"):
            raise TpecError(f"The {word} {path} cannot be written: there is no such folder, or it is one itself; "
                            "choose another name.")
        if is_model_name(path.name) or path.resolve() in [other.resolve() for other in (*inputs, *outputs)]:
            raise TpecError(f"The {word} {path} would replace a model: choose a name that ends in .json.")
        refuse_unwritable(path)
    if options.report is not None:
        _check_report(options.report, [path for path in (options.recipe, options.write_recipe) if path is not None])


def _check_report(path: Path, recipes: list[Path]) -> None:
    if path.suffix.lower() not in (*PAGES, *DATA):
        raise TpecError(f"The report {path} is of no kind that is known here: choose a name that ends in .html (a page "
                        "to look at) or .json (for programs).")
    if path.resolve() in [recipe.resolve() for recipe in recipes]:
        raise TpecError(f"The report {path} would replace the recipe: choose another name.")


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or exists(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        _refuse_unreadable(Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)))
    return found or [pattern]


def _refuse_unreadable(folder: Path) -> None:
    """Raises TpecError for a folder that cannot be listed: glob finds nothing there and keeps the reason to itself."""
    if is_folder(folder):
        with disk_errors(folder, "read"), os.scandir(folder) as entries:
            next(entries, None)
