"""What every forked run needs, imported once by the fork server."""

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import trl  # noqa: F401

import plumbline.training.loop.trainer  # noqa: F401
import plumbline.training.run  # noqa: F401
import plumbline.worker.worker  # noqa: F401
import tests.faults.forked  # noqa: F401
from plumbline.models import stack

stack.ready()
