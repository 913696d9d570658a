"""Vectorised statistics of the design: arrays in, estimates out; numpy, pandas, scipy and statsmodels only."""

from emo_mlflow.statistics.corrections import corrected
from emo_mlflow.statistics.crossed import grid_mean
from emo_mlflow.statistics.dose import prompt_slopes, prompt_spearman
from emo_mlflow.statistics.effects import condition_effects
from emo_mlflow.statistics.paired import paired_effects
from emo_mlflow.statistics.power import detectable_d, power, required_n
from emo_mlflow.statistics.random_effects import random_effects
from emo_mlflow.statistics.specificity import searched_p, specific_effects

__all__ = [
    "condition_effects",
    "corrected",
    "detectable_d",
    "grid_mean",
    "paired_effects",
    "power",
    "prompt_slopes",
    "prompt_spearman",
    "random_effects",
    "required_n",
    "searched_p",
    "specific_effects",
]
