"""The commands that only read: inspect and verify."""

import argparse
import json
import sys

from .terminal import DONE, FAILED


def inspect_file(options: argparse.Namespace) -> int:
    """Print what `options.file` is; 1 if quantize would refuse it."""
    from ..check.inspect import inspect

    found = inspect(options.file)
    print(json.dumps(found.to_json(), indent=1) if options.json else found.text(every_tensor=options.all))
    return FAILED if found.refused else DONE


def verify_files(options: argparse.Namespace) -> int:
    """Compare `options.quantized` with `options.original`; 1 for any fault, which is then on stderr."""
    from ..check.verify import verify

    result = verify(options.original, options.quantized)
    print(result.text(), file=sys.stdout if result.ok else sys.stderr)
    return DONE if result.ok else FAILED
