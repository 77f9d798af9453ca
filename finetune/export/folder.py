"""A new folder that is whole or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanfoundry.configs.errors import UserError


@contextmanager
def new_folder(out: Path, hint: str = "") -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, and vanishes where anything goes wrong.

    UserError where `out` holds something already, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and nothing in it is written over; give another --out{hint}")
    out = out.absolute()
    part = out.parent / f".{out.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror or error}; give another --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
