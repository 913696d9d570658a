"""The engine gives the definition's tokens: for every family, scope, operation, schedule and mixture of rows."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import D_MODEL, EOS, N_LAYERS, assert_same_or_tied, random_rows, run_packed, stack_of
from reference import reference_logits
from tiny_models import FAMILIES, tiny_model

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import find_blocks, find_output_projection
from emo_mlflow.steering.decoding import PackDecoder
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row, plan_packs
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.sweeping.estimate import passes_per_text
from emo_mlflow.types import Cell, Condition


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    scope=st.sampled_from([("window", 1), ("window", 3), ("window", 5), ("generated", None), ("all", None)]),
    schedule=st.sampled_from(["constant", "linear", "exponential:2", "1,0,2"]),
    stops=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_packed_decoding_equals_the_uncached_definition(family, scope, schedule, stops, seed):
    """Guards against: a window that a cache turns into every token, a schedule of which only the first alpha acts, padding that
    moves the patched positions, rows that influence each other, and a row that stops disturbing the ones that go on."""
    n_steps = 12
    decoding = Decoding(n_steps, 0 if stops else n_steps, 0.0, EOS)
    stack = stack_of(family)
    rows = random_rows(np.random.default_rng(seed), 10, *scope, schedule, n_steps)
    found = run_packed(stack, rows, decoding)
    assert len(found) == len(rows)
    for row in rows:
        assert_same_or_tied(stack, row, found[row.cell.condition_id], decoding)


NEW_SCOPES = [("prompt", None), ("prompt", 3), ("first", 1), ("first", 4)]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    scope=st.sampled_from([("window", 1), ("window", 3), ("generated", None), ("all", None), *NEW_SCOPES]),
    schedule=st.sampled_from(["constant", "linear", "1,0,2"]),
    stops=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_several_edits_and_parts_of_a_text_equal_the_uncached_definition(family, scope, schedule, stops, seed):
    """Bands and combinations, up to four edits a row, beside rows of one and baselines; prompts alone, and the first new tokens alone.

    Guards: an edit of another row, edits of one layer in another order, a position that left the window and is still edited at a
    later layer, rows that leave and take others' edits with them, and a cache in which later tokens do not see the edited prompt."""
    n_steps = 12
    decoding = Decoding(n_steps, 0 if stops else n_steps, 0.0, EOS)
    stack = stack_of(family)
    rows = random_rows(np.random.default_rng(seed), 10, *scope, schedule, n_steps, most_edits=4)
    assert max(len(row.patch.then) for row in rows if row.patch) >= 1
    found = run_packed(stack, rows, decoding)
    for row in rows:
        assert_same_or_tied(stack, row, found[row.cell.condition_id], decoding)


@pytest.mark.parametrize("family", FAMILIES)
def test_interventions_change_what_these_models_write(family):
    """The exactness tests would pass on models that ignore the patch; these do not ignore it."""
    stack = stack_of(family)
    decoding = Decoding(12, 12, 0.0, EOS)
    rows = [row for row in random_rows(np.random.default_rng(1), 60, "generated", None, "constant", 12) if row.patch]
    clean = run_packed(stack, [Row(row.cell, row.tokens, None) for row in rows], decoding)
    steered = run_packed(stack, rows, decoding)
    assert np.mean([clean[name] != steered[name] for name in clean]) > 0.5


def test_scopes_and_windows_differ():
    """A window of 3 is neither a window of 1 nor every generated token (with a cache, the first system's always was)."""
    stack = stack_of("llama")
    decoding = Decoding(14, 14, 0.0, EOS)
    texts = []
    for scope, window in [("window", 1), ("window", 3), ("generated", None), ("all", None), *NEW_SCOPES]:
        rows = random_rows(np.random.default_rng(3), 40, scope, window, "constant", 14)
        texts.append(run_packed(stack, rows, decoding))
    for i, first in enumerate(texts):
        for second in texts[i + 1 :]:
            assert first != second


