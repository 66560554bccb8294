"""ramp-test (ramp-workflow): how it is called, and what it leaves behind: training_output, scores, a traceback.

Nothing here trusts what it reads: the files were written by a participant's process.
"""

from rampd.ramp_test.command import argv
from rampd.ramp_test.messages import end_of_log, error_message, explain_exit, shown_message, timeout_message
from rampd.ramp_test.training_output import (
    check_training_output,
    keep_training_output,
    read_figures,
    read_scores,
    summarize,
)

__all__ = [
    "argv",
    "check_training_output",
    "end_of_log",
    "error_message",
    "explain_exit",
    "keep_training_output",
    "read_figures",
    "read_scores",
    "shown_message",
    "summarize",
    "timeout_message",
]
