"""`dmrigen`: the tools beside the BIDS App. Each is in a separate file, which imports large packages only to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import benchmark, evaluate, prepare, simulate, train, volumes, weights

DONE, FAILED, BAD_RESOURCE = 0, 1, 4  # the same as in `app`


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool; return its exit status: 0 done, 1 failed, 2 usage, 4 weights or atlas missing or wrong."""
    parser = argparse.ArgumentParser(prog="dmrigen", description="Tools beside the BIDS App bids_dmrigen.")
    parser.add_argument("--version", action="version", version=f"bids_dmrigen {__version__}")
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    for tool in (volumes, simulate, prepare, train, weights, evaluate, benchmark):
        tool.add(tools)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or DONE
    except KeyboardInterrupt:
        return FAILED
    except (OSError, ValueError) as error:
        print(f"dmrigen {args.tool}: {error}", file=sys.stderr)
        return BAD_RESOURCE if _about_resources(error) else FAILED


def _about_resources(error: Exception) -> bool:
    from ..diffusion.weights import WeightsError
    from ..simulate.atlas_file import AtlasError

    return isinstance(error, (WeightsError, AtlasError))


if __name__ == "__main__":
    sys.exit(main())
