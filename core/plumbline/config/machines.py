"""The settings of where a run is computed: on one GPU, on several, on several machines."""

import ipaddress
import re
from typing import Literal

from pydantic import field_validator

from plumbline.config.field import Section, setting

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def _is_ipv6(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).version == 6 and "%" not in value
    except ValueError:
        return False


class MachinesSection(Section):
    """The GPUs that a run is spread over. They change its time and its memory, not what it learns."""

    gpus: int | None = setting(
        None,
        "GPUs",
        "Of each machine; empty takes as many idle ones as make the run quicker, 1 leaves the others alone",
        ge=1,
        le=64,
    )
    sharding: Literal["auto", "none", "full"] = setting(
        "auto",
        "Sharding",
        "none: every GPU holds the whole base, quickest; full: each holds a part of every layer, for a base "
        "that no single GPU holds; auto takes full only when it must",
    )
    num_machines: int = setting(
        1,
        "Number of machines",
        "With several, each is started by a command of its own; the forecast and the run's log show them",
        ge=1,
        le=256,
        other_names=("hosts",),
    )
    main_process_ip: str = setting(
        "",
        "Main process IP",
        "Name or IP of the first machine, as the others reach it",
        max_length=254,
        other_names=("address",),
    )
    port: int = setting(
        29500,
        "Port",
        "On the first machine, where all meet; they also need other ports of each other",
        ge=1024,
        le=65535,
    )

    @field_validator("main_process_ip")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value) and not _is_ipv6(value):
            raise ValueError("must be a host name or an IP address, without a port")
        return value

    def conflicts(self) -> dict[str, str]:
        """Settings that contradict each other, by key."""
        found: dict[str, str] = {}
        if self.num_machines > 1:
            if not self.main_process_ip:
                found["machines.main_process_ip"] = "must be given when there are several machines"
            if self.gpus is None:
                found["machines.gpus"] = "must be given when there are several machines"
        return found
