"""Generated submissions: what each does under the stub ramp-test, and what may become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

TIMEOUT_S = 5.0

SAYS_SO = "echo $submission >>ROOT/runs\n"
"""Each run says whose it is."""
# Two runs of one submission at once would meet here: flock(1) lets in one only, and lets go with its last process.
_ALONE = "exec 9>>ROOT/locks/$name; flock -n 9 || echo $name >>ROOT/twice\n"
_KINDS = {
    "ok": ("sleep {length}\n", {"ok"}, 40),
    "loud": ("head -c 300000 /dev/zero | tr '\\0' x; sleep {length}\n", {"ok"}, 8),
    "leaves_a_child": ("setsid sleep 600 9>&- & sleep {length}\n", {"ok"}, 8),
    "raises": (
        (
            "sleep {length}; mkdir -p $submission/training_output/fold_0\n"
            "echo Traceback >$submission/training_output/fold_0/error.txt; exit 1\n"
        ),
        {"participant_error"},
        14,
    ),
    "ends_silently": ("exit 0\n", {"participant_error"}, 6),
    "kills_itself": ("kill -9 $$\n", {"participant_error"}, 6),
    "hangs": ("sleep 3600\n", {"timeout"}, 5),
    # A kit that is broken for the first two attempts: the platform's fault, with a backoff.
    "meets_a_broken_kit": (
        (
            "echo x >>ROOT/tries/$name\n"
            "if [ $(wc -l <ROOT/tries/$name) -lt 3 ]; then echo 'Traceback (most recent call last):'; "
            "echo 'ImportError: kit'; exit 1; fi\n"
        ),
        {"ok"},
        5,
    ),
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One submission's."""

    kind: str
    script: str
    """Shell lines for `behave.sh`."""

    @property
    def deserves(self) -> frozenset[str]:
        """What its participant may be told, whatever befalls the platform meanwhile."""
        return frozenset(_KINDS[self.kind][1])


def generate(choices: random.Random, root: Path) -> Behaviour:
    """Return a behaviour of random kind and length."""
    kind = choices.choices(list(_KINDS), [weight for _, _, weight in _KINDS.values()])[0]
    length = f"{choices.choice([0.0, choices.uniform(0, 0.1), choices.uniform(0.1, 0.6)]):.3f}"
    script = (SAYS_SO + _ALONE + _KINDS[kind][0]).replace("{length}", length).replace("ROOT", str(root))
    return Behaviour(kind, script)
