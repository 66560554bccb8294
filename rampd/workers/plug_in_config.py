"""What a synchronous plug-in finds in `self.config`, and the model of a section that may have any key."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from rampd.config_sections import WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.models import Job
    from rampd.workers.base import WorkerContext

SUBMISSIONS, PREDICTIONS, LOGS = "submissions", "predictions", "logs"
"""Folders in the attempt's own."""


class PlugInConfig(WorkerConfig):
    """The `worker` section of a `BaseWorker` that has no model of its own: any key is allowed, and kept as it is."""

    model_config = ConfigDict(extra="allow")

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_what_was_given(cls, data: Any, handler: ModelWrapValidatorHandler[PlugInConfig]) -> PlugInConfig:
        made = handler(data)
        if isinstance(data, dict):
            made._given = dict(data)  # noqa: SLF001 -- its own
        return made

    @property
    def given(self) -> Mapping[str, Any]:
        """The section as it stands in the file."""
        return self._given


def config_for(config: WorkerConfig, context: WorkerContext, job: Job) -> dict[str, Any]:
    """Return the config of one attempt's plug-in, a dict of its own.

    Parameters
    ----------
    config
        The section: its keys go in as given, or as the plug-in's own model made them.
    context
        Has the event's folders.
    job
        The attempt, whose folders the three that the plug-in writes to are in.
    """
    made = copy.deepcopy(_section(config))
    made.setdefault("timeout", int(config.timeout) if config.timeout.is_integer() else config.timeout)
    if job.n_threads is not None:
        made.setdefault("n_threads", job.n_threads)
    own = {name: str(job.attempt_dir / name) for name in (SUBMISSIONS, PREDICTIONS, LOGS)}
    event = {
        SUBMISSIONS: context.submissions_dir or job.submission_dir.parent,
        PREDICTIONS: context.predictions_dir,
        LOGS: context.logs_dir or job.log_path.parent.parent,
    }
    return {
        **made,
        "kit_dir": str(job.kit_dir),
        "data_dir": str(job.data_dir),
        **{f"{name}_dir": path for name, path in own.items()},
        **{f"event_{name}_dir": None if path is None else str(path) for name, path in event.items()},
    }


def _section(config: WorkerConfig) -> dict[str, Any]:
    if isinstance(config, PlugInConfig):
        return dict(config.given)
    of_its_own = [name for name in type(config).model_fields if name not in WorkerConfig.model_fields]
    return {name: getattr(config, name) for name in (*sorted(config.model_fields_set), *of_its_own)}