def test_gpt_neo_local_attention_beyond_its_window():
    """A context longer than the local attention window: keys outside of it must stay unseen, at every step."""
    stack = stack_of("gpt_neo")
    window_size = stack.model.config.window_size
    prompt = tuple(range(8, 8 + 3 * window_size))
    decoding = Decoding(10, 10, 0.0, EOS)
    shift = (np.random.default_rng(0).normal(size=D_MODEL) * 6).astype(np.float32)
    for scope, window in [("window", 3), ("generated", None), ("all", None)]:
        row = Row(Cell("c", "p", 0), prompt, Patch(1, scope, window, shift, None, np.ones(10, np.float32)))
        found = run_packed(stack, [row, Row(Cell("base", "p", 0), prompt[:5], None)], decoding)
        assert_same_or_tied(stack, row, found["c"], decoding)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_rows_do_not_depend_on_the_batch(batch_size):
    """A condition alone, and packed among others, gives the same tokens (ties of these random models aside, there are none)."""
    stack = stack_of("gpt2")
    decoding = Decoding(10, 0, 0.0, EOS)
    rows = random_rows(np.random.default_rng(5), 25, "window", 3, "linear", 10)
    assert run_packed(stack, rows, decoding, batch_size) == run_packed(stack, rows, decoding, 25)


def test_sampling_noise_is_shared_between_conditions_and_independent_of_the_batch():
    """With alpha = 0 a sampled text equals its baseline's: the noise is the prompt's and the sample's, not the row's."""
    stack = stack_of("gpt2")
    decoding = Decoding(10, 10, 1.0, EOS)
    zero = Patch(1, "generated", None, np.zeros(D_MODEL, np.float32), None, np.ones(10, np.float32))
    prompts = [(9, 10, 11), (12, 13, 14, 15)]
    rows = [
        Row(Cell(f"{kind}{i}{sample}", f"p{i}", sample), prompt, patch, noise_seed=100 * i + sample)
        for i, prompt in enumerate(prompts)
        for sample in range(3)
        for kind, patch in [("base", None), ("zero", zero)]
    ]
    found = run_packed(stack, rows, decoding)
    for i in range(2):
        texts = [found[f"base{i}{sample}"] for sample in range(3)]
        assert texts == [found[f"zero{i}{sample}"] for sample in range(3)]
        assert len(set(texts)) == 3
    assert run_packed(stack, rows[:1], decoding)["base00"] == found["base00"]


def test_sampling_follows_the_softmax():
    """The first token's frequencies over many samples are the softmax of the logits (chi-square, 1 in 1,000)."""
    from scipy.stats import chisquare

    stack = stack_of("gpt2")
    n, temperature = 3000, 4.0
    rows = [Row(Cell("base", "p", i), (9, 10, 11), None, noise_seed=i * 7919) for i in range(n)]
    decoding = Decoding(1, 1, temperature, EOS)
    logits = reference_logits(stack.model, rows[0], [])[0]
    logits[list(EOS)] = -torch.inf
    expected = torch.softmax(logits.double() / temperature, 0).numpy()
    tokens = [d.tokens[0] for d in PackDecoder(stack, rows, decoding).run()]
    counts = np.bincount(tokens, minlength=len(expected))
    common = expected * n >= 5
    rare = ~common & (expected > 0)
    observed = [*counts[common], *([counts[rare].sum()] if rare.any() else [])]
    theory = [*expected[common], *([expected[rare].sum()] if rare.any() else [])]
    assert len(theory) > 5
    assert chisquare(observed, np.array(theory) * n).pvalue > 1e-3
    assert counts[list(EOS)].sum() == 0


def engine_for(stack: BlockStack, decoding: Decoding, batch_size: int | None = None) -> Engine:
    return Engine(stack, decoding, lambda batch: [" ".join(map(str, ids)) for ids in batch], batch_size)


