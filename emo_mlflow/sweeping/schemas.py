"""The columns of a sweep's tables. Writer, stages, the reader's checks and docs/artifacts.md are made from these."""

from __future__ import annotations

from emo_mlflow.common.columns import NUMBER, SINGLE, TEXT, WHOLE, Declared, column

CONDITION_ID = column("condition_id", TEXT, "hash of what defines the condition: equal in every sweep that has it")
PROMPT_ID = column("prompt_id", TEXT, "hash of the prompt's text, and of what is said before it")
SAMPLE = column("sample", WHOLE, "which of the texts that were sampled for one prompt, from 0")

PROMPTS = Declared(
    "a prompt",
    (
        PROMPT_ID,
        column("emotion", TEXT, "what the data set says that the prompt expresses"),
        column("text", TEXT, "the prompt; of a conversation, its last turn"),
        column("before", TEXT, "of a conversation, the turns before that, as JSON: a list of [role, content]"),
    ),
    key=("prompt_id",),
    filled=("text",),
    later=("before",),
)
CONDITIONS = Declared(
    "a condition",
    (
        CONDITION_ID,
        column("kind", TEXT, "`baseline`, `emotion`, `random` for a control, or `instruction` or `examples` where the model is asked instead"),
        column("emotion", TEXT, "whose direction or head it is, which a control is for, or which the model is asked for"),
        column("layer", WHOLE, "the block at which it acts, from 0"),
        column("head", WHOLE, "the query head that is replaced, from 0, in a sweep over heads"),
        column("alpha", NUMBER, "strength", "as alpha_unit says"),
        column("draw", WHOLE, "which random direction, or which randomly drawn head, from 0, of a control"),
        column("scope", TEXT, "which positions: `window`, `generated`, `first`, `prompt` or `all`"),
        column("patch_window", WHOLE, "W of scope `window`, K of `first` and `prompt`", "tokens"),
        column("site", TEXT, "`resid_pre`, before the block, or `resid_post`, after it"),
        column("operation", TEXT, "what is done to the residual stream, or to the head"),
        column("alpha_unit", TEXT, "`vector`, the direction's length; `residual`, the layer's mean norm; or `kl`, nats per token of damage"),
        column("alpha_schedule", TEXT, "how alpha changes over new tokens"),
        column("seed", WHOLE, "what a control was drawn from"),
        column("dose", NUMBER, "what the direction is multiplied by to do a damage of alpha, under alpha_unit `kl`", "the direction"),
        column("edits", TEXT, "where there are several, each: direction @ layer * share of alpha; emotion names them all then, layer the first"),
        column("front", TEXT, "what stands in front of every prompt, of `instruction` and `examples`"),
        column("n_patched", WHOLE, "how many positions were changed, over all cells of the condition", "positions"),
    ),
    key=("condition_id",),
    later=("head", "site", "operation", "alpha_unit", "alpha_schedule", "seed", "dose", "edits", "front"),
)
COMPLETIONS = Declared(
    "a cell (a condition, a prompt and a sample)",
    (
        CONDITION_ID,
        PROMPT_ID,
        SAMPLE,
        column("completion", TEXT, "the new text, without the prompt"),
        column("n_tokens", WHOLE, "new tokens, without an end-of-sequence token", "tokens"),
        column("nll", NUMBER, "mean negative log-likelihood of the new tokens under the model as it is", "nats per token"),
        column("nll_sd", NUMBER, "standard deviation of that over the tokens of the text", "nats"),
        column("distinct_2", NUMBER, "distinct bigrams of tokens over all bigrams", "share"),
        column("broken", NUMBER, "how probable it is that readers call the text broken (docs/metrics.md)", "probability"),
        column("failure", TEXT, "why there is no completion; empty where there is one"),
    ),
    key=("condition_id", "prompt_id", "sample"),
    filled=("completion",),
)
SCORES = Declared(
    "a cell that did not fail",
    (CONDITION_ID, PROMPT_ID, SAMPLE),
    key=COMPLETIONS.key,
    further=column("scorer.label", SINGLE, "the score of the completion, a column per label of each scorer", "as the scorer's card says"),
)
EFFECTS = Declared(
    "a condition other than the baseline, and a metric",
    (
        CONDITION_ID,
        column("metric", TEXT, "a column of scores.parquet, `fluency.broken`, `fluency.nll` or `fluency.distinct_2`"),
        column("n", WHOLE, "prompts that the condition and the baseline both have", "prompts"),
        column("mean_baseline", NUMBER, "mean over these prompts without intervention", "of the metric"),
        column("mean_patched", NUMBER, "mean over these prompts under the condition", "of the metric"),
        column("mean_diff", NUMBER, "mean_patched minus mean_baseline", "of the metric"),
        column("d_z", NUMBER, "mean_diff over the standard deviation of the prompts' differences", "standard deviations"),
    ),
    key=("condition_id", "metric"),
)
TABLES = {
    "prompts": PROMPTS, "fit_prompts": PROMPTS, "conditions": CONDITIONS, "completions": COMPLETIONS, "scores": SCORES, "effects": EFFECTS,
}  # fmt: skip
STREAMED = ("completions", "scores", "effects")  # those that may not fit the memory: they are written part by part
KEYS = list(COMPLETIONS.key)
FLUENCY = {name: f"fluency.{name}" for name in ("broken", "nll", "distinct_2")}  # columns of completions that are metrics too
