"""Reports each cause of a failure once while it lasts, and in one line for all that it concerns.  Pure.

A cause includes its values: the same mistake with another value is another cause.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

#: Subjects whose causes are remembered: foreign programs can write any number of keys to the store.
MOST_SUBJECTS = 1000
#: Subjects that one line names.
_MOST_NAMED = 3


class Causes:
    """The present cause of each subject, such as a key of the store.

    Subjects and causes are kept as hashes, because foreign text can be of any length.
    """

    def __init__(self) -> None:
        self._causes: dict[int, int] = {}

    def is_new(self, cause: Hashable, subject: Hashable = "") -> bool:
        """Make ``cause`` the subject's present cause, and return whether it was another one before.

        Of more than ``MOST_SUBJECTS`` subjects, the later ones are never new.
        """
        key, content = hash(subject), hash(cause)
        if self._causes.get(key) == content or (key not in self._causes and len(self._causes) >= MOST_SUBJECTS):
            return False
        self._causes[key] = content
        return True

    def clear(self, subject: Hashable = "") -> bool:
        """Forget the subject's cause, so that it is new when it comes back; return whether there was one."""
        return self._causes.pop(hash(subject), None) is not None

    def keep_only(self, subjects: Collection[Hashable]) -> None:
        """Forget the causes of all other subjects."""
        if self._causes:
            kept = set(map(hash, subjects))
            self._causes = {key: content for key, content in self._causes.items() if key in kept}


def by_cause(subjects: Iterable[tuple[object, object]]) -> list[str]:
    """Merge (subject, cause) pairs into one text for each cause, such as ``a, b, c and 17 more: no PublicIP``."""
    groups: dict[str, list[str]] = {}
    for subject, cause in subjects:
        groups.setdefault(str(cause), []).append(str(subject))
    return [f"{_listed(names)}: {cause}" for cause, names in groups.items()]


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
