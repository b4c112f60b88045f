"""Reports each cause of a failure once while it lasts, and in one line for all that it concerns.  Pure.

A cause includes its values: the same mistake with another value is another cause.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TypeVar

SubjectT = TypeVar("SubjectT")
CauseT = TypeVar("CauseT", bound=Hashable)

#: Subjects whose causes are remembered: foreign programs can write any number of keys to the store.
MOST_SUBJECTS = 1000
#: Subjects that one line names.
MOST_NAMED = 3


class Causes:
    """The present cause of each subject, such as a key of the store.

    Subjects and causes are kept as hashes, because foreign text can be of any length.  A subject counts by its text:
    Python's hash of a network is its address xor its mask, which 10.0.64.0/20 and 10.0.79.248/29 have in common.
    """

    def __init__(self, most_subjects: float = MOST_SUBJECTS) -> None:
        """``most_subjects``: how many are remembered; infinite if the caller limits them."""
        self._most_subjects = most_subjects
        self._causes: dict[int, int] = {}

    def is_new(self, cause: Hashable, subject: Hashable = "") -> bool:
        """Make ``cause`` the subject's present cause, and return whether it was another one before.

        Of more than ``most_subjects`` subjects, the later ones are never new.
        """
        key, content = _key(subject), hash(cause)
        if self._causes.get(key) == content or (key not in self._causes and len(self._causes) >= self._most_subjects):
            return False
        self._causes[key] = content
        return True

    def clear(self, subject: Hashable = "") -> bool:
        """Forget the subject's cause, so that it is new when it comes back; return whether there was one."""
        return self._causes.pop(_key(subject), None) is not None

    def keep_only(self, subjects: Collection[Hashable]) -> None:
        """Forget the causes of all other subjects."""
        if self._causes:
            kept = set(map(_key, subjects))
            self._causes = {key: content for key, content in self._causes.items() if key in kept}


def _key(subject: Hashable) -> int:
    return hash(str(subject))


def by_cause(subjects: Iterable[tuple[object, object]]) -> list[str]:
    """Merge (subject, cause) pairs into one text for each cause, such as ``a, b, c and 17 more: no PublicIP``."""
    groups = grouped((subject, str(cause)) for subject, cause in subjects)
    return [f"{listed(names)}: {cause}" for cause, names in groups.items()]


def grouped(subjects: Iterable[tuple[SubjectT, CauseT]]) -> dict[CauseT, list[SubjectT]]:
    """Return the subjects of each cause, from (subject, cause) pairs."""
    groups: dict[CauseT, list[SubjectT]] = {}
    for subject, cause in subjects:
        groups.setdefault(cause, []).append(subject)
    return groups


def sentence(text: str) -> str:
    """Return a problem of a report as the beginning of a log line, with a capital letter."""
    return text[:1].upper() + text[1:]


def listed(subjects: Sequence[object]) -> str:
    """Return the first three subjects and the number of the others, such as ``a, b, c and 17 more``."""
    more = len(subjects) - MOST_NAMED
    return ", ".join(map(str, subjects[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
