"""Who may come in and where, from PLUMBLINE_AUTH, PLUMBLINE_HOSTS, PLUMBLINE_PREFIX and those of Spaces."""

import os
from dataclasses import dataclass, field

from plumbline.errors import StudioError
from plumbline_studio.gate.names import authority, ip
from plumbline_studio.gate.prefix import PREFIX

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class GateSettings:
    """Who may come in, and with how much."""

    hosts: tuple[str, ...] = LOOPBACK  # names that Host may carry, the port is ignored
    credentials: tuple[str, str] | None = field(default=None, repr=False)  # user, password
    max_upload_bytes: int = 2 * 1024**3
    max_body_bytes: int = 1024**2  # of everything but the upload route
    frame_ancestors: str = "'self'"
    any_ip: bool = False  # a Host that is an IP address passes: a rebinding attack needs a name
    prefix: str = ""  # what a proxy serves the studio under, such as "/studio"
    origins: tuple[str, ...] = ()  # accepted whatever Host is, for example "https://a.hf.space"


def settings_from_environment(host: str) -> GateSettings:
    """The settings for listening on `host`.

    Raises StudioError when the studio would be open to the network without a password.
    """
    host = host.strip("[]").lower()
    address = ip(host)
    local = host == "localhost" or (address is not None and address.is_loopback)
    on_space = bool(os.environ.get("SPACE_ID"))
    space_hosts = _names("SPACE_HOST") if on_space else ()  # two names with a custom domain
    credentials = _credentials(os.environ.get("PLUMBLINE_AUTH", ""))
    # A Space asks for one too: whoever opens it could start, read and delete runs.
    if not (local or credentials):
        raise StudioError(
            "PLUMBLINE_AUTH",
            "listening beyond this computer needs a password",
            'Set PLUMBLINE_AUTH="user:password"'
            + (" as a secret of the Space." if on_space else ", or listen on 127.0.0.1."),
        )
    return GateSettings(
        hosts=tuple(dict.fromkeys((*LOOPBACK, host, *_names("PLUMBLINE_HOSTS"), *space_hosts))),
        credentials=credentials,
        frame_ancestors="'self' https://huggingface.co" if on_space else "'self'",
        any_ip=not local,
        prefix=_prefix(os.environ.get("PLUMBLINE_PREFIX", "")),
        origins=tuple(f"https://{name}" for name in space_hosts),
    )


def _credentials(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise StudioError(
            "PLUMBLINE_AUTH",
            "this is not a user and a password",
            'Write both with a colon between them: PLUMBLINE_AUTH="user:password".',
        )
    return user, password


def _prefix(text: str) -> str:
    prefix = text.strip().rstrip("/")
    if prefix and not PREFIX.fullmatch(prefix):
        raise StudioError(
            "PLUMBLINE_PREFIX",
            "this is not the path that a proxy serves the studio under",
            'Write it with a slash in front and nothing else: PLUMBLINE_PREFIX="/studio".',
        )
    return prefix


def _names(variable: str) -> tuple[str, ...]:
    """The host names in this environment variable, without their ports."""
    entries = [entry.strip() for entry in os.environ.get(variable, "").split(",")]
    parsed = [authority(entry) for entry in entries if entry]
    if None in parsed:
        raise StudioError(
            variable,
            "one of the entries is not a host name",
            f'Write names without https:// or a path: {variable}="studio.example,10.0.0.5".',
        )
    return tuple(name for name, _ in parsed)
