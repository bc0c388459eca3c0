"""ListOps: the generator, the latent-tree model, the training of many runs, the checked claims."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

import listops
import listops_data as data
from listops_data import Batch, Expression, generate, to_batch
from listops_model import TreeLSTM, greedy, leftmost
from listops_report import check_claims, readme_table, report
from listops_training import (
    Budget,
    Result,
    SGDByRun,
    SideBySide,
    Splits,
    Untrained,
    accuracy,
    initial_network,
    shuffled,
    train,
)
from pyro_silent import StraightThroughELBO
from pyro_silent.estimators import ZGR, Estimator, GumbelRao, StraightThroughGumbelSoftmax

DOCS = Path(__file__).parent.parent / "docs"
MAX_Z = 4.5  # beyond by chance once in 150,000 comparisons; the seeds are fixed

FUNCTIONS = {
    "MIN": min,
    "MAX": max,
    "MED": lambda digits: int(statistics.median(digits)),
    "SM": lambda digits: sum(digits) % 10,
}
INNERMOST = re.compile(r"\[(MIN|MAX|MED|SM)((?: \d)+) \]")


def evaluate(text: str) -> int:
    """The value of an expression, by rewriting innermost operations in its text."""
    while len(text) > 1:
        text, count = INNERMOST.subn(
            lambda found: str(FUNCTIONS[found[1]]([int(d) for d in found[2].split()])), text
        )
        assert count, text
    return int(text)


def nesting(text: str) -> int:
    """How many operations are open at once, at most."""
    steps = [(token[0] == "[") - (token == "]") for token in text.split()]
    return max(itertools.accumulate(steps))


@pytest.fixture(scope="module")
def published() -> list[Expression]:
    """As many expressions as were published."""
    return generate(seed=1)


# -- the generator ---------------------------------------------------------------------------------


def test_shares_of_lengths_are_those_of_the_published_set(published):
    lengths = torch.tensor([len(expression.tokens) for expression in published])
    assert len(lengths) == 100_000
    for longest, share in [(10, 0.353), (25, 0.647), (50, 0.795)]:
        found = (lengths <= longest).double().mean().item()
        # both shares are counted in 100,000 draws; the known one is rounded
        error = math.sqrt(2 * share * (1 - share) / len(lengths))
        assert (abs(found - share) - 0.0005) / error < MAX_Z, (longest, found)


def test_another_probability_would_not_give_these_shares(monkeypatch):
    monkeypatch.setattr(data, "OPERATOR_PROBABILITY", 0.24)
    lengths = torch.tensor([len(expression.tokens) for expression in generate(seed=1)])
    share = (lengths <= 25).double().mean().item()
    assert abs(share - 0.647) / math.sqrt(2 * 0.647 * 0.353 / len(lengths)) > MAX_Z


def test_expressions_are_unique_and_no_bare_digits(published):
    assert len({str(expression) for expression in published}) == len(published)
    assert all(len(expression.tokens) >= 4 for expression in published)


def test_values_are_those_of_an_independent_evaluator(published):
    for expression in published[:5000]:
        assert expression.value == evaluate(str(expression)), expression
    deep = max(published, key=lambda expression: nesting(str(expression)))
    assert deep.value == evaluate(str(deep))
    counts = torch.bincount(torch.tensor([e.value for e in published[:5000]]), minlength=10)
    assert counts.min() > 300


@pytest.mark.parametrize(
    "text, value",
    [
        ("[MED 1 2 ]", 1),
        ("[MED 9 1 4 2 ]", 3),
        ("[MED 8 3 5 ]", 5),
        ("[SM 9 9 9 ]", 7),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
    ],
)
def test_operations(text, value):
    tokens = bytes(data.VOCABULARY.index(word) for word in text.split())
    assert str(Expression(tokens, value)) == text
    assert evaluate(text) == value
    operator, *digits = text.replace("]", "").replace("[MIN 4 7 ", "4").split()
    assert data.OPERATORS[operator](list(map(int, digits))) == value


def test_depth_is_limited(published, monkeypatch):
    assert max(nesting(str(expression)) for expression in published) <= data.MAX_DEPTH - 1
    monkeypatch.setattr(data, "MAX_DEPTH", 4)
    tokens = bytearray()
    data._draw(lambda: 0.0, 1, tokens)  # an operation with two arguments wherever there may be one
    text = str(Expression(bytes(tokens), 0))
    assert nesting(text) == 3
    assert text.count("0") == 2**3


def test_operators_and_numbers_of_arguments_are_uniform(published):
    uniform = data.random.Random(0).random
    operators, arguments = torch.zeros(4), torch.zeros(4)
    for _ in range(8000):
        tokens = bytearray()
        data._draw(uniform, data.MAX_DEPTH - 1, tokens)  # digits alone may follow
        if len(tokens) > 1:
            operators[tokens[0] - 10] += 1
            arguments[len(tokens) - 4] += 1
    for counts in (operators, arguments):
        total = counts.sum().item()
        assert abs(total / 8000 - 0.25) / math.sqrt(0.25 * 0.75 / 8000) < MAX_Z
        assert ((counts / total - 0.25).abs() / math.sqrt(0.25 * 0.75 / total)).max() < MAX_Z


def test_brackets_are_left_branching():
    tokens = bytes(data.VOCABULARY.index(word) for word in "[MAX 2 9 [MIN 4 7 ] ]".split())
    expected = "( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )"
    assert Expression(tokens, 9).bracketed() == expected
    for expression in generate(200, seed=3):
        words = expression.bracketed().split()
        assert [word for word in words if word not in "()"] == str(expression).split()
        assert words.count("(") == words.count(")") == len(expression.tokens) - 1


def test_a_seed_gives_the_same_expressions_and_a_length_limit_keeps_the_short_ones():
    assert generate(50, seed=5) == generate(50, seed=5) != generate(50, seed=6)
    short = generate(50, seed=5, max_length=6)
    assert len(short) == 50 and max(len(e.tokens) for e in short) == 6


def test_batches_hold_tokens_lengths_and_values():
    expressions = generate(20, seed=0, max_length=25)
    batch = to_batch(expressions)
    for row, expression in enumerate(expressions):
        assert bytes(batch.tokens[row, : batch.lengths[row]].tolist()) == expression.tokens
        assert batch.values[row] == expression.value
    short = batch[batch.lengths == batch.lengths.min()]
    assert short.tokens.shape[-1] == batch.lengths.min()


# -- the model -------------------------------------------------------------------------------------


def sentences(num_runs: int, size: int = 6, seed: int = 0, max_length: int = 8) -> Batch:
    """Different expressions of mixed lengths for each run."""
    batch = to_batch(generate(num_runs * size, seed, max_length))
    return Batch(
        batch.tokens.view(num_runs, size, -1),
        batch.lengths.view(num_runs, size),
        batch.values.view(num_runs, size),
    )


def network(num_runs: int, num_hidden: int = 5, seed: int = 0) -> TreeLSTM:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return TreeLSTM(num_runs, num_hidden).double()


def by_hand(tree_lstm: TreeLSTM, run: int, tokens: list[int], merges: list[int]) -> Tensor:
    """The last hidden state of one sentence under given merges: lists of nodes, one at a time."""
    size = tree_lstm.num_hidden
    nodes = [tree_lstm.leaves[run, token] for token in tokens]
    for place in merges:
        left, right = nodes[place], nodes[place + 1]
        joint = torch.cat([left[:size], right[:size]])
        gates = joint @ tree_lstm.cell_weight[run] + tree_lstm.cell_bias[run, 0]
        i, f_left, f_right, u, o = gates.view(5, size)
        cell = left[size:] * torch.sigmoid(f_left + 1) + right[size:] * torch.sigmoid(f_right + 1)
        cell = cell + torch.tanh(u) * torch.sigmoid(i)
        merged = torch.cat([torch.sigmoid(o) * torch.tanh(cell), cell])
        nodes = [*nodes[:place], merged, *nodes[place + 2 :]]
    (root,) = nodes
    return root[:size]


def test_merges_are_those_of_lists_of_nodes():
    tree_lstm, batch = network(2), sentences(2)
    for parameter in tree_lstm.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # biases too
    chosen: list[Tensor] = []

    def choose(logits: Tensor, merge: int) -> Tensor:
        chosen.append(torch.distributions.OneHotCategorical(logits=logits).sample())
        return chosen[-1]

    found = tree_lstm.encode(batch, choose)
    for run, row in itertools.product(range(2), range(batch.lengths.shape[1])):
        length = int(batch.lengths[run, row])
        places = [int(choice[run, row].argmax()) for choice in chosen][: length - 1]
        places += [0] * (length - 1 - len(places))  # the last merge of the longest
        expected = by_hand(tree_lstm, run, batch.tokens[run, row, :length].tolist(), places)
        torch.testing.assert_close(found[run, row], expected)


def test_logits_are_scores_of_the_pairs_a_sentence_has():
    tree_lstm, batch = network(2), sentences(2)
    seen: list[Tensor] = []

    def choose(logits: Tensor, merge: int) -> Tensor:
        seen.append(logits)
        return leftmost(logits, merge)

    tree_lstm.encode(batch, choose)
    for merge, logits in enumerate(seen, start=1):
        counts = (logits > -math.inf).sum(-1)
        assert torch.equal(counts, (batch.lengths - merge).clamp(min=1))
    tokens = batch.tokens[1, 0].tolist()
    merged = by_hand(tree_lstm, 1, tokens[1:3], [0])
    expected = merged @ tree_lstm.query[1, :, 0] / math.sqrt(tree_lstm.num_hidden)
    torch.testing.assert_close(seen[0][1, 0, 1], expected)


@pytest.mark.parametrize("choose", [greedy, leftmost])
def test_padding_is_not_read(choose):
    tree_lstm, batch = network(2), sentences(2)
    together = tree_lstm.encode(batch, choose)
    assert batch.lengths.min() < batch.lengths.max()
    for run, row in itertools.product(range(2), range(batch.lengths.shape[1])):
        length = int(batch.lengths[run, row])
        alone = Batch(*(t[:, row : row + 1] for t in batch))
        alone = alone._replace(tokens=alone.tokens[..., :length])
        torch.testing.assert_close(tree_lstm.encode(alone, choose)[run, 0], together[run, row])
    other = batch.tokens.masked_fill(torch.arange(8) >= batch.lengths[..., None], 3)
    assert torch.equal(tree_lstm.encode(batch._replace(tokens=other), choose), together)


def enumerated_loss(tree_lstm: TreeLSTM, batch: Batch) -> Tensor:
    """-E[log p(value | sentence, T)] over all trees, the mean over the sentences of one run."""
    total = torch.zeros((), dtype=torch.float64)
    num_merges = batch.tokens.shape[-1] - 2
    for row in range(batch.lengths.shape[1]):
        single = Batch(*(t[:, row : row + 1] for t in batch))
        for places in itertools.product(*(range(num_merges + 1 - m) for m in range(num_merges))):
            log_prob = torch.zeros((), dtype=torch.float64)

            def choose(logits: Tensor, merge: int, places: tuple = places) -> Tensor:
                nonlocal log_prob
                place = places[merge - 1]
                log_prob = log_prob + logits.log_softmax(-1)[0, 0, place]
                return torch.eye(logits.shape[-1], dtype=torch.float64)[place].expand_as(logits)

            logits = tree_lstm.classify(tree_lstm.encode(single, choose))
            if log_prob > -math.inf:
                nll = torch.nn.functional.cross_entropy(logits[0], single.values[0])
                total = total + log_prob.exp() * nll
    return total / batch.lengths.shape[1]


def test_the_loss_is_the_expectation_over_trees_of_the_classification_loss():
    tree_lstm, batch = network(1), sentences(1, size=3, max_length=6)
    tree_lstm.query.data *= 5.0
    exact = enumerated_loss(tree_lstm, batch).item()
    loss = StraightThroughELBO(ZGR())
    many = Batch(*(t.repeat(500, *[1] * (t.dim() - 1)) for t in batch))
    stacked = TreeLSTM(500, 5).double()
    for parameter, value in zip(stacked.parameters(), tree_lstm.parameters()):
        parameter.data = value.data.repeat(500, *[1] * (value.dim() - 1))
    # 500 runs of the same parameters are 500 draws
    draws = torch.tensor([loss.loss(stacked.model, stacked.guide, many) / 500 for _ in range(20)])
    error = draws.std().item() / math.sqrt(len(draws))
    assert error < 0.01 * exact
    assert abs(draws.mean().item() - exact) / error < 6.0  # 19 degrees of freedom: once in 100,000
    assert abs(enumerated_loss(network(1, seed=1), batch).item() - exact) / error > 6.0


def gradients(tree_lstm: TreeLSTM, batch: Batch, estimator: Estimator) -> list[Tensor]:
    tree_lstm.zero_grad()
    pyro.set_rng_seed(3)
    StraightThroughELBO(estimator).loss_and_grads(tree_lstm.model, tree_lstm.guide, batch)
    return [parameter.grad for parameter in tree_lstm.parameters()]


def single_pass(tree_lstm: TreeLSTM, batch: Batch, estimator: Estimator) -> list[Tensor]:
    """The same in plain torch: no Pyro, no second program."""
    tree_lstm.zero_grad()
    pyro.set_rng_seed(3)
    root = tree_lstm.encode(batch, lambda logits, merge: estimator.one_hot(logits))
    logits = tree_lstm.classify(root).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch.values.flatten(), reduction="sum")
    (loss / batch.values.shape[1]).backward()
    return [parameter.grad for parameter in tree_lstm.parameters()]


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_gradients_are_those_of_a_plain_classification_loss(temperature):
    tree_lstm, batch = network(3), sentences(3)
    estimator = StraightThroughGumbelSoftmax(temperature)
    plain = single_pass(tree_lstm, batch, estimator)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for found, expected in zip(gradients(tree_lstm, batch, estimator), plain):
        torch.testing.assert_close(found, expected)


def test_what_the_model_takes_from_the_guide_is_what_it_would_compute(monkeypatch):
    tree_lstm, batch = network(2), sentences(2)
    kept = gradients(tree_lstm, batch, ZGR())
    calls = []
    monkeypatch.setattr(
        TreeLSTM,
        "_once",
        lambda self, function, *arguments: calls.append(1) or function(*arguments),
    )
    for found, expected in zip(gradients(tree_lstm, batch, ZGR()), kept):
        torch.testing.assert_close(found, expected)
    assert calls


def test_the_mask_changes_nothing(monkeypatch):
    """Unmasked, KL(q || p) of each merge is zero, with zero gradient: the docstring's claim."""
    tree_lstm, batch = network(2), sentences(2)
    masked = gradients(tree_lstm, batch, ZGR())
    monkeypatch.setattr("pyro.poutine.mask", lambda mask: contextlib.nullcontext())
    trace = poutine.trace(tree_lstm.guide).get_trace(batch)
    assert trace.nodes["merge_1"]["mask"] is None
    for found, expected in zip(gradients(tree_lstm, batch, ZGR()), masked):
        torch.testing.assert_close(found, expected)


