"""Plans an evaluation: which cases of which suites are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Case, Kind, by_sort, evenly
from mars_gguf.evaluate.suites import load_suite


@dataclass(frozen=True)
class Plan:
    """The cases of one or several suites.

    suites: the suite of each case, by the case's id.
    problems: what was left out and why, one line each.
    """

    cases: list[Case]
    suites: dict[str, str]
    problems: list[str]

    def only(self, usable: Callable[[str], bool], why: str) -> Plan:
        """Leaves out the cases of modalities that are not usable, and says why. Raises MarsError if
        no case is left."""
        kept = [case for case in self.cases if usable(case.modality)]
        if len(kept) == len(self.cases):
            return self
        problem = f"{len(self.cases) - len(kept)} cases{why}"
        if not kept:
            raise MarsError(f"no case is left: {problem}")
        return replace(self, cases=kept, problems=[*self.problems, problem])

    def sample(self, n: int, *kinds: Kind) -> list[str]:
        """Lists the ids of ``n`` cases of each of the kinds and modality at most, evenly spaced."""
        sorts = by_sort(case for case in self.cases if case.kind in kinds)
        return [case.id for some in sorts.values() for case in evenly(some, n)]


def load_plan(names: Sequence[str], *, limit: int | None = None) -> Plan:
    """Loads suites, as `load_suite` does. Their sorts of cases take turns, so that a run which is
    broken off has asked some of all. Raises MarsError, also if cases of two have one id."""
    plan = Plan([], {}, [])
    called: Counter[str] = Counter()
    for each in names:
        suite = load_suite(each, limit=limit)
        called[suite.name] += 1  # files of two folders may have one name
        name = suite.name + (f" ({n})" if (n := called[suite.name]) > 1 else "")
        plan.cases.extend(suite.cases)
        plan.suites.update({case.id: name for case in suite.cases})
        plan.problems.extend(f"{name}: {problem}" for problem in suite.problems)
    if twice := len(plan.cases) - len(plan.suites):
        raise MarsError(f"{twice} cases have the id of another; evaluate such suites one by one")
    seen: Counter[tuple[str, str, str]] = Counter()
    turns = {}
    for case in plan.cases:
        sort = plan.suites[case.id], case.kind, case.modality
        turns[case.id] = seen[sort]
        seen[sort] += 1
    return replace(plan, cases=sorted(plan.cases, key=lambda case: turns[case.id]))
