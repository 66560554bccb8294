"""A worker in the manner of ramp-engine's own local one, such as operators have in use; only its import line is rampd's."""

import os
import shutil
import subprocess
from datetime import datetime

from rampd import BaseWorker, _get_traceback


class EarlierWorker(BaseWorker):
    """Runs ramp-test, ends it at its timeout, and insists on its order of calls."""

    def setup(self):
        for name in ("kit_dir", "data_dir", "submissions_dir", "logs_dir", "predictions_dir"):
            self._check_config_name(self.config, name)
        self._bin = os.path.join(self.config.get("conda_env", "base"), "bin")
        super().setup()

    def teardown(self):
        if self.status not in ("collected", "retry"):
            raise ValueError("collect first")
        shutil.rmtree(self._output, ignore_errors=True)
        super().teardown()

    @property
    def _output(self):
        return os.path.join(self.config["submissions_dir"], self.submission, "training_output")

    @property
    def timeout(self):
        return self.config.get("timeout", 7200)

    def check_timeout(self):
        if not hasattr(self, "_began"):
            return None
        if (datetime.now() - self._began).total_seconds() > self.timeout:
            self._proc.kill()
            self.status = "timeout"
            return True
        return None

    def _is_submission_finished(self):
        self.check_timeout()
        return self._proc.poll() is not None

    def _is_submission_interrupted(self):
        return False

    def launch_submission(self):
        if self.status == "running":
            raise ValueError("it runs already")
        self._log_dir = os.path.join(self.config["logs_dir"], self.submission)
        os.makedirs(self._log_dir, exist_ok=True)
        self._log = open(os.path.join(self._log_dir, "log"), "wb+")
        words = ["nice", os.path.join(self._bin, "ramp-test"), "--submission", self.submission]
        words += ["--ramp-kit-dir", self.config["kit_dir"], "--ramp-data-dir", self.config["data_dir"]]
        words += ["--ramp-submission-dir", self.config["submissions_dir"], "--save-output", "--ignore-warning"]
        self._proc = subprocess.Popen(words, stdout=self._log, stderr=self._log)
        super().launch_submission()
        self._began = datetime.now()

    def collect_results(self):
        super().collect_results()
        if self.status in ["finished", "running", "timeout"]:
            self._proc.communicate()
            self._log.close()
            with open(os.path.join(self._log_dir, "log"), "rb") as file:
                message = _get_traceback(file.read().decode("utf-8"))
            status = self._proc.returncode
            if self.status == "timeout":
                message += f"\nWorker killed due to timeout after {self.timeout}s."
                status = 124
            predictions = os.path.join(self.config["predictions_dir"], self.submission)
            shutil.rmtree(predictions, ignore_errors=True)
            if status:
                shutil.rmtree(self._output, ignore_errors=True)
            else:
                shutil.copytree(self._output, predictions)
            self.status = "collected"
            return (status, message)
