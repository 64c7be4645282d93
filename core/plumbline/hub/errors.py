"""What the Hub and the network refuse, in words that say what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from plumbline.errors import StudioError
from plumbline.hub.dataset_files import is_inside

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


MOST_BYTES = 2**50  # of one file, by the Hub's word
_COMMIT = re.compile(r"[0-9a-f]{40}")


def listed(info: Any, repo_id: str) -> tuple[str, dict[str, int]]:
    """The commit that the Hub tells of a repository, and the bytes of each of its files.

    :raises StudioError: when its answer is none: a commit and names become paths on this disk
    """
    with understood(repo_id):
        sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
        known = all(type(size) is int and 0 <= size < MOST_BYTES for size in sizes.values())
        if not known or not _COMMIT.fullmatch(info.sha) or not all(type(name) is str for name in sizes):
            raise ValueError("sizes, names or commit are none")
    return info.sha, {name: size for name, size in sizes.items() if is_inside(name)}


@contextmanager
def understood(repo_id: str) -> Iterator[None]:
    """Around what reads an answer of the Hub. :raises StudioError: when it is not what it should be

    It may come from anything that answers under the Hub's address: a proxy's page, a mirror, a cut.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        what = "what answers under the Hub's address is not the Hub, or its answer is cut"
        raise StudioError(repo_id, what, "Try again; check HF_ENDPOINT and the network's proxy.") from error


def is_cut(error: Exception) -> bool:
    """Whether a connection was not made, or broke: unlike a refusal, or an error of this disk.

    False where the library has already tried for long and looked for a copy on this disk.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    already_reported = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, StudioError)
    if isinstance(error, already_reported):
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
