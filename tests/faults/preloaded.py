"""What every forked run needs, imported once by the fork server."""

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import trl  # noqa: F401

import core.jobs.worker  # noqa: F401
import core.training.run  # noqa: F401
import core.training.trainer  # noqa: F401
import tests.faults.forked  # noqa: F401
from core.models import stack

stack.ready()
