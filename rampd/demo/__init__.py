"""The demo behind `rampctl demo`: a small iris deployment, served by the real daemon.

It owns the kit and the submissions in `kit/`, the environment they run in, and what a run is expected to show. Of
the rest of the house it uses only what everybody can: the `rampd` and `rampctl` commands and the log stream.
"""

from __future__ import annotations

from rampd.errors import RampdError


class DemoError(RampdError):
    """The demo cannot go on; the message says what to do."""
