"""The adapter as one zip, checked against its checksums first."""

import os
import zipfile
from typing import Any

from core.errors import StudioError
from core.evaluation.compare import refuse_without_adapter
from core.home import export_folder, run_folder
from core.jobs.worker import Job
from core.models import load
from core.store import runs
from core.training.artifact import broken_files, refuse_other_tokenizer
from core.training.checkpoints import sha256_of


def export_adapter(job: Job) -> dict[str, Any]:
    """Zip a run's artifact.

    :returns: ``file`` (its name in the export's folder), ``bytes`` and ``sha256``
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
    model = runs.recipe(job.run_id).model
    refuse_other_tokenizer(source, load.tokenizer(model.base, model.revision))
    name = f"run-{job.run_id}-adapter.zip"
    final = export_folder(job.id) / name
    staged = final.with_suffix(".new")
    job.report("writing the zip", 0.5)
    with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in sorted(source.iterdir()):
            job.check_stop()
            bundle.write(path, f"run-{job.run_id}-adapter/{path.name}")
    os.replace(staged, final)
    runs.event(f"adapter written to exports/{job.id}/{name}", job.run_id, job.id)
    return {"file": name, "bytes": final.stat().st_size, "sha256": sha256_of(final)}
