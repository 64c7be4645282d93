"""The adapter as one zip, checked against its checksums first, with the base's tokenizer."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from plumbline.errors import StudioError
from plumbline.evaluation.compare import refuse_without_adapter
from plumbline.export import files
from plumbline.files import sha256_of
from plumbline.home import export_folder, run_folder
from plumbline.jobs.job import Job
from plumbline.models import adapter_check, adapter_readers, load
from plumbline.models.artifact import broken_files, refuse_other_tokenizer
from plumbline.store import runs


def export_adapter(job: Job) -> dict[str, Any]:
    """Zip a run's artifact.

    :returns: ``file`` (its name in the export's folder), ``bytes``, ``sha256``, and ``refusals``: what
        other programs do not read of it
    :raises StudioError: when there is no adapter, or a file or the base's tokenizer has changed
    """
    refuse_without_adapter(job.run_id)
    job.running()
    job.report("checking the files", 0.1)
    source = run_folder(job.run_id) / "artifact"
    broken = broken_files(source)
    if broken:
        raise StudioError(
            f"run {job.run_id}", f"its {', '.join(broken)} changed after training", "Train it again."
        )
    config = runs.recipe(job.run_id)
    tokenizer = load.tokenizer(config.model.base, config.model.revision)
    refuse_other_tokenizer(source, tokenizer)
    name = f"run-{job.run_id}-adapter"
    final = export_folder(job.id) / f"{name}.zip"
    job.report("writing the zip", 0.5)
    with tempfile.TemporaryDirectory(dir=final.parent) as beside:
        files.write_tokenizer(Path(beside), config, tokenizer)
        job.check_stop()
        every = sorted([*source.iterdir(), *Path(beside).iterdir()], key=lambda path: path.name)
        files.write_zip(final, name, every, zipfile.ZIP_DEFLATED)
    runs.event(f"adapter written to exports/{job.id}/{final.name}", job.run_id, job.id)
    return {
        "file": final.name,
        "bytes": final.stat().st_size,
        "sha256": sha256_of(final),
        "refusals": refused_elsewhere(job.run_id),
    }


def refused_elsewhere(run_id: int) -> list[str]:
    """What other programs do not read of a run's adapter, as sentences."""
    path = run_folder(run_id, create=False) / "artifact" / adapter_check.CONFIG
    return adapter_readers.refusals(json.loads(path.read_text(encoding="utf-8")))
