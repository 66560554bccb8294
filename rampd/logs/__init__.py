"""The log stream: one JSON object a line on stdout, catalogued, numbered, and never in the way of the event loop.

Used by the daemon and the command lines; everybody else just asks structlog for a logger.
"""

from rampd.logs.catalogue import CATALOGUE
from rampd.logs.pipeline import configure, get_logger
from rampd.logs.record_schema import json_schema, problems_of
from rampd.logs.specs import EventSpec, FieldSpec
from rampd.logs.stream import LogStream, take_stdout

__all__ = [
    "CATALOGUE",
    "EventSpec",
    "FieldSpec",
    "LogStream",
    "configure",
    "get_logger",
    "json_schema",
    "problems_of",
    "take_stdout",
]
