"""``train_and_compare``: the same model trained by each of several losses."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from tqdm.auto import tqdm

from pyro_silent.diagnostics.checkpoint import Checkpoint, described
from pyro_silent.diagnostics.losses import Loss, check_losses, check_programs
from pyro_silent.diagnostics.random_stream import seed_everything
from pyro_silent.diagnostics.trained_tensors import TrainedTensors
from pyro_silent.diagnostics.training_arguments import (
    check_all_data,
    check_initialize,
    check_optim,
    checked_seeds,
    checked_steps,
)
from pyro_silent.diagnostics.training_comparison import TrainingComparison
from pyro_silent.diagnostics.training_data import Batches, fingerprint
from pyro_silent.diagnostics.training_record import Record
from pyro_silent.diagnostics.training_run import Plan, Run, Start
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.diagnostics.yardstick import MeasureError, Yardstick, choose


def train_and_compare(
    model: Callable,
    guide: Callable,
    elbos: dict[str, Loss],
    optim: PyroOptim,
    data: Iterable,
    *,
    num_steps: int = 1000,
    seeds: Iterable[int] = (0,),
    held_out: Iterable | None = None,
    yardstick: Loss | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    initialize: Callable[[], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingComparison:
    r"""Train the same model by each loss, from the same start, and judge all by one yardstick.

    Each run is that of ``pyro.infer.SVI``. For one seed all losses begin with the same parameters, bit
    for bit, and see the same batches in the same order: initial values, data and the noise of the loss
    have random numbers of their own, derived from the seed. Afterwards everything is as it was found,
    also after an exception: values of parameters and buffers, gradients, param store, random states,
    modules, Pyro's settings, the losses and the optimizer given.

    :param model: a Pyro model.
    :param guide: a guide; it may still have to make its parameters.
    :param elbos: names to losses: of this package, Pyro's own, or functions as ``SVI`` takes them. Each
        run has a copy, in the state given.
    :param optim: of ``pyro.optim``, not used before; each run has a copy. A scheduler of learning rates
        is stepped after each pass over the data, as in Pyro's documentation (``ReduceLROnPlateau``
        with the mean loss of the pass).
    :param data: batches, an iterable that can be iterated again and again: a ``DataLoader``, or a list,
        for full-batch inference ``[(x, y)]``. Of a batch a tuple or list is the arguments of model and
        guide, a dict their keyword arguments, anything else the one argument. What it draws must come
        from the global generators of torch, numpy or Python, or from those of a ``DataLoader`` and its
        samplers. (Minibatches that ``pyro.plate`` draws in the model belong to the noise of the loss;
        the yardstick then sees the same one every time.)
    :param int num_steps: of each run.
    :param seeds: one run for each loss and seed. A seed stands for the order of the data, the noise,
        and values of parameters that are still to be made: those of modules start as found.
    :param held_out: batches like ``data`` for the yardstick, one pass at each evaluation; None for the
        training data.
    :param yardstick: what judges, lower is better: an ELBO, whose ``loss`` is taken, or a function of
        model, guide and the batch that returns a float. None for the exact -ELBO where :func:`explain`
        finds that every term is exact, else the importance-sampled bound

        .. math:: -\log \frac1{100} \sum_{i=1}^{100} \frac{p(x, z_i)}{q(z_i)}, \qquad z_i \sim q

        by ``RenyiELBO(alpha=0, num_particles=100)``, which lies between -ELBO and -log evidence, and
        costs 100 runs of the programs for each batch. (Where they vectorize, write
        ``RenyiELBO(alpha=0, num_particles=100, vectorize_particles=True, max_plate_nesting=1)``.)
        An exact -ELBO of a hidden layer or of many enumerated values can take as long as many steps:
        then name a yardstick. It is evaluated without gradients, with modules in evaluation mode (no
        dropout, batch norms as learned; so it moves no statistics), on the ``expressive`` branch of a
        :class:`TwinDecoder`, and with the same random numbers every time. Its value is the mean over
        the batches.
    :param int evaluate_every: steps from one evaluation to the next; None for 50 evaluations in all.
        There is one before the first step and one after the last.
    :param int patience: end a run after so many evaluations without a new best; None to end none.
    :param initialize: called before the parameters of each run are made, with the seed set: to give
        modules new initial values, for example. All losses of a seed get those of its first call.
    :param checkpoint: a file. It keeps finished runs and, at each evaluation, the one in progress; the
        same call goes on from there, and ends as if it had not been interrupted. (That it is the same
        is seen by its arguments, the first batch and the yardstick's value at the start.) Saved are
        parameters, buffers, the states of optimizer, loss, data and random numbers; not saved is what
        programs keep elsewhere. Data are gone through again from the start of the pass.
    :param bool progress: whether to show a progress bar.
    :return: a :class:`TrainingComparison`: ``str()`` is a table with a sentence of advice, ``.rows``,
        ``.runs`` and ``.curves`` are lists of dicts, ``.to_csv(path)`` and ``.plot(path)`` write files.
    :raises ConfigurationError: for an argument that makes no sense, a checkpoint of another comparison,
        and data that are not the same for all losses.

    A loss that raises, or is not finite, ends its run with an error in its row; the other runs go on.
    Errors of the data, and Ctrl-C, end the comparison.

    When it misleads: the final value is that of one set of hyperparameters, which are seldom the best
    for all losses. An importance-sampled bound favours guides with heavy tails. Seconds are those of
    this machine; those of the first step include what a loss finds out once.

    Memory: the parameters as found and a copy of the start, beside those in training.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_silent import SilentELBO, train_and_compare
        >>> x = torch.tensor([1.2, 0.7, 1.9])
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", lambda: torch.tensor(0.0))
        ...     pyro.sample("z", dist.Normal(loc, 0.5))
        >>> comparison = train_and_compare(
        ...     model,
        ...     guide,
        ...     {"silent": SilentELBO(), "trace": Trace_ELBO()},
        ...     pyro.optim.Adam({"lr": 0.05}),
        ...     data=[x],
        ...     num_steps=60,
        ...     seeds=(0, 1),
        ...     progress=False,
        ... )
        >>> [(row["name"], row["num_seeds"]) for row in comparison.rows]
        [('silent', 2), ('trace', 2)]
        >>> print(comparison.yardstick)
        exact -ELBO (SilentELBO), mean over the batches of the training data, since held_out is None;
        lower is better
    """
    losses = check_losses(elbos)
    different_seeds = checked_seeds(seeds)
    check_programs(model, guide)
    check_initialize(initialize)
    check_optim(optim)
    check_all_data(data, held_out)
    evaluate_every = checked_steps(num_steps, evaluate_every, patience)
    with TrainedTensors(model, guide) as tensors, undisturbed(model, guide):
        measure, found = _look(model, guide, optim, data, held_out, yardstick, tensors)
        plan = Plan(
            model,
            guide,
            losses,
            optim,
            data,
            num_steps,
            measure,
            evaluate_every,
            patience,
            initialize,
        )
        records = _Comparison(plan, different_seeds, tensors, checkpoint, progress, found).run()
    return TrainingComparison.of(records, list(losses), str(measure))


def _look(
    model: Callable,
    guide: Callable,
    optim: PyroOptim,
    data: Iterable,
    held_out: Iterable | None,
    yardstick: Loss | None,
    tensors: TrainedTensors,
) -> tuple[Yardstick, float]:
    """Get to know the programs' tensors; optimizer and yardstick run once here to show that they can.

    :return: the yardstick, and its value at the parameters as found.
    """
    where = data if held_out is None else held_out
    with undisturbed(model, guide), tensors.one_run():
        seed_everything(0)
        tensors.meet(model, guide, *Batches("data", data, 0).first())
        # the first optimizer of a process loads much of torch, which is no loss's fault
        copy.deepcopy(optim)(list(tensors.parameters().values()))
        args, kwargs = Batches("data" if held_out is None else "held_out", where, 0).first()
        measure = Yardstick(
            *choose(yardstick, model, guide, args, kwargs), where, on_training_data=held_out is None
        )
        try:
            value = measure(model, guide, tensors.modules)
        except MeasureError as error:
            raise error.cause from None
    return measure, value


class _Comparison:
    """All runs, those that a checkpoint has left, and the progress bar over them."""

    def __init__(
        self,
        plan: Plan,
        seeds: list[int],
        tensors: TrainedTensors,
        path: str | os.PathLike[str] | None,
        progress: bool,
        found: float,
    ) -> None:
        self._found = found
        self._plan, self._seeds, self._tensors = plan, seeds, tensors
        self._progress = progress
        self._checkpoint = Checkpoint(path, {} if path is None else self._setup())

    def run(self) -> list[Record]:
        """Train what is not finished."""
        plan, checkpoint = self._plan, self._checkpoint
        records = [Record(**record) for record in checkpoint.finished]
        finished = {(record.name, record.seed) for record in records}
        total = len(self._seeds) * len(plan.losses) * plan.num_steps
        with tqdm(total=total, disable=not self._progress, unit="step") as bar:
            bar.update(len(records) * plan.num_steps)
            for seed in self._seeds:
                start: Start | None = None
                for name in plan.losses:
                    if (name, seed) in finished:
                        continue
                    bar.set_description(f"{name}, seed {seed}")
                    with undisturbed(plan.model, plan.guide), self._tensors.one_run():
                        run = Run(plan, name, seed, self._tensors, start, self._saved(name, seed))
                        start = run.start
                        record = self._train(run, bar)
                    checkpoint.finish(vars(record))
                    records.append(record)
        return records

    def _saved(self, name: str, seed: int) -> dict[str, Any] | None:
        """The state of a run that was in progress."""
        current = self._checkpoint.current
        if current is None or (current["record"]["name"], current["record"]["seed"]) != (
            name,
            seed,
        ):
            return None
        return current

    def _train(self, run: Run, bar: tqdm) -> Record:
        bar.update(run.record.steps)

        def evaluated(record: Record) -> None:
            bar.set_postfix(yardstick=f"{record.curve[-1]['yardstick']:.5g}", refresh=False)
            if record.steps and self._checkpoint.is_kept:
                self._checkpoint.save(run.state())

        record = run.train(evaluated, bar.update)
        bar.update(self._plan.num_steps - record.steps)  # of a run that ended early
        return record

    def _setup(self) -> dict[str, Any]:
        """What the results depend on, as far as plain values can tell."""
        plan = self._plan
        with undisturbed(plan.model, plan.guide), self._tensors.one_run():
            run = Run(plan, next(iter(plan.losses)), self._seeds[0], self._tensors, None)
            values = fingerprint((run.start.parameters, run.start.others))
            shapes = {name: list(value.shape) for name, value in run.start.parameters.items()}
            first_batch = run.start.batch
            optimizers = self._optimizers(run.start.parameters)
        return {
            "losses": {name: described(loss) for name, loss in plan.losses.items()},
            "optimizer": optimizers,
            "seeds": self._seeds,
            "num_steps": plan.num_steps,
            "evaluate_every": plan.evaluate_every,
            "patience": plan.patience,
            "yardstick": str(plan.yardstick),
            # shows a change of model, guide or held-out data; devices differ in the last digits
            "yardstick at the parameters found": f"{self._found:.5g}",
            "parameters": shapes,
            "initial values": values,
            "first batch": first_batch,
            "dtype": str(torch.get_default_dtype()),
        }

    def _optimizers(self, names: Iterable[str]) -> Any:
        """The optimizer in plain values; of options that are a function, what it returns."""
        description = described(self._plan.optim)
        options = self._plan.optim.pt_optim_args
        if callable(options) and self._plan.optim.pt_optim_args_argc == 1:
            normal = {name: options(normalize_param_name(name)) for name in names}
            description["pt_optim_args"] = described(normal)
        return description
