"""The words of the house: every table and mapping over them is total."""

from __future__ import annotations

import pytest

from rampd.states import FINAL_STATES, TRANSITIONS, HungerPolicy, Outcome, RequestKind, Step, SubmissionState

WORKING = (SubmissionState.SENT_TO_TRAINING, SubmissionState.TRAINING, SubmissionState.TESTED)


def reachable(start: SubmissionState, *, through: frozenset[SubmissionState]) -> set[SubmissionState]:
    """Return the states that a submission may get to, going on only from those in `through`."""
    found: set[SubmissionState] = set()
    waiting = [start]
    while waiting:
        state = waiting.pop()
        for following in TRANSITIONS[state] - found:
            found.add(following)
            if following in through:
                waiting.append(following)
    return found


def test_every_state_has_its_transitions() -> None:
    """The table leaves no state out."""
    assert set(TRANSITIONS) == set(SubmissionState)


def test_states_speak_ramps_words() -> None:
    """What stands in RAMP's database is what stands here."""
    assert [str(state) for state in SubmissionState] == [
        "new",
        "sent_to_training",
        "training",
        "tested",
        "scored",
        "training_error",
        "checking_error",
    ]


@pytest.mark.parametrize("state", SubmissionState)
def test_no_state_follows_itself(state: SubmissionState) -> None:
    """A transition is a change."""
    assert state not in TRANSITIONS[state]


@pytest.mark.parametrize("state", SubmissionState)
def test_final_states_are_the_three(state: SubmissionState) -> None:
    """`is_final` and the set say the same of every state."""
    assert state.is_final is (state in FINAL_STATES) is (state.value in {"scored", "training_error", "checking_error"})


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_a_final_state_goes_back_to_the_queue_only(state: SubmissionState) -> None:
    """Only the operator's retry leads out of it."""
    assert TRANSITIONS[state] == {SubmissionState.NEW}


@pytest.mark.parametrize("state", [SubmissionState.NEW, *WORKING])
def test_the_platforms_fault_may_end_a_submission_anywhere(state: SubmissionState) -> None:
    """Whatever is not final yet can become checking_error."""
    assert SubmissionState.CHECKING_ERROR in TRANSITIONS[state]


@pytest.mark.parametrize("state", [SubmissionState.SENT_TO_TRAINING, SubmissionState.TRAINING])
def test_what_runs_can_be_put_back(state: SubmissionState) -> None:
    """A platform fault returns a submission to the queue while it is claimed or runs."""
    assert SubmissionState.NEW in TRANSITIONS[state]


def test_results_are_never_thrown_away() -> None:
    """What was tested is not run again, and is not the participant's failure any more."""
    assert TRANSITIONS[SubmissionState.TESTED] == {SubmissionState.SCORED, SubmissionState.CHECKING_ERROR}


def test_nothing_is_scored_untested() -> None:
    """Only `tested` leads to `scored`."""
    assert [state for state in SubmissionState if SubmissionState.SCORED in TRANSITIONS[state]] == ["tested"]


def test_only_what_ran_is_a_training_error() -> None:
    """No participant is blamed for a run that never began."""
    assert [state for state in SubmissionState if SubmissionState.TRAINING_ERROR in TRANSITIONS[state]] == ["training"]


def test_every_state_is_reached_from_new() -> None:
    """No state is dead."""
    assert reachable(SubmissionState.NEW, through=frozenset(SubmissionState)) == set(SubmissionState)


@pytest.mark.parametrize("state", WORKING)
def test_every_way_ends(state: SubmissionState) -> None:
    """From every state of work a final one is reached without going back."""
    assert reachable(state, through=frozenset(WORKING)) & FINAL_STATES


@pytest.mark.parametrize(
    ("outcome", "state", "retryable", "counted"),
    [
        (Outcome.OK, "scored", False, False),
        (Outcome.PARTICIPANT_ERROR, "training_error", False, False),
        (Outcome.TIMEOUT, "training_error", False, False),
        (Outcome.LOST_HOST, "checking_error", True, True),
        (Outcome.NO_CAPACITY, "checking_error", True, False),
        (Outcome.PLATFORM_ERROR, "checking_error", True, True),
        (Outcome.CANCELLED, "checking_error", False, False),
        (Outcome.INTERRUPTED, "checking_error", True, False),
    ],
)
def test_what_an_outcome_means(outcome: Outcome, state: str, *, retryable: bool, counted: bool) -> None:
    """Whose fault an attempt's end was decides the state, the retry and the count."""
    assert (outcome.final_state, outcome.is_retryable, outcome.is_counted) == (state, retryable, counted)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_mapped(outcome: Outcome) -> None:
    """None of the mappings forgets an outcome, and each ends in a final state."""
    assert outcome.final_state.is_final
    assert isinstance(outcome.is_retryable, bool)
    assert isinstance(outcome.is_counted, bool)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_is_tried_again_is_counted(outcome: Outcome) -> None:
    """A count matters only where another attempt may follow."""
    assert outcome.is_retryable or not outcome.is_counted


@pytest.mark.parametrize("outcome", Outcome)
def test_a_participant_is_blamed_for_nothing_else(outcome: Outcome) -> None:
    """training_error comes of the submission's own failure and of its timeout alone."""
    blamed = outcome.final_state is SubmissionState.TRAINING_ERROR
    assert blamed is (outcome in {Outcome.PARTICIPANT_ERROR, Outcome.TIMEOUT})


def test_steps_stand_in_their_order() -> None:
    """An attempt goes through the steps as they are listed."""
    assert list(Step) == ["opened", "set_up", "launched", "decided", "closed"]


def test_requests_and_policies_are_the_operators_words() -> None:
    """What rampctl and a config write."""
    assert (list(RequestKind), list(HungerPolicy)) == (["cancel", "retry"], ["sleep", "exit"])
