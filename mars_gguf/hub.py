"""Downloads files of a Hugging Face hub."""

from __future__ import annotations

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
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MarsError("--hf-repo needs huggingface_hub: pip install huggingface_hub") from error
    try:
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
    except MarsError:
        raise
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
