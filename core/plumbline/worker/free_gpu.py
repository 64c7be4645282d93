"""Room on the GPU before a job begins."""

from plumbline.jobs.job import Job
from plumbline.models.hardware import release_memory


def unload_chat(job: Job) -> None:
    """On a GPU the chat model goes before a job comes: two models rarely fit.

    :raises StopRequested: when the job is stopped while an answer is still being written
    """
    from plumbline.chat import session

    if (chat := session.close(gpu_only=True)) is None:
        return
    while not chat.busy.acquire(timeout=0.5):
        job.report("waiting for the chat's answer to end")
        job.check_stop()
    del chat
    release_memory()  # another process gets only what torch gives back
