"""`--snapshot`: runs a copy of the code, since points wait while people edit.

FOLDER/src              the tracked files, as they were in the working tree
FOLDER/src/COMMIT       their commit, with "+" where files differed from it
FOLDER/src/CHANGES.diff how they differed

Once a sweep's folder holds a copy, every command that runs the sweep runs that code.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from dl_core.errors import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
"""The folder of the packages of the code that runs."""


def take(folder: pathlib.Path) -> pathlib.Path:
    """Copies the tracked files to `folder / "src"`, unless it is there.

    Args:
      folder: a sweep's folder.

    Returns:
      The copy; it is whole or absent at any moment.

    Raises:
      UserError: if this code is not in a git repository.
    """
    source = folder / "src"
    if source.exists():
        return source
    try:
        files = _git("ls-files", "-z").split("\0")[:-1]
        apart = _git("ls-files", "-z", "--others", "--exclude-standard").split("\0")
        changes = _git("diff", "--binary", "--relative", "--no-ext-diff", "HEAD")
        commit = _git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        files = []
    if "launch/snapshot.py" not in files:
        raise UserError(
            f"--snapshot copies the files that git tracks, and {_ROOT} is not a git "
            "repository with a commit"
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".src."))
    try:
        for name in files:
            _copy(_ROOT / name, temporary / name)
        (temporary / "CHANGES.diff").write_text(changes, errors="surrogateescape")
        (temporary / "COMMIT").write_text(commit + ("+" if changes else "") + "\n")
        temporary.chmod(0o755)
        temporary.rename(source)
    except OSError:
        if not source.exists():  # Else another process has been quicker.
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if modules := [name for name in apart if name.endswith(".py")]:
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        print(
            f"{modules[0]}{more}: not in {source}, since git does not track it",
            file=sys.stderr,
        )
    return source


def enter(folder: pathlib.Path, *, extends: bool = False) -> None:
    """Goes on as the same command of the code in `folder / "src"`, where there is one.

    The process is replaced; those that it starts run that code too. The current folder
    stays, and so does what relative paths mean.

    Args:
      folder: a sweep's folder.
      extends: whether the command adds the points of the code as it is now.

    Raises:
      UserError: if the copy cannot be run, or is not what the command is about.
    """
    source = (folder / "src").resolve()
    if source == _ROOT or not source.exists():
        return
    if extends:
        raise UserError(
            f"--extend: {folder} runs the code in {source}, which has no new points; "
            "remove that folder to go on with the code as it is now"
        )
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(source) in paths or os.pathsep in str(source):
        raise UserError(
            f"Python does not find the code in {source}: give a --workdir without "
            f"{os.pathsep!r}, or remove that folder"
        )
    print(f"running the code of {source}", file=sys.stderr, flush=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(source), *paths])),
        "PYTHONSAFEPATH": "1",  # Else the current folder, which may hold code, wins.
    }
    command = [sys.executable, "-m", "launch.sweep", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=_ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=True,
    ).stdout


def _copy(file: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies a file or a link; what was removed, or is a submodule, is left out."""
    if file.is_symlink() or file.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy, follow_symlinks=False)
