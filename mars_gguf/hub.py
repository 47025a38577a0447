"""Downloads files of a Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from mars_gguf.errors import MarsError


def download(repository: str, pattern: str, *, needed: bool = True) -> str | None:
    """Downloads the file of a hub's repository that matches ``pattern``, through huggingface_hub
    and its cache. A pattern means an mmproj only if it says so; of several, the one in F16 is
    taken.

    Returns its path, or None for none that was not ``needed``. Raises MarsError if there is not one
    such file.
    """
    with _errors_of(repository):
        from huggingface_hub import hf_hub_download

        files = _files(repository)
        found = [f for f in files if fnmatch(f, pattern)]
        if "mmproj" not in pattern:
            found = [f for f in found if "mmproj" not in f]
        elif len(found) > 1:
            found = [f for f in found if "f16" in f.lower() and "bf16" not in f.lower()] or found
        if not found and not needed:
            return None
        if len(found) != 1:
            have = ", ".join(found or [f for f in files if f.endswith(".gguf")]) or "no GGUF"
            raise MarsError(
                f"{repository}: {len(found)} files match {pattern!r}, expected one of: {have}"
            )
        path: str = hf_hub_download(repository, found[0])
        return path


def fetch(repository: str, pattern: str, most: int) -> list[Path]:
    """Downloads the files of a hub's repository that match ``pattern``, each of at most ``most``
    bytes, as `download` does. Returns their paths. Raises MarsError for a larger one."""
    with _errors_of(repository):
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        names = sorted(name for name in _files(repository) if fnmatch(name, pattern))
        for name in names:
            try:
                size = get_hf_file_metadata(hf_hub_url(repository, name)).size or 0
            except HfHubHTTPError:
                raise
            except Exception:  # the hub is out of reach
                size = 0
            if size > most:
                raise MarsError(f"{repository}: {name} has {size} bytes, expected at most {most}")
        return [Path(hf_hub_download(repository, name)) for name in names]


@contextmanager
def _errors_of(repository: str) -> Iterator[None]:
    """Context manager: what goes wrong with a repository is a MarsError that names it."""
    try:
        yield
    except MarsError:
        raise
    except ImportError as error:
        raise MarsError("the hub needs huggingface_hub: pip install huggingface_hub") from error
    except Exception as error:  # of huggingface_hub, httpx, the network
        raise MarsError(f"{repository}: cannot be downloaded: {error}") from error


def _files(repository: str) -> list[str]:
    """Lists the files in a hub's repository; those in the cache if the hub is out of reach."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return HfApi().list_repo_files(repository)
    except HfHubHTTPError:
        raise
    except Exception as unreachable:
        try:
            cached = Path(snapshot_download(repository, local_files_only=True))
        except LocalEntryNotFoundError:
            raise unreachable from None
        return [f.relative_to(cached).as_posix() for f in cached.rglob("*") if f.is_file()]
