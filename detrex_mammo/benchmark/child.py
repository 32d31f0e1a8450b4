# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One measurement in a process of its own: peak memory, first start.

``python -m detrex_mammo.benchmark.child MODULE FUNCTION ARGUMENTS`` calls a function of this
package with keyword arguments from JSON and writes what it returns, as JSON, to the last line.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

TIMEOUT_S = 1800


class ChildError(RuntimeError):
    """The process failed; the message is its last line."""


def in_child(
    function: Callable[..., Any], environment: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """Call a function in a new Python process.

    Args:
        function: at the top level of a module of this package; takes and returns JSON data.
        environment: variables to set there.
        arguments: of the function.

    Raises:
        ChildError: it raised, or the process was killed.
    """
    command = [sys.executable, "-m", __name__, function.__module__, function.__name__]
    command.append(json.dumps(arguments))
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it took longer than {TIMEOUT_S} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ChildError(f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}")
    if done.returncode:
        raise ChildError((done.stderr.strip().splitlines() or ["no message"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def main(module: str, function: str, arguments: str) -> None:
    """Call and print."""
    print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
