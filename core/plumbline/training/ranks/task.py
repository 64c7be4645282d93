"""What the first process of a run has the others do."""

from dataclasses import dataclass, replace
from pathlib import Path

from plumbline.batches.prepare import Prepared
from plumbline.config.schema import RunConfig
from plumbline.engine.plan import Plan


@dataclass(frozen=True)
class RankTask:
    """What the first process has the others do.

    :param checkpoint: the files to go on from by name; None begins anew
    """

    config: RunConfig
    prepared: Prepared
    plan: Plan
    checkpoint: dict[str, bytes] | None

    @classmethod
    def of(cls, config: RunConfig, prepared: Prepared, plan: Plan, checkpoint: Path | None) -> "RankTask":
        files = None
        if checkpoint is not None and plan.processes > 1:
            # What was drawn was drawn by the first process: the others draw numbers of their own.
            found = (
                path for path in checkpoint.rglob("*") if path.is_file() and "rng_state" not in path.name
            )
            files = {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in found}
            files["step"] = checkpoint.name.encode()
        return cls(config, prepared, plan, files)

    def begun(self) -> "RankTask":
        """Without the checkpoint, once it is where it is needed."""
        return replace(self, checkpoint=None)

    def unpacked(self, folder: Path) -> Path | None:
        """The checkpoint in a folder of this process's own."""
        if self.checkpoint is None:
            return None
        files = dict(self.checkpoint)
        found = folder / files.pop("step").decode()
        for name, data in files.items():
            path = found / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return found
