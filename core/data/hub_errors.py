"""What the Hub and the network refuse, in words that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from core.errors import StudioError

Kind = Literal["dataset", "model"]


@contextmanager
def explained(
    repo_id: str, revision: str | None, cut: str, fix: str, kind: Kind = "dataset"
) -> Iterator[None]:
    """Turns what the Hub or the network refuses into a message. Full disks and bugs pass through.

    :param cut: what is wrong when there is no answer, or only a part of one
    """
    try:
        yield
    except Exception as error:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        if "No space left on device" in str(error):  # the compiled transfer has no error numbers
            raise OSError(errno.ENOSPC, "No space left on device") from error
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # what happened before it looked for a copy on this disk
        if isinstance(error, OfflineModeIsEnabled):
            raise StudioError(repo_id, "the Hub is switched off", "Unset HF_HUB_OFFLINE.") from error
        if isinstance(error, HfHubHTTPError):
            raise _refused(error, repo_id, revision, kind) from error
        if is_cut(error):
            raise StudioError(repo_id, cut, fix) from error
        raise


def is_cut(error: Exception) -> bool:
    """Whether a connection was not made, or broke: unlike a refusal, or an error of this disk.

    False where the library has already tried for long and looked for a copy on this disk.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    told = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, StudioError)
    if isinstance(error, told):
        return False
    # The base of every error of the HTTP client that this version of the library uses.
    client = HfHubHTTPError.__bases__[0]
    if isinstance(error, (client, ConnectionError, TimeoutError)):
        return True
    # The compiled transfer raises plain RuntimeError, a size that is not the promised one plain OSError.
    return type(error) is RuntimeError or (isinstance(error, OSError) and error.errno is None)


def _refused(error: Any, repo_id: str, revision: str | None, kind: Kind) -> StudioError:
    """What the Hub's answer means, told by its kind and status; its own text may hold addresses."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return StudioError(repo_id, f"has no revision {revision!r}", "Name a branch, a tag or a commit.")
    if isinstance(error, GatedRepoError) or status == 403:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        return StudioError(repo_id, "is gated", f"Accept its terms at {page}, then set HF_TOKEN.")
    if status in (401, 404):
        what = "is not on the Hub, or is private"
        return StudioError(repo_id, what, f"Check the id; private {kind}s need a valid HF_TOKEN.")
    if status == 429:
        return StudioError(repo_id, "the Hub asks to slow down (429)", "Try again in a few minutes.")
    return StudioError(repo_id, f"the Hub answers with error {status}", "Try again later.")
