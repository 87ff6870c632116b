"""Work for processes to import: by the job's label."""

from __future__ import annotations

import os
import signal
import time

from tutelage.compare.cell import Job
from tutelage.errors import UserError
from tutelage.train.signals import StopRequest


def by_label(job: Job) -> None:
    """Prints, fails, dies, or runs until it is asked to stop."""
    print(f"working on {job.label}", flush=True)
    match job.label:
        case "fails":
            raise UserError("the loss is nan")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "runs":
            _until_asked(job)


def _until_asked(job: Job) -> None:
    with StopRequest() as stop:
        (job.folder / "started").touch()
        deadline = time.monotonic() + 120
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        (job.folder / "checkpoint").write_text(str(stop.requested))
        stop.leave_if_requested(1, job.folder)
