"""The catalogue's records of workers, of the machines they run on, and of the connections to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rampd.logs.specs import ERROR, OUTCOMES, EventSpec, flag, number, text, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER_RECORDS: Final[Mapping[str, EventSpec]] = {
    "worker.uncontained": EventSpec(
        "warning",
        "What the platform does not protect from submissions; once at a start.",
        {"message": text("what, and what to do about it")},
    ),
    "worker.setup_failed": EventSpec(
        "warning",
        "A worker could not run an attempt.",
        {"error": ERROR, "outcome": text("what kind of failure", values=OUTCOMES)},
    ),
    "worker.lost": EventSpec(
        "warning",
        "A run, or a part of it, is gone.",
        {"error": ERROR, "outcome": text("what kind of failure", values=OUTCOMES)},
    ),
    "worker.plug_in_failed": EventSpec(
        "warning",
        "A method of a plug-in raised; the exception's traceback goes with it.",
        {"method": text("which"), "error": ERROR},
    ),
    "worker.abandoned": EventSpec(
        "error",
        "A call into a plug-in did not come back in its time. Its thread cannot be ended: mend the plug-in.",
        {
            "method": text("which"),
            "waited_s": number("how long it was given"),
            "thread": text("the thread's name after its prefix: the attempt's id"),
            "stuck": whole("how many such threads there are now; 64 hold the event"),
        },
    ),
    "worker.reclaimed": EventSpec(
        "info", "Something that an earlier daemon left was ended or removed.", {"what": text("what it was")}
    ),
    "aws.instance_launched": EventSpec(
        "info",
        "An instance was launched.",
        {
            "instance_id": text("EC2's id"),
            "instance_type": text("its type"),
            "spot": flag("whether it is spot"),
            "image_id": text("the image that it was launched from"),
        },
    ),
    "aws.instance_terminated": EventSpec(
        "info",
        "An instance was terminated.",
        {
            "instance_id": text("EC2's id"),
            "reason": text("why"),
            "instance_s": number("for how long it was paid for", nullable=True),
        },
    ),
    "aws.no_deadman": EventSpec(
        "warning",
        "An instance does not end itself when the daemon is gone for good; `reclaim` is all that ends it then.",
        {"instance_id": text("EC2's id"), "error": ERROR},
    ),
    "aws.spot_interrupted": EventSpec("warning", "AWS takes a spot instance back.", {"instance_id": text("EC2's id")}),
    "ssh.connected": EventSpec(
        "info",
        "A connection is open.",
        {"host": text("its address"), "instance_id": text("EC2's id"), "connect_s": number("how long it took")},
    ),
    "ssh.lost": EventSpec(
        "warning",
        "A connection broke.",
        {"host": text("its address"), "instance_id": text("EC2's id"), "error": ERROR},
    ),
    "dask.connected": EventSpec(
        "info",
        "The scheduler is there.",
        {
            "scheduler": text("its address"),
            "workers": whole("how many workers it has"),
            "connect_s": number("how long it took"),
        },
    ),
    "dask.full": EventSpec(
        "info",
        "All seats of the cluster are taken; submissions wait. Once, until there was one again.",
        {"workers": whole("Dask workers that could run submissions"), "seats": whole("how many at once")},
    ),
    "dask.warned": EventSpec(
        "warning",
        "Something of the cluster is not as it should be; once.",
        {"message": text("what, and what to do about it")},
    ),
    "dask.lost": EventSpec("warning", "The scheduler is gone.", {"scheduler": text("its address"), "error": ERROR}),
}
"""worker.*, aws.*, ssh.* and dask.*"""
