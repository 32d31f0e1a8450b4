# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A user's mistake: one sentence on stderr, exit code 2, no traceback."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake of the user's, told in one sentence.

    The message names the setting or file, what it was, what is allowed and what to do.

    Attributes:
        report: what a tool prints above the sentence, where one sentence cannot hold everything.
    """

    def __init__(self, message: str, report: str = ""):
        super().__init__(message)
        self.report = report


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a command-line tool and leave the process with its exit code.

    Args:
        main: the tool; returns an exit code or None for 0.

    Raises:
        SystemExit: always; 2 after a :class:`UserError`, 130 after Ctrl-C.
    """
    try:
        code = main() or 0
    except UserError as error:
        if error.report:
            print(error.report, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os._exit(1)
    sys.exit(code)
