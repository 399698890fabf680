"""All tables of one half of the problems, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.suggestions import scores
from benchmarks.suggestions.guarded import alarms, guarded, total_steps
from benchmarks.suggestions.narrowing import (
    DEFAULT,
    LONG_GRID,
    THREE_TESTS,
    narrowed,
    parted,
    trained_long,
)
from benchmarks.suggestions.refinement import SEARCHES, Search, refined
from benchmarks.suggestions.regrets import (
    GRID,
    SEVERAL,
    Problems,
    beside_best,
    curves,
    depths,
    grid_references,
    suggested,
    suggested_by_peers,
    trained,
    verdicts,
)
from benchmarks.suggestions.robustness import moved, over_seeds
from benchmarks.suggestions.without_test import without_test
from benchmarks.suggestions.work import Work

__all__ = ["Sizes", "Table", "tables"]

HIGHER = 4.0
"""Trainings at this multiple of the suggestion show what the guard is worth."""
CHAIN = "robust, guarded"
TRAINED = ("robust", SEVERAL, "robust, no probe", "article")
"""Those of our suggestions that are trained at; the others are rules of the peers, which are
trained at as the peers read them."""
SHOWN_ATTEMPTS = ["problem", "seed", "rule", "attempts", "trainings", "regret", "reasons"]


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    seeds: int = 3
    long_seeds: int = 1
    """Seeds of long trainings, at most ``seeds``."""
    spread_seeds: int = 10
    """Seeds over which the spread of suggestions is taken."""
    more_iterations: int = 1000
    """Of the range test that is compared with one of 100."""
    search_seeds: int = 1
    """Seeds of searches, at most ``seeds``."""
    shift_seeds: int = 1
    """Seeds over which movements are averaged."""
    searches: Sequence[Search] = tuple(SEARCHES)
    grid: Sequence[float] = tuple(GRID.tolist())
    long_grid: Sequence[float] = tuple(LONG_GRID.tolist())


@dataclass(frozen=True)
class Table:
    """A table with a name for its file and one for its reader."""

    name: str
    title: str
    frame: pd.DataFrame
    shown: bool = True

    def to_csv(self, folder: Path) -> None:
        """Write the frame to ``folder/name.csv``."""
        self.frame.to_csv(folder / f"{self.name}.csv", index=False)

    def to_markdown(self) -> str:
        """Return title and table; numbers have three decimals, what is missing is a dash."""
        rows = [list(self.frame.columns), ["---"] * self.frame.shape[1]]
        rows += [[_shown(value) for value in row] for row in self.frame.itertuples(index=False)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([f"### {self.title}", "", *lines, ""])


def tables(
    work: Work, problems: Problems, peers: Sequence[str], sizes: Sizes | None = None
) -> Iterator[Table]:
    """Yield every table as soon as it is computed."""
    sizes = sizes or Sizes()
    measured = curves(work, problems, sizes.seeds)
    reference = grid_references(work, problems, sizes.seeds, sizes.grid)
    title = "Initial and best losses, which show whether anything can be learned"
    yield Table("references", title, reference, shown=False)
    ranges = narrowed(measured)
    chain = scores.scored(guarded(work, problems, measured, ranges), reference)
    # Two further tests of 100 steps.
    further = chain["problem"].map(lambda name: 200 / total_steps(problems[name]))
    chain["trainings"] += further.where(chain["rule"] == THREE_TESTS, 0)
    chosen = chain[chain["rule"] == DEFAULT]
    n = len(chosen)
    yield Table("chain-runs", "Every guarded training", chain, shown=False)
    title = f"Regret of guarded training, {n} runs"
    yield Table("chain", title, scores.ranking(chain))
    yield Table("chain-problems", "Mean regret on each problem", scores.per_problem(chain))
    again = chain.loc[chain["attempts"] > 1, SHOWN_ATTEMPTS]
    yield Table("attempts", "Trainings that were lost and began again", again)
    at_best = alarms(work, problems, measured, reference)
    title = f"Trainings at the best peak that are called lost, of {len(at_best)}"
    yield Table("alarms", title, at_best[at_best["lost"]])
    high = ranges[ranges["rule"] == DEFAULT]
    high = high.assign(lr_min=HIGHER * high["lr_min"], lr=HIGHER * high["lr"])
    unwatched = trained(work, problems, high, False, "far too high")
    unwatched = unwatched.assign(rule="not watched", trainings=1.0)
    watched = guarded(work, problems, measured, high.assign(rule="watched"))
    table = scores.ranking(scores.scored(pd.concat([unwatched, watched]), reference))
    yield Table("guard", f"Trainings at {HIGHER:g} times the suggestion, {n} runs", table)
    judged = chosen.merge(verdicts(measured), on=scores.KEYS)
    yield Table("verdicts", "Verdicts on the reading", scores.per_verdict(judged))
    judged = chosen.merge(depths(measured), on=scores.KEYS)
    yield Table("depths", "How far the loss fell in the range test", scores.by_words(judged))

    ours = suggested(measured)
    theirs = suggested_by_peers(work, problems, sizes.seeds, peers)
    suggestions = pd.concat([ours[ours["rule"].isin(TRAINED)], theirs], ignore_index=True)
    runs = trained(work, problems, suggestions, False, "suggestions")
    beside = beside_best(work, problems, reference, sizes.grid)
    runs = pd.concat([runs, beside, without_test(work, problems, sizes.seeds)], ignore_index=True)
    runs = scores.scored(runs.assign(trainings=1.0), reference)
    runs = pd.concat([runs, chosen.assign(rule=CHAIN)], ignore_index=True)
    yield Table("runs", "Every suggestion and its training", runs, shown=False)
    yield Table("rules", f"Regret, {n} runs of each rule", scores.ranking(runs))
    yield Table("problems", "Mean regret on each problem", scores.per_problem(runs))

    few = ranges[(ranges["rule"] == DEFAULT) & (ranges["seed"] < sizes.search_seeds)]
    plain = trained(work, problems, few, False, "not watched")
    plain = plain.assign(rule="not watched", trainings=1.0)
    search = refined(work, problems, measured, few, sizes.searches)
    compared = chain[chain["rule"].isin([DEFAULT, THREE_TESTS])]
    compared = compared[compared["seed"] < sizes.search_seeds]
    found = scores.scored(pd.concat([plain, search], ignore_index=True), reference)
    table = scores.ranking(pd.concat([compared, found], ignore_index=True))
    title = f"Regret of searches in the suggested range, {len(plain)} runs"
    yield Table("refinement", title, table)

    parts = scores.scored(guarded(work, problems, measured, parted(measured)), reference)
    title = f"Regret of guarded training at parts of the learning rate of the rise, {n} runs"
    yield Table("parts", title, scores.ranking(parts))

    spread = over_seeds(work, problems, sizes.spread_seeds, peers)
    yield Table("spread", f"Spread over {sizes.spread_seeds} seeds, decades", spread)
    shift, each = moved(work, problems, sizes.shift_seeds, peers, sizes.more_iterations)
    yield Table("shifts", "Movement with another range test, decades", shift)
    yield Table(
        "shifts-problems",
        f"Mean movement from 100 to {sizes.more_iterations} iterations on each problem, decades",
        each,
    )

    long_seeds = min(sizes.long_seeds, sizes.seeds)
    long = trained_long(work, problems, measured, ranges, long_seeds, sizes.long_grid)
    n = len(long.groupby(scores.KEYS))
    title = f"Regret of guarded training, long trainings, {n} runs of each policy"
    yield Table("narrowing-long", title, scores.ranking(long))
    title = "Mean regret on each problem, long trainings"
    yield Table("narrowing-long-problems", title, scores.per_problem(long))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3f}"
    return str(value)