def clean_nll(stack: BlockStack, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of the NLL of new tokens by the model itself, the whole text in one pass."""
    with torch.no_grad():
        logits = stack.model(torch.tensor([[*prompt, *tokens]])).logits[0]
    log_p = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]
    nll = -log_p[range(len(tokens)), list(tokens)].numpy()
    return float(nll.mean()), float(nll.std())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    scope=st.sampled_from([("window", 1), ("window", 3), ("window", 5), ("generated", None), ("all", None), ("prompt", 2), ("first", 2)]),
    schedule=st.sampled_from(["constant", "1,0,2"]),
    stops=st.booleans(),
    n_steps=st.integers(1, 11),
    at_once=st.sampled_from([5, 40, 10_000]),
    seed=st.integers(0, 10_000),
)
def test_nll_is_that_of_the_unpatched_model(family, scope, schedule, stops, n_steps, at_once, seed):
    """Guards: keys that are still patched, a boundary off by one, positions of a window taken for clean before they were, rows that left
    early, texts that rows share, and chunks."""
    stack, rng = stack_of(family), np.random.default_rng(seed)
    decoding = Decoding(n_steps, 0 if stops else n_steps, 0.0, EOS)
    rows = random_rows(rng, 10, *scope, schedule, n_steps, most_edits=3)
    rows += [Row(Cell(f"again{i}", "p", 0), row.tokens, row.patch) for i, row in enumerate(rows[:2])]
    rows += [Row(Cell("base", "p", 0), rows[0].tokens, None)]
    with mock.patch.dict("emo_mlflow.steering.likelihood.TOKENS_AT_ONCE", cpu=at_once):
        decoded = [d for pack in plan_packs(rows, 64) for d in PackDecoder(stack, pack, decoding).run()]
    assert len(decoded) == len(rows)
    for item in decoded:
        if item.tokens:
            assert (item.nll, item.nll_sd) == pytest.approx(clean_nll(stack, item.row.tokens, item.tokens), abs=2e-4)
        else:
            assert np.isnan(item.nll) and np.isnan(item.nll_sd)


def test_a_row_that_did_not_ask_has_no_likelihood_beside_one_with_its_text():
    """Guards: a measure of broken text that hangs on what was packed together, so on the batch size or the cluster."""
    row = random_rows(np.random.default_rng(3), 1, "generated", None, "constant", 5)[0]
    rows = [row, replace(row, cell=Cell("again", "p", 0), with_nll=False)]
    asked, other = PackDecoder(stack_of("gpt2"), rows, Decoding(5, 5, 0.0, EOS)).run()
    assert asked.tokens == other.tokens and np.isfinite(asked.nll) and np.isnan(other.nll)


@pytest.mark.parametrize(("scope", "window"), [("window", 2), ("generated", None)])
def test_the_work_done_is_the_work_estimated(scope, window):
    """The estimate's formula and the engine's own count of its products agree, so that neither drifts from what is done."""
    stack, n_steps, layer = stack_of("gpt_neox"), 9, 1
    condition = Condition("emotion", emotion="joy", layer=layer, alpha=1.0, scope=scope, patch_window=window)
    shift = (np.random.default_rng(0).normal(size=D_MODEL) * 6).astype(np.float32)
    patch = Patch(layer, scope, window, shift, None, np.ones(n_steps, np.float32))
    prompt = (8, 9, 10, 11)
    before = stack.flops
    PackDecoder(stack, [Row(Cell("c", "p", 0), prompt, patch)], Decoding(n_steps, n_steps, 0.0, EOS)).run()
    block = sum(p.numel() for p in stack.blocks[0].parameters() if p.ndim > 1)
    head = stack.model.get_output_embeddings().weight.numel()
    prefill = len(prompt) - layer / N_LAYERS  # at step 0 the last prompt token is run above the edit only
    passes = passes_per_text(condition, N_LAYERS, n_steps) - 1 + prefill + 1
    assert stack.flops - before == pytest.approx(2 * (block * N_LAYERS * passes + 2 * head * n_steps))


def test_wide_heads_in_slices_give_the_same_logits(monkeypatch):
    """On a CPU the vocabulary is computed in slices; what is left behind, and a last slice that is narrower, would show here."""
    stack = stack_of("gpt2")
    hidden = torch.randn(3, 2, D_MODEL)
    whole = stack.logits(hidden)
    monkeypatch.setattr("emo_mlflow.models.output_maps.SLICE_BYTES", 10 * D_MODEL * 4)
    assert torch.allclose(stack.logits(hidden), whole, atol=1e-5)
    assert "forward" not in vars(stack.model.get_output_embeddings())


def test_packs_are_not_padded_where_each_length_has_rows_enough(monkeypatch):
    """Guards: a mask for every pack of a large sweep; and, in a small one, a pack for every length."""
    monkeypatch.setattr("emo_mlflow.steering.packing.ENOUGH", 192)

    def rows(n: int, length: int) -> list[Row]:
        return [Row(Cell(f"{length}/{i}", "p", 0), tuple(range(length)), None) for i in range(n)]

    lengths = [{len(row.tokens) for row in pack} for pack in plan_packs([*rows(300, 5), *rows(10, 6), *rows(10, 7)], 384)]
    assert lengths == [{5}, {6, 7}]
    packs = plan_packs(rows(1000, 5), 384)
    assert [len(pack) for pack in packs] == [384, 384, 232]


def test_patched_positions_are_counted():
    """Each condition logs how many positions it patched: the first system's longest prompts were never patched, unseen."""
    stack = stack_of("llama")
    decoding = Decoding(9, 9, 0.0, EOS)
    for scope, window, expected in [("window", 3, 9), ("generated", None, 9), ("all", None, None)]:
        rows = random_rows(np.random.default_rng(4), 20, scope, window, "constant", 9)
        for pack in engine_for(stack, decoding).generate(rows):
            for completion in pack:
                row = next(row for row in rows if row.cell == completion.cell)
                if row.patch is None:
                    assert completion.n_patched == 0
                else:
                    assert completion.n_patched == (expected or len(row.tokens) + 8)


def test_overflow_fails_its_own_cell_only():
    """An alpha that makes activations overflow marks its cell failed, with the reason, and leaves the others as they are."""
    stack = stack_of("gpt2")
    decoding = Decoding(6, 6, 0.0, EOS)
    rows = random_rows(np.random.default_rng(6), 12, "generated", None, "constant", 6)
    alone = {c.cell: c for pack in engine_for(stack, decoding).generate(rows) for c in pack}
    huge = Patch(1, "generated", None, np.full(D_MODEL, 3e38, np.float32), None, np.full(6, 1e3, np.float32))
    bad = Row(Cell("bad", "p", 0), (9, 10, 11), huge)
    both = {c.cell: c for pack in engine_for(stack, decoding).generate([*rows, bad]) for c in pack}
    assert both[bad.cell].failure is not None and "not finite" in both[bad.cell].failure
    for cell, completion in alone.items():
        assert both[cell].completion == completion.completion and both[cell].failure is None


def test_out_of_memory_halves_the_batch_and_loses_nothing(monkeypatch):
    """Packs that do not fit, in the middle of a sweep too, are halved until they do; every cell comes out once, with the same text."""
    stack = stack_of("gpt2")
    decoding = Decoding(4, 4, 0.0, EOS)
    rows = random_rows(np.random.default_rng(7), 60, "generated", None, "constant", 4)
    expected = run_packed(stack, rows, decoding, 30)
    sizes: list[int] = []
    real = PackDecoder._next_pass

    def limited(self, step):
        sizes.append(len(self.rows))
        if len(sizes) > 4 and step == 2 and len(self.rows) > 8:  # the first pack fits, and memory is taken by another after that
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, step)

    monkeypatch.setattr(PackDecoder, "_next_pass", limited)
    engine = Engine(stack, decoding, lambda batch: [" ".join(map(str, ids)) for ids in batch], 30)
    done = [c for pack in engine.generate(rows) for c in pack]
    assert {c.cell.condition_id: tuple(map(int, c.completion.split())) for c in done} == expected and len(done) == len(rows)
    assert sizes[0] == 30 and 30 in sizes[3:] and sizes[-1] <= 8
    monkeypatch.setattr(PackDecoder, "run", lambda self, stop=None: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(UserError, match="not enough memory"):
        list(engine_for(stack, decoding, 1).generate(rows[:1]))


@pytest.fixture
def three_threads():
    """As many for the products of the engine, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_share_a_pack_and_the_weights(family, three_threads):
    """Guards: rows lost or doubled where a pack is divided, stand-ins of one thread called by another, weights copied per thread."""
    stack = stack_of(family)
    decoding = Decoding(6, 0, 0.9, EOS)
    rows = random_rows(np.random.default_rng(11), 100, "window", 3, "constant", 6)
    rows = [replace(row, noise_seed=i) for i, row in enumerate(rows)]
    expected, before = run_packed(stack, rows, decoding, 100), stack.flops
    (done,) = engine_for(stack, decoding).generate(rows)
    assert {c.cell.condition_id: tuple(map(int, c.completion.split())) for c in done} == expected and len(done) == len(rows)
    assert stack.flops > before and torch.get_num_threads() == 3
    replicas = stack.replicas(3)
    weights = {parameter.data_ptr() for parameter in stack.model.parameters()}
    assert len({id(replica.blocks[0]) for replica in (stack, *replicas)}) == 4
    assert all({parameter.data_ptr() for parameter in replica.model.parameters()} == weights for replica in replicas)


@pytest.fixture
def stops(monkeypatch):
    """What tells the threads of a pack to stop, in the order in which they began."""
    real, found = PackDecoder.run, []

    def run(self, stop=None):
        found.append(stop)
        return real(self, stop)

    monkeypatch.setattr(PackDecoder, "run", run)
    return found


def test_a_thread_without_memory_stops_the_others_and_the_pack_is_halved(monkeypatch, three_threads, stops):
    """Others that go on would hold the memory that the next, smaller try needs."""
    stack, decoding = stack_of("gpt2"), Decoding(4, 4, 0.0, EOS)
    rows = random_rows(np.random.default_rng(7), 96, "generated", None, "constant", 4)
    expected = run_packed(stack, rows, decoding, 96)
    real, steps, others = PackDecoder._next_pass, [], threading.Barrier(3)

    def limited(self, step):
        if len(self.rows) == 32:
            steps.append(step)
            if step == 1:
                others.wait(timeout=30)
                if self.stack is stack.replicas(1)[0]:
                    raise torch.OutOfMemoryError("out of memory")
                stops[-1].wait(30)
        return real(self, step)

    monkeypatch.setattr(PackDecoder, "_next_pass", limited)
    packs = list(engine_for(stack, decoding).generate(rows))
    assert [len(pack) for pack in packs] == [48, 48]
    assert {c.cell.condition_id: tuple(map(int, c.completion.split())) for pack in packs for c in pack} == expected
    assert steps == [1, 1, 1]


def test_ctrl_c_ends_the_threads_at_their_next_step(monkeypatch, three_threads, stops):
    """Or the process would live on, unheard, until its packs are done."""
    stack, decoding = stack_of("gpt2"), Decoding(50, 50, 0.0, EOS)
    rows = random_rows(np.random.default_rng(7), 96, "generated", None, "constant", 50)
    real, steps = PackDecoder._next_pass, []

    def slow(self, step):
        steps.append(step)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        if len(steps) >= 6:
            stops[-1].wait(30)
        return real(self, step)

    monkeypatch.setattr(PackDecoder, "_next_pass", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(engine_for(stack, decoding).generate(rows))
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(steps) < 10 and not [thread for thread in threading.enumerate() if thread.name.startswith("generation")]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind(family):
    """Hooks that were never removed made later conditions of the first system run on top of earlier ones."""
    stack = stack_of(family)
    tokens = torch.arange(8, 20)[None]
    with torch.no_grad():
        before = stack.model(tokens).logits
        run_packed(stack, random_rows(np.random.default_rng(8), 10, "window", 3, "constant", 5), Decoding(5, 5, 0.0, EOS))
        after = stack.model(tokens).logits
    assert torch.equal(before, after)
    assert not any(block._forward_hooks or block._forward_pre_hooks or "forward" in vars(block) for block in stack.blocks)


def test_an_error_in_the_model_leaves_nothing_behind(monkeypatch):
    """The stand-ins are taken out also when the model's own forward raises between them."""
    stack = stack_of("gpt2")
    monkeypatch.setattr(stack.model.transformer.ln_f, "forward", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack.logits(torch.zeros(1, 1, D_MODEL))
    assert not any("forward" in vars(block) for block in stack.blocks)


def test_models_without_known_blocks_are_refused():
    """No guessing of layer names: an encoder, or anything else that is not known, is an error that names what is."""
    with pytest.raises(UserError, match="decoder blocks"):
        find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match="output projection"):
        find_output_projection(torch.nn.Linear(2, 2))


def test_blocks_that_cannot_run_one_by_one_are_refused(monkeypatch):
    """A family whose blocks depend on something that the stand-ins do not see must not be steered wrongly."""
    model = tiny_model("gpt2", seed=1, n_layers=2, d_model=D_MODEL)
    real = model.transformer.h[1].forward
    calls = []

    def depends_on_history(hidden, *args, **kwargs):
        calls.append(1)
        return real(hidden * (1 + 0.1 * len(calls)), *args, **kwargs)

    monkeypatch.setattr(type(model.transformer.h[1]), "forward", lambda self, *a, **k: depends_on_history(*a, **k))
    with pytest.raises(UserError, match="cannot be steered"):
        BlockStack(model)
