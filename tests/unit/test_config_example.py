from __future__ import annotations

import ast
import inspect
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rampd.config import DispatcherSection, RampSection, WorkerConfig
from rampd.event import load_settings
from rampd.workers.aws_config import AwsConfig
from rampd.workers.conda import CondaConfig
from rampd.workers.dask_config import DaskConfig

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.yml"
SECTIONS: dict[str, type[BaseModel]] = {"ramp": RampSection, "dispatcher": DispatcherSection, "worker": CondaConfig}


def test_the_example_is_a_valid_config() -> None:
    """Who copies the example and changes nothing has a config without a warning."""
    assert load_settings(EXAMPLE).warnings == ()


@pytest.mark.parametrize("name", SECTIONS)
def test_the_example_shows_every_key(name: str) -> None:
    """No key of a section is missing from the example, and none is made up."""
    shown = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))[name]
    assert set(shown) == set(SECTIONS[name].model_fields)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_example_shows_the_defaults(name: str) -> None:
    """A value that stands in the example is the one that counts without it."""
    shown = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))[name]
    model = SECTIONS[name]
    required = {key: value for key, value in shown.items() if model.model_fields[key].is_required()}
    from_example, from_nothing = model.model_validate(shown), model.model_validate(required)
    assert from_example.model_dump(exclude={"event_title"}) == from_nothing.model_dump(exclude={"event_title"})


def test_the_example_shows_the_keys_of_aws_and_their_defaults() -> None:
    """They stand in comments, ready to be used: every key, with the value that counts without it."""
    shown, own = _shown_in_comments("aws"), _own_keys(AwsConfig)
    assert set(shown) == set(own)
    example = {"ami_image_name"}  # one of two is needed
    needed = {key: text for key, text in shown.items() if own[key].is_required() or key in example}
    from_nothing = AwsConfig.model_validate({"worker_type": "aws", **needed})
    assert AwsConfig.model_validate({"worker_type": "aws", **shown}) == from_nothing


def test_the_example_shows_the_keys_of_dask_and_their_defaults() -> None:
    """As those of aws."""
    shown, own = _shown_in_comments("dask"), _own_keys(DaskConfig)
    assert set(shown) == set(own)
    needed = {key: text for key, text in shown.items() if own[key].is_required()}
    from_nothing = DaskConfig.model_validate({"worker_type": "dask", **needed})
    assert DaskConfig.model_validate({"worker_type": "dask", **shown}) == from_nothing


def _shown_in_comments(worker_type: str) -> dict[str, Any]:
    """Return the keys that stand in comments below the line which says whose they are."""
    lines = iter(EXAMPLE.read_text(encoding="utf-8").splitlines())
    assert any(f"worker_type {worker_type} has" in line for line in lines)
    keys = [line.strip().removeprefix("# ") for line in takewhile(_is_comment, lines) if ":" in line]
    shown = yaml.safe_load("\n".join(key for key in keys if not key.startswith("set ")))
    assert isinstance(shown, dict)
    return shown


def _is_comment(line: str) -> bool:
    return line.startswith("  # ") and "worker_type" not in line


def _own_keys(model: type[WorkerConfig]) -> dict[str, FieldInfo]:
    return {key: field for key, field in model.model_fields.items() if key not in WorkerConfig.model_fields}


@pytest.mark.parametrize("model", [RampSection, DispatcherSection, WorkerConfig, CondaConfig, AwsConfig, DaskConfig])
def test_every_key_has_a_docstring(model: type[BaseModel]) -> None:
    """Under each field of a section stands what it means."""
    (tree,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef)
    documented = {
        field.target.id
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
    assert documented == set(model.__annotations__) - {"model_config"}
