"""How errors of the system are put into words, by the server and by the tools."""

from __future__ import annotations


def explain(error: BaseException) -> str:
    """What went wrong: of an error of the system which file it is about, and what the system says."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        return error.strerror
    shown = " and ".join(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape") for name in names)
    return f"{shown}: {error.strerror}"
