"""Whom a request comes from, as far as its head tells: host name, origin, password."""

from starlette.types import Scope

from plumbline_studio.gate.answers import BAD_HOST, BAD_ORIGIN, NO_PASSWORD, Refusal
from plumbline_studio.gate.names import authority, ip, origin, values
from plumbline_studio.gate.password import Password
from plumbline_studio.gate.settings import GateSettings


class Visitors:
    """Who may come in."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._password = Password(settings.credentials) if settings.credentials else None

    async def refusal(self, scope: Scope) -> Refusal | None:
        """Why this visitor may not; a wrong password is answered late."""
        if not self._host_allowed(scope):
            return BAD_HOST
        if not self._origin_allowed(scope):
            return BAD_ORIGIN
        if self._password and not await self._password.is_in(scope):
            return NO_PASSWORD
        return None

    def own_sites(self, scope: Scope) -> tuple[str, ...]:
        """The origins that the page of this request may have."""
        host = values(scope, b"host")[0]
        return (f"http://{host}", f"https://{host}", *self._settings.origins)

    def _host_allowed(self, scope: Scope) -> bool:
        hosts = values(scope, b"host")
        parsed = authority(hosts[0]) if len(hosts) == 1 else None
        if parsed is None:
            return False
        allowed = parsed[0] in self._settings.hosts
        return allowed or (self._settings.any_ip and ip(parsed[0]) is not None)

    def _origin_allowed(self, scope: Scope) -> bool:
        """Whether a request that may change something comes from our own page or no page at all."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return True
        origins = values(scope, b"origin")
        if not origins:  # not a browser, or one that says where the request comes from otherwise
            return set(values(scope, b"sec-fetch-site")) <= {"same-origin", "none"}
        if len(origins) > 1:
            return False
        if origins[0] in self._settings.origins:
            return True
        scheme = origins[0].partition("://")[0]
        theirs, ours = origin(origins[0]), origin(f"{scheme}://{values(scope, b'host')[0]}")
        return theirs is not None and theirs == ours
