"""One trial: data, model, loop and evaluators put together as one stream of records.

The only place that joins those rooms; used alike by `medst train`, the inline executor and Ray. It knows
neither the tracker nor the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from medst.config import Behaviour, Config, DataConfig, stream_seed
from medst.data.batch import Batch
from medst.data.loader import EvalLoader, TrainLoader
from medst.data.splits import seen_by_trial
from medst.data.store import Store, open_store, store_path
from medst.data.tokenizer import Tokenizer, build_tokenizer
from medst.evaluation import check_tasks, evaluate, evaluate_pixel_baseline
from medst.evaluation.contamination import contamination, standing
from medst.model import MedST
from medst.model.accounting import count
from medst.model.lineage import Lineage, write_lineage
from medst.model.weights import continue_from
from medst.objectives import medst_objective
from medst.records import Facts, Metrics, Record
from medst.training.checkpoint import load_checkpoint
from medst.training.device import require_device
from medst.training.distributed import Meeting, Ranks, joined
from medst.training.first_phase import LaterEpochs, after_first_phase, as_first_phase, first_phase
from medst.training.launch import config_of_rank, on_ranks
from medst.training.loop import TemporalWeights, autocast, num_steps, train
from medst.training.memory import OutOfMemoryError, is_out_of_memory, largest_that_fits, release


def run_trial(config: Config, checkpoint_dir: Path | None = None) -> Iterator[Record]:
    """Run one trial and yield all that there is to say about it, in a fixed order.

    Same config, data and code: same records, bit for bit on the CPU with one thread. With a
    `checkpoint_dir` an interrupted trial goes on from its last checkpoint there: facts come again, curves
    go on after the checkpoint's step. The finished model and its tokenizer are left in
    `<checkpoint_dir>/model` in the `save_pretrained` form.

    A `training.world_size` above 1 starts as many processes on this machine, unless this process is one of them
    already (`torchrun`, sweeps). The first of them yields, evaluates and writes; the others yield nothing.

    Raises:
        StoreError: no prepared store; LoaderError, ValueError: data and config do not fit.
        NonFiniteLossError: a loss stopped being a number; the message names step and term.
        DeviceError: no such GPU on this machine.
        OutOfMemoryError: the message says which `training.micro_batch` fits.
        RankError, RankLost: another process of the trial failed or vanished.
    """
    meeting = Meeting.of_environment(config.training.device)
    if meeting is not None:
        with joined(meeting):
            yield from run_rank(config_of_rank(config, meeting), checkpoint_dir)
    elif config.training.world_size > 1:
        yield from on_ranks(run_rank, config, checkpoint_dir)
    else:
        yield from run_rank(config, checkpoint_dir)


def run_rank(config: Config, checkpoint_dir: Path | None = None) -> Iterator[Record]:
    """What one process does for a trial after it has joined the others, if there are any."""
    ranks = Ranks.current()
    if ranks.world_size != config.training.world_size:
        raise ValueError(f"training.world_size={config.training.world_size}, but {ranks.world_size} processes were "
                         "started for this trial; make them equal")
    records = _run(config, checkpoint_dir, ranks)
    if ranks.is_first:
        yield from records
    else:
        for _ in records:
            pass


class _WithLosses(nn.Module):
    """The model together with its losses: what is differentiated."""

    def __init__(self, model: MedST, config: Config, gather: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._gather = gather

    def forward(self, batch: Batch, weights: TemporalWeights) -> dict[str, Tensor]:
        """Terms of the batch; in training of the batch of all ranks."""
        config, model = self._config, self.model
        embeddings = model(batch)
        scored = medst_objective(
            embeddings, batch.study, batch.sequences, model.word_pooling, model.patch_pooling, config.objective,
            fmc_weight=weights.fmc, rmr_weight=weights.rmr,
            balance_weight=config.model.experts.balance_weight if config.model.experts.routing == "learned" else 0.0,
            prototypes=_schooled(model.prototypes, weights.prototypes_learn),
            gather=self._gather if model.training else None,
        )
        shares = embeddings.expert_share.detach().mean(dim=0)
        use = {f"expert_share/{index}": share for index, share in enumerate(shares.unbind())}
        return {**scored.terms, **use, "loss": scored.total}


def _schooled(prototypes: Tensor | None, is_learning: bool) -> Tensor | None:
    return prototypes if prototypes is None or is_learning else prototypes.detach()


def _run(config: Config, checkpoint_dir: Path | None, ranks: Ranks) -> Iterator[Record]:
    check_tasks(config.evaluation.tasks)
    require_device(config.training.device)
    store, tokenizer = _opened(config)
    device = torch.device(config.training.device)
    loader = TrainLoader(store, tokenizer, config, device, ranks.rank)
    validation = EvalLoader(store, tokenizer, config, "validate", device)
    model = MedST.create(config, tokenizer.vocabulary_size).to(device)
    steps = num_steps(config, len(loader))
    first_steps = round(config.training.mgca_epochs * len(loader))
    yield Facts({
        **count(model, config.data.caption_tokens),
        "training_pairs": loader.num_pairs,
        "training_steps": steps,
        "pairs_seen": steps * config.training.pairs_per_batch,
        **({"mgca_pairs_seen": first_steps * config.training.pairs_per_batch} if first_steps else {}),
        "vocabulary_size": tokenizer.vocabulary_size,
        "store": store.name,
        **standing(store, config),
    })

    if first_steps:
        yield from as_first_phase(_first_phase(model, store, tokenizer, config, checkpoint_dir, ranks), steps)
    _seed_dropout(config, "training", ranks)
    with_losses = _WithLosses(model, config, None if ranks.is_alone else ranks.gather)
    parallel = ranks.parallel(with_losses)

    def objective(batch: Batch, weights: TemporalWeights) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = (parallel if model.training else with_losses)(batch, weights)
        return terms

    records = train(model, objective, loader, validation, config, checkpoint_dir, ranks)
    if first_steps:
        records = after_first_phase(records, first_steps)
    if config.evaluation.validation_scores == "every" and ranks.is_first:
        records = _scored(records, model, store, tokenizer, config, steps)
    try:
        yield from records
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release(error)
        raise OutOfMemoryError(_memory_advice(config, with_losses, loader, ranks)) from error
    if not ranks.is_first:
        return
    if checkpoint_dir is not None:
        folder = model.save_pretrained(checkpoint_dir / "model")
        tokenizer.save(folder)
        write_lineage(folder, Lineage(store.name, store.fingerprint, contamination(store, config)))
    yield from evaluate(model, store, tokenizer, config, steps)
    if steps == 0:
        # The untrained trial is the floor of a study: what needs no training stands with it.
        yield from evaluate_pixel_baseline(store, config)


def _seed_dropout(config: Config, name: str, ranks: Ranks) -> None:
    """Dropout differs between ranks; the first draws as one alone would."""
    torch.manual_seed(stream_seed(config.seed, name if ranks.is_first else f"{name}.{ranks.rank}"))


def _first_phase(model: MedST, store: Store, tokenizer: Tokenizer, main: Config, checkpoint_dir: Path | None,
                 ranks: Ranks) -> Iterator[Record]:
    """Train MGCA and lay its weights over `model`, unless a checkpoint of the main training brings later ones."""
    if ranks.from_first(checkpoint_dir is not None and ranks.is_first and load_checkpoint(checkpoint_dir) is not None):
        return
    config = first_phase(main)
    device = torch.device(config.training.device)
    _seed_dropout(config, "first_phase", ranks)
    source = MedST.create(config, tokenizer.vocabulary_size).to(device)
    with_losses = _WithLosses(source, config, None if ranks.is_alone else ranks.gather)
    parallel = ranks.parallel(with_losses)
    loader = TrainLoader(store, tokenizer, config, device, ranks.rank)
    yield from train(
        source, lambda batch, weights: (parallel if source.training else with_losses)(batch, weights),
        LaterEpochs(loader, main), EvalLoader(store, tokenizer, config, "validate", device), config,
        None if checkpoint_dir is None else checkpoint_dir / "first-phase", ranks)
    continue_from(model, source)


def _scored(records: Iterator[Record], model: MedST, store: Store, tokenizer: Tokenizer, config: Config, steps: int
            ) -> Iterator[Record]:
    """The loop's records, each validation loss followed by the validation scores; the last step is the evaluators'."""
    evaluation = config.evaluation.model_copy(update={"tasks": ("validation",), "track_embeddings": False})
    scoring = config.model_copy(update={"evaluation": evaluation})
    for record in records:
        yield record
        if isinstance(record, Metrics) and "validation/loss" in record.values and record.step < steps:
            yield from evaluate(model, store, tokenizer, scoring, record.step)


def _memory_advice(config: Config, with_losses: _WithLosses, loader: TrainLoader, ranks: Ranks) -> str:
    """What to set so that a trial that ran out of memory fits; measured where that is possible."""
    training = config.training
    share = training.pairs_per_batch // ranks.world_size
    held = training.micro_batch or share
    told = f"out of memory on {training.device} with the activations of {held} pairs held at once"
    others = "training.recompute=true saves more" if not training.recompute else "a smaller model or batch is needed"
    if not ranks.is_alone or config.model.experts.routing == "learned":
        # Several ranks cannot measure while one of them has failed; learned routing has no micro-batches.
        return f"{told}; set a smaller training.micro_batch where routing allows it; {others}"
    model = with_losses.model
    # The optimiser's two moments, which training needs besides.
    moments: list[Tensor] = []

    def attempt(micro_batch: int) -> None:
        moments[:] = [torch.empty_like(weight) for weight in model.parameters() for _ in range(2)]
        for encoder in (model.image_encoder, model.text_encoder):
            encoder.micro_batch = micro_batch
        model.train()
        batch = next(iter(loader.batches(0))).to(torch.device(training.device))
        try:
            with autocast(config):
                with_losses(batch, TemporalWeights(1.0, 1.0))["loss"].backward()
        finally:
            model.zero_grad(set_to_none=True)
            moments.clear()

    fitting = largest_that_fits(attempt, held)
    if fitting is None:
        return f"{told}, and not one pair at a time fits; {others}"
    return (f"{told}; {fitting} fit, as measured after the failure: set training.micro_batch={fitting} for all arms of "
            f"the study (it is part of the trial key); {others}")


@dataclass(frozen=True)
class _DataKey:
    """What decides store and tokenizer; the manifest's time stands for its content."""

    data: DataConfig
    word_aggregation: Behaviour
    manifest_time: float


@lru_cache(maxsize=4)
def _open(key: _DataKey) -> tuple[Store, Tokenizer]:
    store = seen_by_trial(open_store(key.data), key.data)
    return store, build_tokenizer(store, key.data, key.word_aggregation)


def _opened(config: Config) -> tuple[Store, Tokenizer]:
    """Store and tokenizer, opened once per process for all trials that share them."""
    manifest = store_path(config.data) / "manifest.json"
    # Only what the tokenizer and the store depend on, so that arms with other data settings share them.
    data = DataConfig(root=config.data.root, store=config.data.store, image_size=config.data.image_size,
                      crop_size=min(config.data.crop_size, config.data.image_size),
                      vocabulary=config.data.vocabulary, vocabulary_size=config.data.vocabulary_size,
                      report_text=config.data.report_text, evaluation_patients=config.data.evaluation_patients)
    time = manifest.stat().st_mtime if manifest.exists() else 0.0
    return _open(_DataKey(data, config.model.text.word_aggregation, time))
