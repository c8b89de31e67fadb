"""What the tests of the shell scripts share: a copy of the scripts under a path that is not plain, and running them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests import REPO

# The variables that the scripts read must not leak in from the machine that runs the tests.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


def script_environment(**changes: str | Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, **{name: str(value) for name, value in changes.items()}}


def run_script(
    script: Path | str, *arguments: str | Path, cwd: Path | str = "/", **changes: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a bash script to its end from a directory that is not the repository."""
    command = ["bash", str(script), *map(str, arguments)]
    environment = script_environment(**changes)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def copy_scripts(directory: Path) -> Path:
    """A repository that holds the scripts and nothing to run: ``directory/a päth with space``."""
    repo = directory / "a päth with space"
    shutil.copytree(REPO / "commands", repo / "commands", ignore=shutil.ignore_patterns("site.env"))
    for name in ("utils/__init__.py", "utils/errors.py", "utils/exchange/__init__.py", "utils/exchange/layout.py"):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)  # the names that the scripts ask for
        shutil.copy(REPO / name, repo / name)
    (repo / "drivers").mkdir()
    (repo / "drivers" / "run_ann.py").touch()
    (repo / "requirements.txt").write_text("# none\n")
    (repo / "requirements-dev.txt").write_text("-r requirements.txt\n")
    return repo


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)
    return path


def path_without(directory: Path, *missing: str) -> Path:
    """A directory for PATH with everything of this machine's PATH but the commands that begin with ``missing``."""
    folder = directory / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in sorted(Path(place).glob("*")) if place and os.access(place, os.R_OK | os.X_OK) else ():
            if not program.name.startswith(missing) and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return folder


def single_error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a script that refused, with exit code 2."""
    assert result.returncode == 2, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]
