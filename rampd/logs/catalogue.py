"""The catalogue of the log stream: every record's name, level and fields, as one table that other programs may rely on.

`rampctl schema` prints it as a JSON Schema, and every record that the test suite sees is held against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rampd.logs.catalogue_of_board import BOARD_RECORDS
from rampd.logs.catalogue_of_workers import WORKER_RECORDS
from rampd.logs.specs import ERROR, OUTCOMES, EventSpec, flag, mapping, number, text, texts, whole
from rampd.states import Outcome, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATES = tuple(SubmissionState)
_FINAL_OUTCOMES = tuple(outcome for outcome in Outcome if outcome is not Outcome.INTERRUPTED)
_WHERE = {
    "pid": whole("the process group of the run, where it is on this machine", nullable=True, required=False),
    "host": text("the host of the run, where it is on another", nullable=True, required=False),
    "dask_worker": text("the address of the Dask worker that has the run", required=False),
    "instance_id": text("EC2's id of its instance", nullable=True, required=False),
    "instance_type": text("the instance's type", nullable=True, required=False),
    "spot": flag("whether the instance is a spot instance", nullable=True, required=False),
    "instance_s": number("for how long the instance has been paid for", nullable=True, required=False),
}

CATALOGUE: Final[Mapping[str, EventSpec]] = {
    "daemon.started": EventSpec(
        "info",
        "The daemon has opened everything; submissions are looked for next.",
        {
            "version": text("rampd's version"),
            "pid": whole("the daemon's pid"),
            "python": text("the interpreter's version"),
            "uvloop": flag("whether the loop is uvloop's"),
            "events": texts("the events that are served"),
            "state_dir": text("the first event's state_dir; null where there is no event yet", nullable=True),
            "n_workers": whole("how many submissions run at once, over all events"),
            "max_workers": whole("how many may at most, over all events", nullable=True),
            "n_threads": whole("threads a submission's libraries may use", nullable=True),
            "containment": text("how local runs are contained; null where nothing runs locally", nullable=True),
            "worker": mapping("by event: facts about its worker"),
        },
    ),
    "daemon.ready": EventSpec(
        "info",
        "Submissions are taken from now on.",
        {"startup_s": number("since the start"), "counts": mapping("submissions by state")},
    ),
    "daemon.reloaded": EventSpec(
        "info",
        "The configs were read again, by SIGHUP or because something in events_dir changed.",
        {
            "reason": text("who asked for it", values=("SIGHUP", "events_dir")),
            "events": texts("the events that are served now, those that are being drained included"),
            "added": texts("events that are served from now on"),
            "removed": texts("events whose config went: they are drained"),
            "changed": mapping("by event: the keys that are in force already"),
            "reopening": mapping("by event: keys for which it is drained, and opened anew when nothing of it runs"),
            "rejected": texts("configs that cannot be used; what they said before stays in force"),
        },
    ),
    "daemon.stopping": EventSpec(
        "info",
        "A signal came: no more is claimed.",
        {
            "signal": text("its name", nullable=True),
            "reason": text("why"),
            "running": whole("how many submissions run"),
            "grace_s": number("how long they are given"),
        },
    ),
    "daemon.stopped": EventSpec(
        "info",
        "The last record of a daemon that stopped as it should.",
        {
            "exit_status": whole("the process's"),
            "uptime_s": number("since the start"),
            "finished": whole("submissions that came to their end"),
        },
    ),
    "daemon.failed": EventSpec("error", "The last record of a daemon that could not go on.", {"error": ERROR}),
    "config.rejected": EventSpec(
        "error",
        "A config, or its event, cannot be used; said once a content. Others are served.",
        {
            "path": text("the file"),
            "problems": texts("one sentence each"),
            "in_force": flag("whether what it said before stays in force"),
        },
    ),
    "config.warning": EventSpec(
        "warning",
        "A config works, but says something that is ignored or outdated.",
        {"path": text("the file"), "message": text("what, and what replaces it")},
    ),
    "event.opened": EventSpec(
        "info",
        "An event is served that was not when the daemon started, or was drained and opened anew.",
        {
            "path": text("its config"),
            "state_dir": text("its state_dir"),
            "n_workers": whole("how many of its submissions run at once"),
            "worker": mapping("facts about its worker"),
        },
    ),
    "event.closed": EventSpec(
        "info",
        "An event is not served any more, while the daemon goes on.",
        {"reason": text("why", values=("config_gone", "failed", "hunger_policy", "reopened"))},
    ),
    "event.adopted": EventSpec(
        "info",
        "The very first start on an event that another dispatcher served.",
        {
            "scored": whole("taken over with predictions"),
            "training_error": whole("taken over with only a log"),
            "new": whole("left to run"),
        },
    ),
    "event.held": EventSpec(
        "error",
        "Nothing of this event can run; submissions wait, and it is looked again every 5 s.",
        {
            "missing": text("what is missing"),
            "existing": texts("what there is instead"),
            "timeout_s": number("after which waiting ones become checking_error", nullable=True),
        },
    ),
    "event.released": EventSpec("info", "A held event runs again.", {"held_s": number("for how long it was held")}),
    "event.drained": EventSpec("info", "By the operator's word nothing is claimed any more.", {}),
    "event.resumed": EventSpec("info", "By the operator's word submissions are claimed again.", {}),
    "event.failed": EventSpec("error", "One of several events cannot go on; the others do.", {}),
    "submission.detected": EventSpec("info", "A complete submission was found.", {}),
    "submission.rejected": EventSpec(
        "warning",
        "Something in submissions_dir is no submission; said once.",
        {
            "name": text("its name, made printable"),
            "reason": text(
                "which rule it breaks",
                values=(
                    "bad_name",
                    "dangling_link",
                    "escaping_link",
                    "hard_link",
                    "link",
                    "no_folder",
                    "not_a_folder",
                    "sandbox",
                    "special_file",
                    "too_large",
                ),
            ),
            "message": text("the rule, as a sentence"),
        },
    ),
    "submission.queued": EventSpec(
        "info", "A submission waits for its turn.", {"position": whole("1 for the next one")}
    ),
    "submission.forgotten": EventSpec("info", "A waiting submission's folder is gone, and so is the submission.", {}),
    "submission.changed": EventSpec(
        "warning",
        "A submission's folder changed after its end; it is not run again by itself.",
        {"state": text("its state", values=_STATES)},
    ),
    "submission.started": EventSpec("info", "Once an attempt: the submission's process exists.", _WHERE),
    "submission.resumed": EventSpec("info", "A run was taken over from an earlier daemon.", _WHERE),
    "submission.recovered": EventSpec(
        "info", "A submission that was claimed by an earlier daemon, and never begun, was put back.", {}
    ),
    "submission.timed_out": EventSpec(
        "info", "A submission is over its time and is being ended.", {"timeout_s": number("how long it was given")}
    ),
    "submission.cancelled": EventSpec("info", "The organizers ended a submission, running or waiting.", {}),
    "submission.retried": EventSpec(
        "warning",
        "An attempt ended through no fault of the participant's, and the submission waits again.",
        {
            "reason": text("what happened"),
            "outcome": text("what kind of failure", values=OUTCOMES),
            "delay_s": number("for how long it backs off"),
            "counted": flag("whether the attempt counts against max_attempts"),
            "exit_status": whole("ramp-test's", nullable=True),
            "attempts": whole("how many there were"),
        },
    ),
    "submission.overruled": EventSpec(
        "error",
        "An attempt's outcome was dropped: somebody else has given the submission a state that it cannot follow.",
        {
            "error": ERROR,
            "outcome": text("how this attempt ended", values=OUTCOMES),
            "found": text("the state that stands"),
            "exit_status": whole("ramp-test's", nullable=True),
            "scores": mapping("those of the outcome, as in submission.scored", nullable=True),
        },
    ),
    "submission.scored": EventSpec(
        "info",
        "Its scores.",
        {"scores": mapping("{score: {train|valid|test: {mean, std, bagged}}}; NaN and infinities are null")},
    ),
    "submission.finished": EventSpec(
        "info",
        "The canonical line: a submission came to a final state. Deduplicate on (submission, attempt).",
        {
            "outcome": text("how", values=_FINAL_OUTCOMES),
            "state": text("its final state", values=tuple(state for state in SubmissionState if state.is_final)),
            "exit_status": whole("ramp-test's, 124 for a timeout, 128+n for signal n", nullable=True),
            "queued_s": number("from the queue to the attempt"),
            "setup_s": number("preparing the run", nullable=True),
            "run_s": number("the run", nullable=True),
            "collect_s": number("fetching and checking its results", nullable=True),
            "attempts": whole("how many there were"),
            "max_rss_bytes": whole("peak memory of its largest process", nullable=True),
            "log_bytes": whole("how much it printed", nullable=True),
            "log_path": text("where the log is"),
            "reason": text("for the operator, where the platform failed", nullable=True),
            "replayed": flag("written again after a restart: it may have been lost", required=False),
        },
    ),
    "request.refused": EventSpec(
        "warning",
        "What an operator asked for cannot be done.",
        {"kind": text("cancel or retry"), "answer": text("why")},
    ),
    "watch.polling": EventSpec(
        "warning",
        "inotify has no more to give; the folder is polled.",
        {"path": text("the folder"), "error": ERROR},
    ),
    "store.unavailable": EventSpec(
        "error",
        "The store or the journal could not be used; it is tried again.",
        {"error": ERROR, "delay_s": number("until the next try", required=False, nullable=True)},
    ),
    "store.recovered": EventSpec(
        "info", "The store or the journal works again.", {"down_s": number("for how long it did not")}
    ),
    "lifecycle.failed": EventSpec("error", "An unexpected error inside one submission's task: please report it.", {}),
    "log.dropped": EventSpec(
        "warning",
        "Records were lost because nobody read the stream.",
        {
            "count": whole("how many"),
            "first_seq": whole("the first number that is missing"),
            "last_seq": whole("the last one; between the two, every gap is one of the lost"),
        },
    ),
    "log": EventSpec("warning", "Another library's record.", {"message": text("what it says")}),
    **BOARD_RECORDS,
    **WORKER_RECORDS,
}
"""Every record that rampd writes, by name."""