def test_nothing_is_kept_after_the_model_has_run():
    tree_lstm, batch = network(2), sentences(2)
    gradients(tree_lstm, batch, ZGR())
    assert tree_lstm._known is None


def test_model_and_guide_have_the_same_merges_and_the_same_logits():
    tree_lstm, batch = network(2), sentences(2)
    guide = poutine.trace(tree_lstm.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(tree_lstm.model, trace=guide)).get_trace(batch)
    merges = [name for name in guide.nodes if name.startswith("merge_")]
    assert merges == [f"merge_{m}" for m in range(1, batch.tokens.shape[-1] - 1)]
    for name in merges:
        assert torch.equal(model.nodes[name]["fn"].logits, guide.nodes[name]["fn"].logits)
    assert set(model.nodes) - set(guide.nodes) == {"value"}


# -- the training ----------------------------------------------------------------------------------


def test_every_block_has_its_estimator():
    parts = [StraightThroughGumbelSoftmax(0.01), ZGR(), Untrained(), GumbelRao(1.0, num_gumbels=1)]
    logits = torch.randn(8, 3, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(8, 3, 4, dtype=torch.float64)
    pyro.set_rng_seed(0)
    value = SideBySide(parts, 2).one_hot(logits)
    (found,) = torch.autograd.grad((value * weight).sum(), logits)
    for index, estimator in enumerate(parts[:3]):  # the fourth draws in its backward pass
        pyro.set_rng_seed(0)
        alone = estimator.one_hot(logits)
        assert torch.equal(alone, value)
        (expected,) = torch.autograd.grad((alone * weight).sum(), logits)
        block = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(found[block], expected[block])
    assert found[4:6].abs().max() == 0 and found[6:].abs().max() > 0


def test_gradients_are_clipped_run_by_run():
    pyro.clear_param_store()
    first, second = (pyro.param(name, torch.zeros(3, 2, 2)) for name in "ab")
    optim = SGDByRun(torch.tensor([math.inf, 1.0, 1.0]), learning_rate=1.0, momentum=0.0)
    first.grad = torch.tensor([3.0, 3.0, 0.3]).view(3, 1, 1).expand(3, 2, 2).clone()
    second.grad = torch.tensor([4.0, 4.0, 0.4]).view(3, 1, 1).expand(3, 2, 2).clone()
    optim([first, second])
    torch.testing.assert_close(optim.largest_norms, torch.tensor([10.0, 10.0, 1.0]))
    steps = first.detach()[:, 0, 0], second.detach()[:, 0, 0]
    torch.testing.assert_close(steps[0], -torch.tensor([3.0, 0.3, 0.3]))
    torch.testing.assert_close(steps[1], -torch.tensor([4.0, 0.4, 0.4]))


def small_problem(num_steps: int) -> tuple[Splits, Budget]:
    parts = (to_batch(generate(60, seed, max_length=5)) for seed in range(3))
    budget = Budget(
        num_seeds=2,
        num_steps=num_steps,
        batch_size=5,
        evaluate_every=2,
        learning_rate=0.05,
        momentum=0.9,
        num_hidden=4,
    )
    return Splits(*parts), budget


def test_an_arm_does_not_feel_the_arm_beside_it():
    splits, budget = small_problem(num_steps=5)
    groups = [[arm for arm in group if arm.clip_norm is None] for group in listops.plan(0.25)]
    first, second, *_, untrained = groups[1]  # draw nothing in their backward passes
    clipped = dataclasses.replace(second, clip_norm=0.1)
    beside = [train([first, arm], splits, budget, lambda: None) for arm in (untrained, clipped)]
    assert beside[0][0] == beside[1][0]
    assert beside[0][1].largest_norm != beside[1][1].largest_norm
    assert beside[1][1].clip_norm == 0.1 and min(beside[1][1].largest_norm) > 0.1


def test_every_arm_starts_from_the_same_seeds():
    _, budget = small_problem(num_steps=1)
    start = initial_network(3, budget, greedy)
    for parameter in start.parameters():
        assert torch.equal(parameter[:2], parameter[2:4])
    assert not torch.equal(start.query[0], start.query[1])


def test_the_parameters_of_the_best_validation_are_kept():
    splits, budget = small_problem(num_steps=6)
    short, long = (dataclasses.replace(budget, num_steps=n, num_seeds=1) for n in (2, 6))
    arm = listops.plan(0.25)[2][0]  # no draws at all: the longer run begins as the shorter one
    runs = {n: train([arm], splits, b, lambda: None)[0] for n, b in ((2, short), (6, long))}
    middle = train([arm], splits, dataclasses.replace(long, num_steps=4), lambda: None)[0]
    candidates = runs[2].final + middle.final + runs[6].final
    assert runs[6].best_validation[0] in candidates
    swapped = splits._replace(validation=splits.test)
    chosen = train([arm], swapped, long, lambda: None)[0]
    assert chosen.best_validation[0] == max(candidates)


def test_the_random_control_leaves_its_parser_alone_and_trains_the_rest():
    tree_lstm, batch = network(1), sentences(1)
    found = dict(zip(dict(tree_lstm.named_parameters()), gradients(tree_lstm, batch, Untrained())))
    assert found["query"].abs().max() == 0
    assert found["cell_weight"].abs().max() > 0


def test_left_branching_trees_have_no_latent_merges():
    tree_lstm = TreeLSTM(2, 4, parser=leftmost)
    trace = poutine.trace(tree_lstm.model).get_trace(sentences(2))
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample" and s["is_observed"]] == [
        "value"
    ]
    assert not any(name.startswith("merge") for name in trace.nodes)


