"""From finished sweeps to the tables of a comparison: pure functions, nothing of MLflow or of files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from emo_mlflow.common import progress
from emo_mlflow.comparison.against_asking import against_asking
from emo_mlflow.comparison.contrasts import model_contrasts, model_summary
from emo_mlflow.comparison.designs import power_analysis, power_requirements
from emo_mlflow.comparison.dose import dose
from emo_mlflow.comparison.effects import effect_sizes, specificity
from emo_mlflow.comparison.families import WHOLE, parse_family, significant
from emo_mlflow.comparison.interactions import interactions
from emo_mlflow.comparison.k_selection import k_selection
from emo_mlflow.comparison.limits import limits
from emo_mlflow.comparison.recommendations import recommendations
from emo_mlflow.comparison.responses import Responses, responses
from emo_mlflow.comparison.rows import records
from emo_mlflow.comparison.search import search
from emo_mlflow.comparison.selectivity import selectivity
from emo_mlflow.comparison.sources import Note, Source, check
from emo_mlflow.comparison.tradeoff import fluency_breaks, tradeoff
from emo_mlflow.types import N_BOOTSTRAP

__all__ = ["Comparison", "Note", "Source", "compare_sweeps"]

IN_SHORT = ("model", "emotion", "reason", "target", "layer", "alpha", "gain", "p_specific_holm", "candidates")  # of `recommendations`


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The tables of a comparison, by name, and what they were made from.

    Attributes:
        sources: the sweeps, labelled.
        notes: what restricts the comparison; a report shows each.
        family: columns that divide the tests into families.
        n_bootstrap: resamples that the intervals are from.
        tables: effect_sizes, specificity, selectivity, dose, tradeoff, recommendations, model_contrasts, model_summary,
            interactions, against_asking, power_analysis, power_requirements, k_selection; each is documented by the function of its name.
        sweeps: the scores as arrays, for figures.
    """

    sources: tuple[Source, ...]
    notes: tuple[Note, ...]
    family: tuple[str, ...]
    n_bootstrap: int
    tables: Mapping[str, pd.DataFrame]
    sweeps: tuple[Responses, ...]

    def __repr__(self) -> str:
        tables = ", ".join(f"{name} ({len(table):,})" for name, table in self.tables.items() if len(table))
        return f"Comparison of {', '.join(source.label for source in self.sources)}; rows of .tables: {tables}"

    def _repr_html_(self) -> str:
        """What was shown for each emotion, and which tables there are: for a notebook."""
        cases = self.tables["recommendations"]
        shown = cases[[name for name in IN_SHORT if name in cases]]
        return f"{shown.to_html(index=False, border=0, float_format='{:.3g}'.format, na_rep='')}<small>{html.escape(repr(self))}</small>"

    @property
    def phase(self) -> str:
        """`residual` or `head`: what all of the sweeps are over."""
        return self.sources[0].phase

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Numbers for the comparison's run: tests and cases, how many are significant, and the gain of what is recommended."""
        effects, specific = self.tables["effect_sizes"], self.tables["specificity"]
        cases = self.tables["recommendations"]
        found = {
            "tests": float(effects["p_permutation"].notna().sum()),
            "tests.not_computable": float(effects["p_permutation"].isna().sum()),
            "cases": float(len(cases)),
            "cases.specific": float((cases["reason"] == "specific").sum()),
        }
        for column in ("p_bonferroni", "p_holm", "p_bh"):
            found[f"significant.{column[2:]}"] = float(significant(effects[column]).sum())
            found[f"beyond_random.{column[2:]}"] = float(significant(specific[column]).sum())
        for row in records(cases.dropna(subset=["gain"])):
            found[f"gain.{row['model']}.{row['emotion']}"] = float(row["gain"])
        return found


STEPS = 9  # that are told of


def _told(table: pd.DataFrame) -> pd.DataFrame:
    progress.advance(progress.COMPARING, 1, STEPS)
    return table


def compare_sweeps(
    sources: Sequence[Source],
    family: str = WHOLE,
    alignments: Sequence[pd.DataFrame] = (),
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compares finished sweeps.

    Args:
        family: `comparison` (own labels, and other scores), or columns that divide the tests into families, such as `own,model`.
        alignments: the overlap tables of alignment runs, if any.

    Raises:
        UserError: for sweeps that cannot be compared, or an unknown family.
    """
    columns = parse_family(family)
    checked, notes = check(sources)
    sweeps = [responses(source) for source in checked]
    effects = _told(effect_sizes(sweeps, columns, n_bootstrap, seed))
    specific = _told(specificity(sweeps, columns))
    costs = _told(tradeoff(sweeps, effects, specific).merge(search(sweeps), on=["model", "condition_id"], how="left"))
    doses = _told(dose(sweeps, columns, n_bootstrap, seed))
    overlaps = pd.concat(alignments, ignore_index=True) if alignments else None
    tables = {
        "effect_sizes": effects,
        "specificity": specific,
        "selectivity": _told(selectivity(sweeps, columns, n_bootstrap, seed)),
        "dose": doses.merge(fluency_breaks(costs), how="left") if len(doses) and len(costs) else doses,
        "tradeoff": costs,
        "recommendations": _told(recommendations(sweeps, costs, columns)),
        "model_contrasts": _told(model_contrasts(sweeps, columns, n_bootstrap, seed)),
        "model_summary": _told(model_summary(sweeps, effects)),
        "interactions": interactions(sweeps, columns, n_bootstrap, seed),
        "against_asking": against_asking(sweeps, columns, n_bootstrap, seed),
        "power_analysis": _told(power_analysis(effects, checked)),
        "power_requirements": power_requirements(effects),
        "k_selection": pd.DataFrame() if overlaps is None else k_selection(overlaps),
    }
    notes += limits(checked, effects, specific, tables["recommendations"])
    return Comparison(checked, notes, columns, n_bootstrap, tables, tuple(sweeps))
