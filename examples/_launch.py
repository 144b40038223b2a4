"""Start an experiment of this repository from any folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]


def launch(experiment: str) -> NoReturn:
    """Run `python -m experiments.NAME` with the arguments of this process.

    Args:
        experiment: Name of the experiment.
    """
    # -P: what lies in the user's folder hides no module of the experiment.
    command = [sys.executable, "-P", "-m", f"experiments.{experiment}"]
    command += sys.argv[1:]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if os.name == "nt":
        # There `exec` ends this process before the other one is done.
        raise SystemExit(subprocess.call(command, env=environment))
    # In the place of this process: signals and exit codes are its own.
    os.execve(sys.executable, command, environment)
