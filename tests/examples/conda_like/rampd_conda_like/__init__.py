"""The worker of RAMP's documentation ("Create your own worker"), completed as its text says.

The bodies of its code blocks stand here line by line; what the page leaves to the reader is marked with "ours".
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from typing import IO

from rampd import BaseWorker, _get_traceback

logger = logging.getLogger(__name__)


class CondaLikeWorker(BaseWorker):
    """Runs ramp-test of the environment that `conda_env` names: the path of its prefix."""

    _proc: subprocess.Popen[bytes]
    _stdout: IO[bytes]
    _stderr: IO[bytes]

    def setup(self) -> None:
        """Find the environment's ramp-test."""
        # ours: say early, and in a sentence, what is missing
        self._check_config_name(self.config, "conda_env")
        self._ramp_test = os.path.join(self.config["conda_env"], "bin", "ramp-test")
        if not os.access(self._ramp_test, os.X_OK):
            raise FileNotFoundError(f"there is no {self._ramp_test}")
        # call the base class to update the status and log
        super().setup()

    def teardown(self) -> None:
        """Close what was opened."""
        # ours: a run that was stopped has ended by now
        if hasattr(self, "_proc"):
            self._proc.wait()
            self._stdout.close()
            self._stderr.close()
        # call the base class to update the status and log
        super().teardown()

    def launch_submission(self) -> None:
        """Start ramp-test. Its output goes to files: a pipe that nobody reads would stop it at 64 KiB."""
        # ours: launch ramp-test --submission <sub> --save-output
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._proc = subprocess.Popen(
            [
                self._ramp_test,
                "--submission",
                self.submission,
                "--ramp-kit-dir",
                self.config["kit_dir"],
                "--ramp-data-dir",
                self.config["data_dir"],
                "--ramp-submission-dir",
                self.config["submissions_dir"],
                "--save-output",
                "--ignore-warning",
            ],
            stdout=self._stdout,
            stderr=self._stderr,
        )
        # call the base class to update the status and log
        super().launch_submission()

    def collect_results(self) -> tuple[int, str]:
        """Write log and predictions to where the config says."""
        # the base class will be in charge of checking that the state of
        # the worker is fine
        super().collect_results()
        # ours: what was printed, and what the participant reads of it
        self._proc.wait()
        self._stdout.seek(0)
        self._stderr.seek(0)
        stdout, stderr = self._stdout.read(), self._stderr.read()
        error_msg = _get_traceback(stderr.decode("utf-8", "replace")) if self._proc.returncode else ""
        # write the prediction and logs at the location indicated by the
        # dispatcher (given by the config file)
        log_output = stdout + b'\n\n' + stderr
        log_dir = os.path.join(self.config['logs_dir'],
                               self.submission)
        if not os.path.exists(log_dir):
            os.makedirs(log_dir)
        with open(os.path.join(log_dir, 'log'), 'wb+') as f:
            f.write(log_output)
        pred_dir = os.path.join(self.config['predictions_dir'],
                                self.submission)
        output_training_dir = os.path.join(
            self.config['submissions_dir'], self.submission,
            'training_output')
        if os.path.exists(pred_dir):
            shutil.rmtree(pred_dir)
        shutil.copytree(output_training_dir, pred_dir)
        self.status = 'collected'
        logger.info(repr(self))
        return (self._proc.returncode, error_msg)

    def _is_submission_finished(self) -> bool:
        """Status of the submission.

        The submission was launched in a subprocess. Calling ``poll()`` will
        indicate the status of this subprocess.
        """
        return False if self._proc.poll() is None else True