def test_batches_cover_an_epoch_in_a_new_order():
    batches = shuffled(23, 5, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(4)]) for _ in range(2)]
    assert all(len(epoch.unique()) == 20 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(next(shuffled(23, 5, seed=0)), epochs[0][:5])


def test_accuracy_counts_right_answers(monkeypatch):
    monkeypatch.setattr("listops_training.CHUNK", 7)
    tree_lstm = TreeLSTM(3, 5)
    batch = to_batch(generate(40, max_length=10))
    found = accuracy(tree_lstm, batch, greedy)
    repeated = Batch(*(tensor.expand(3, *tensor.shape) for tensor in batch))
    answers = tree_lstm.classify(tree_lstm.encode(repeated, greedy)).argmax(-1)
    assert torch.equal(found, (answers == batch.values).float().mean(-1))
    assert len(found.unique()) > 1


@pytest.mark.parametrize("full", [False, True])
def test_no_expression_is_in_two_splits(full, monkeypatch):
    monkeypatch.setattr(
        listops, "generate", lambda size=300, *args, **kw: generate(size, *args, **kw)
    )
    settings = {"num_train": 50, "num_validation": 10, "num_test": 20, "max_length": 10, "seed": 0}
    splits = listops.load_splits(argparse.Namespace(full=full, **settings))
    rows = [tuple(row) for split in splits for row in split.tokens.tolist()]
    assert len(set(rows)) == len(rows)
    assert max(int(split.lengths.max()) for split in splits) == 10
    sizes = [len(split.values) for split in splits]
    assert sizes == [50, 10, 20] if not full else sizes[1] == sizes[2] == sum(sizes) // 10


# -- the claims ------------------------------------------------------------------------------------


def made_up(**changed: list[float]) -> list[Result]:
    """Results that bear the claims out, but for ``changed``; seeds scatter by a percent or two."""
    accuracies = {"ST-GS_0.01": [0.3, 0.4, 0.35], "ST-GS_0.1": [0.55, 0.56, 0.57]}
    results = []
    for arm in itertools.chain(*listops.plan(0.25)):
        key = f"{arm.name}_{arm.temperature:g}" if arm.temperature else arm.name
        if arm.clip_norm is not None:
            key = "clipped"
        figures = {**accuracies, **changed}.get(key, [0.6, 0.61, 0.59])
        results.append(
            Result(arm.name, arm.temperature, arm.clip_norm, figures, figures, [1.0, 1.0, 2.0])
        )
    return results


def test_the_claims_hold_where_they_should():
    sentences = check_claims(made_up())
    assert "25.0 (2.9)" in sentences[0]
    assert "ST-GS 25.0, GR-MC10 0.0" in sentences[1]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ST-GS_0.01": [0.6, 0.59, 0.61]}, "ST-GS at 0.01 is 0.0 points below ST-GS at 1"),
        ({"ST-GS_0.01": [0.2, 0.6, 0.5]}, "ST-GS at 0.01 is 16.7 points .* standard error 12.0"),
        ({"ST-GS_1": [0.3, 0.31, 0.32]}, "ST-GS at 0.01 is -4.0 points below ST-GS at 1"),
        ({"GR-MC100_0.01": [0.4, 0.41, 0.42]}, "6.0 points below GR-MC100 at 0.01"),
        ({"GR-MC10_1": [0.5, 0.51, 0.49]}, "GR-MC10: .* 10.0 points apart"),
    ],
)
def test_the_claims_fail_where_they_should(changed, message):
    with pytest.raises(SystemExit, match=message):
        check_claims(made_up(**changed))


def test_controls_are_never_hidden():
    no_better = " ".join(listops.caveats(made_up()))
    assert "No learned tree beats" in no_better and "left-branching trees 60.0 ± 0.6" in no_better
    better = " ".join(listops.caveats(made_up(ZGR=[0.7, 0.71, 0.69])))
    assert "learned arms is above" in better and "ZGR 70.0" in better


def test_the_committed_tables_are_those_of_the_committed_figures():
    record = json.loads((DOCS / "listops.json").read_text())
    results = [Result(**row) for row in record["rows"]]
    assert check_claims(results) == record["claims"]
    assert listops.caveats(results) == record["caveats"]
    assert report(record) == (DOCS / "listops.md").read_text()
    assert readme_table(record) in report(record)
    assert all(len(result.best_validation) >= 5 for result in results)
    assert len(results) == len(list(itertools.chain(*listops.plan(0.25))))
    assert "±" in readme_table(record)
