"""The training loop: each step is a transaction that survives the death of the trainer and of the service.

    take a batch under a lease named after the step -> train -> log -> checkpoint -> commit -> publish -> advance

Until the checkpoint is on disk the step has not happened: the lease goes back, or is taken up again after a restart,
with the same groups. From then on it has: whatever of commit, publish and advance is missing is done after a restart,
and each changes nothing the second time. Policy version n is the weights after step n, always.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from groupreplay import (
    Batch,
    Client,
    GroupFeedback,
    LeaseExpiredError,
    Policy,
    PolicyVersionConflictError,
    StepConflictError,
    UnknownLeaseError,
    tracing,
)
from groupreplay.torch.advantages import AdvantageEstimator
from groupreplay.torch.collate import TrainingBatch, collate
from groupreplay_trainer.alarms import Alarms
from groupreplay_trainer.checkpoint import (
    CheckpointFolder,
    Progress,
    TrainingState,
    TrainingStateError,
)
from groupreplay_trainer.diagnostics import group_feedback
from groupreplay_trainer.failures import MAX_REJECTED_IN_A_ROW, NonFiniteError, RejectedStepError, explaining_memory
from groupreplay_trainer.log_ratios import with_log_ratios
from groupreplay_trainer.parts import adamw, load_reference, model_options, update_settings
from groupreplay_trainer.policy_model import PolicyModel, load_policy_model
from groupreplay_trainer.publish import WeightsFolder
from groupreplay_trainer.ranks import Ranks
from groupreplay_trainer.rejected import write_rejected
from groupreplay_trainer.run_folder import RunFolder
from groupreplay_trainer.service_calls import ServiceCalls, StopRequestedError
from groupreplay_trainer.settings import TrainerSettings
from groupreplay_trainer.step_log import GROUP_LOG, TRAIN_LOG, StepLog
from groupreplay_trainer.step_record import diagnose, group_record, train_record
from groupreplay_trainer.update import PolicyUpdater, UpdateReport
from groupreplay_trainer.watching import StepWatcher, Undoing, open_watchers

_ALONE: Final = Ranks()
_log = logging.getLogger(__name__)


class TrainingConflictError(RuntimeError):
    """Checkpoints and service contradict each other, and only a person can say which is right."""


def run_trainer(settings: TrainerSettings, *, stop: threading.Event) -> None:
    """Train until `settings.steps` steps are done or `stop` is set; continue where the run folder's trainer was.

    Raises:
        RunFolderBusyError: another trainer works in the run folder.
        TrainingConflictError: the service's record of the run does not fit the run folder.
        FileNotFoundError, ValueError: the model cannot be loaded, or a group cannot be trained on.
        ModuleNotFoundError: it is a Hugging Face model, and transformers is not installed.
        OSError, ModuleNotFoundError: metrics cannot be shown where the settings say.
        StarvedError: no batch within max_wait_s.
        RejectedStepError: a step met numbers that are not finite, and the settings do not leave it out.
        TrainingMemoryError: a step does not fit into memory.
        GroupReplayError: the service refused a call, and would again.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with Ranks.join() as ranks, ExitStack() as stack:
        folder = RunFolder(settings.run_dir)
        ranks.first(lambda: _enter(stack, folder))
        model = load_policy_model(settings.model.path, model_options(settings), ranks=ranks)
        reference = load_reference(settings, ranks)
        client = stack.enter_context(Client(settings.server, timeout_s=settings.call_timeout_s, **settings.login()))
        watchers: list[StepWatcher] = []
        ranks.first(lambda: watchers.extend(stack.enter_context(open_watchers(settings))))
        trace = tracing.traced(settings.trace, service="groupreplay-trainer", instance=settings.trainer_id)
        ranks.first(lambda: _enter(stack, trace))
        Trainer(
            settings,
            client=client,
            model=model,
            folder=folder,
            stop=stop,
            reference=reference,
            watchers=watchers,
            ranks=ranks,
        ).run()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trained:
    """What became of a batch."""

    rollouts: TrainingBatch | None = None
    """None where it has no groups."""
    report: UpdateReport | None = None
    """None where no update was made; then the model is as before."""
    rejected: bool = False


class Trainer:
    """One trainer at work in its run folder."""

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        client: Client,
        model: PolicyModel,
        folder: RunFolder,
        stop: threading.Event,
        reference: PolicyModel | None = None,
        ranks: Ranks = _ALONE,
        watchers: Sequence[StepWatcher] = (),
    ) -> None:
        """Wire the parts; reads and calls nothing.

        Args:
            settings: see TrainerSettings.
            client: open, stays open.
            model: the weights a new run starts from; changed in place.
            folder: locked by the caller.
            stop: set it, and `run` returns soon.
            reference: the policy that loss.kl_coefficient keeps the model near; needed where that is above 0.
            ranks: the processes that train this model together; the model is divided among them already.
            watchers: told of every step; open, stay open.
        """
        self._settings = settings
        self._ranks = ranks
        self._model = model
        self._optimizer = adamw(model, settings.optimizer)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._calls = ServiceCalls(client, settings=settings, stop=stop, ranks=ranks)
        self._checkpoints = CheckpointFolder(folder.checkpoints)
        self._weights = WeightsFolder(settings.weights_folder, keep=settings.keep_weights, ranks=ranks)
        self._step_log = StepLog(folder.path)
        self._rejected = folder.rejected
        self._alarms = Alarms(settings)
        self._watchers = watchers
        self._progress = Progress(run=settings.run, table=settings.table, step=0, lease_id="")
        self._updater = PolicyUpdater(
            model,
            self._optimizer,
            settings=update_settings(settings),
            generator=self._generator,
            reference=reference,
            ranks=ranks,
            on_progress=self._on_progress,
        )

    @property
    def progress(self) -> Progress:
        """Where training stands: the newest step that is on disk."""
        return self._progress

    def run(self) -> None:
        """Train to the last step, or until told to stop. See `run_trainer` for what it raises."""
        self._ranks.first(self._checkpoints.prepare)
        self._weights.prepare()
        try:
            self._calls.create_table()
            self._resume()
            self._tell_where_it_goes_on()
            while self._progress.step < self._settings.steps:
                with tracing.span("step") as span:
                    self._train_step(self._progress.step + 1, span)
        except StopRequestedError:
            _log.info("stopped after step %d; start again to continue", self._progress.step)
        else:
            _log.info("all %d steps are done", self._progress.step)

    def _resume(self) -> None:
        """Load the newest checkpoint, or begin with one of step 0, and complete its transaction."""
        state = self._load_newest()
        if state is not None:
            self._take_over(state)
            _log.info("continuing after step %d", self._progress.step)
        else:
            self._begin()
        clock = self._calls.get_policy()
        step = self._progress.step
        if clock.version > step:
            clock = self._rewind(clock)
        self._complete_step(clock)

    def _load_newest(self) -> TrainingState | None:
        """Return the newest checkpoint that the first rank can read; the others read the same one."""
        state = None

        def newest_step() -> int | None:
            nonlocal state
            state = self._checkpoints.load_newest()
            return None if state is None else state.progress.step

        step = self._ranks.first(newest_step)
        return state if self._ranks.is_first or step is None else self._checkpoints.load(step)

    def _rewind(self, clock: Policy) -> Policy:
        """Move the run's policy clock back to the newest checkpoint, where the settings allow it."""
        settings, step = self._settings, self._progress.step
        if not settings.rewind:
            raise TrainingConflictError(
                f"run {settings.run!r} is at policy version {clock.version}, but the newest readable checkpoint "
                f"in {settings.run_dir} is of step {step}: another trainer advanced the run, or this folder is "
                "an old copy. Use the folder of that trainer, or another run; or undo the later steps with --rewind"
            )
        _log.warning("undoing steps %d to %d of run %s", step + 1, clock.version, settings.run)
        return self._calls.rewind_policy(self._weights.publish(self._model, run=settings.run, version=step), step=step)

    def _begin(self) -> None:
        if not self._ranks.first(self._step_log.is_empty):
            raise TrainingConflictError(
                f"{self._settings.run_dir} has the log of a run but no readable checkpoint; give a new run another "
                "run_dir, or put the checkpoint back"
            )
        self._save(self._progress)
        _log.info("a new run: policy version 0 is %s", self._settings.model.path)

    def _train_step(self, step: int, span: tracing.Span) -> None:
        """Take a batch, train on it, and make that durable; then tell the service, and whoever watches."""
        started = time.monotonic()
        span.note(run=self._settings.run, table=self._settings.table, step=step)
        try:
            with tracing.part("draw"):
                batch = self._calls.next_batch(step)
            span.note(lease_id=batch.lease_id, groups=len(batch.groups), policy_version=batch.policy_version)
            tracing.link_groups(batch, span)
            waiting_s = time.monotonic() - started
            with explaining_memory(batch, self._settings.memory), tracing.part("train"):
                trained = self._train_on(batch)
            training_s = time.monotonic() - started - waiting_s
            with tracing.part("save"):
                line = self._save_step(step, batch, trained, waiting_s=waiting_s, training_s=training_s)
        except StepConflictError as error:
            raise _step_conflict(step, error) from error
        except Exception:
            # Nothing of the step is on disk: its groups go back now, not when the lease runs out.
            self._calls.release(step)
            raise
        self._complete_step(Policy(run=self._settings.run, version=step - 1))
        if self._progress.step < step:
            self._tell_where_it_goes_on()
            return
        publishing_s = time.monotonic() - started - waiting_s - training_s
        for watcher in self._watchers:
            watcher.finished({**line, "publishing_s": publishing_s})

    def _save_step(
        self, step: int, batch: Batch, trained: _Trained, *, waiting_s: float, training_s: float
    ) -> dict[str, Any]:
        """Log a step and write its checkpoint; return its line of train.jsonl."""
        report, rollouts, rejected = trained.report, trained.rollouts, trained.rejected
        updates = len(report.losses) if report else 0
        totals = self._progress.counters.plus(batch, updates=updates, rejected=rejected)
        line = train_record(
            step,
            batch,
            diagnostics=diagnose(batch, rollouts, report),
            totals=totals,
            updates=updates,
            tokens=rollouts.trained_tokens if rollouts else 0,
            lr=self._settings.optimizer.lr_at(step, steps=self._settings.steps),
            rejected=rejected,
            waiting_s=waiting_s,
            training_s=training_s,
            at_unix_s=time.time(),
        )
        line["alarms"] = self._ranks.first(lambda: self._alarms.judge(line))
        records = {TRAIN_LOG: line, GROUP_LOG: group_record(step, batch)}
        lengths = self._ranks.first(lambda: self._step_log.append(records))
        found = self._feedback(batch, rollouts, report) if report and rollouts else ()
        self._save(
            replace(
                self._progress,
                step=step,
                lease_id=batch.lease_id,
                counters=totals,
                log_lengths=lengths,
                feedback=found,
                rejected_in_a_row=self._progress.rejected_in_a_row + 1 if rejected else 0,
            )
        )
        return line

    def _feedback(self, batch: Batch, rollouts: TrainingBatch, report: UpdateReport) -> list[GroupFeedback]:
        """Return what a step found out about its groups."""
        proximal_BT = report.proximal.logprobs_BT
        return with_log_ratios(
            group_feedback(batch, rollouts, proximal_BT),
            [item.group.group_id for item in batch.groups],
            rollouts,
            proximal_BT,
            which=self._settings.feedback_log_ratios,
        )

    def _train_on(self, batch: Batch) -> _Trained:
        """Update the model; leave it as it was where the batch holds nothing to train on, or is rejected."""
        if not batch.groups:
            _log.warning(
                "%s: none of the %d fresh groups is effective, and there is no replay yet: no update",
                batch.lease_id,
                batch.fresh,
            )
            return _Trained()
        rollouts = collate(
            batch,
            pad_token_id=self._model.pad_token_id,
            estimator=AdvantageEstimator(self._settings.loss.advantages),
            max_tokens=self._model.max_tokens,
            vocab_size=self._model.vocab_size,
        )
        if not rollouts.trained_tokens:
            _log.warning("the loss masks of batch %s leave out every token: no update", batch.lease_id)
            return _Trained(rollouts=rollouts)
        self._set_learning_rate(self._progress.step + 1)
        try:
            return _Trained(rollouts=rollouts, report=self._updater.update(rollouts))
        except NonFiniteError as error:
            self._reject(batch, rollouts, error)
            return _Trained(rollouts=rollouts, rejected=True)

    def _reject(self, batch: Batch, rollouts: TrainingBatch, error: NonFiniteError) -> None:
        """Keep a batch for a look, and undo what it did to the model.

        Raises:
            RejectedStepError: the settings do not leave such a step out, or too many came in a row.
        """
        done, settings = self._progress, self._settings
        step, in_a_row = done.step + 1, done.rejected_in_a_row + 1
        report = self._ranks.first(
            lambda: write_rejected(self._rejected, step, batch, rollouts, error, settings=settings)
        )
        self._take_over(self._checkpoints.load(done.step))
        self._tell_of_undone("nonfinite")
        if settings.on_nonfinite != "skip-step" or in_a_row >= MAX_REJECTED_IN_A_ROW:
            raise RejectedStepError(step, error, report=report, in_a_row=in_a_row)
        _log.error("step %d makes no update: %s. Likely: %s. See %s", step, error, error.causes, report)

    def _set_learning_rate(self, step: int) -> None:
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.optimizer.lr_at(step, steps=settings.steps)

    def _complete_step(self, clock: Policy) -> None:
        """Commit, publish and announce the newest checkpoint; what was done before changes nothing.

        Args:
            clock: the run's policy clock as last known.
        """
        progress = self._progress
        if progress.lease_id and not self._commit(clock.version):
            self._roll_back()
            # Not only the newest step may be open: a store that lost its last second forgot the commit before, too.
            self._complete_step(self._calls.get_policy())
            return
        if clock.version == progress.step and self._weights.holds(clock):
            return
        with tracing.part("publish"):
            policy = self._weights.publish(self._model, run=progress.run, version=progress.step)
        try:
            self._calls.advance_policy(policy)
        except PolicyVersionConflictError as error:
            raise TrainingConflictError(
                f"run {progress.run!r} announced other weights as policy version {policy.version} than those in "
                f"{self._settings.run_dir}: another trainer or another model is at work in it; give this one another "
                f"run. ({error})"
            ) from error

    def _commit(self, clock_version: int) -> bool:
        """Commit the newest checkpoint's step; False if its groups are no longer this trainer's."""
        step, lease_id = self._progress.step, self._progress.lease_id
        try:
            with tracing.part("commit"):
                self._calls.commit(step, lease_id, self._progress.feedback)
        except StepConflictError as error:
            raise _step_conflict(step, error) from error
        except LeaseExpiredError as error:
            _log.error("step %d trained on groups that went to somebody else meanwhile: %s", step, error)
            return False
        except UnknownLeaseError as error:
            if clock_version == step:
                return True  # Published, so it had been committed; the service has forgotten the lease since.
            if clock_version < step - 1:
                _log.error(
                    "the service is at policy version %d and has lost what it knew of the run (%s); "
                    "going on after step %d. Groups stored before may be gone, or be trained on again",
                    clock_version,
                    error,
                    step,
                )
                return True
            _log.error("step %d may have trained on groups that went to somebody else: %s", step, error)
            return False
        return True

    def _roll_back(self) -> None:
        """Undo the newest step: drop its checkpoint and log lines, and restore the one before."""
        step = self._progress.step
        try:
            state = self._checkpoints.load(step - 1)
        except TrainingStateError as error:
            raise TrainingConflictError(
                f"step {step} must be undone, because its groups are no longer this trainer's, but the checkpoint "
                f"before is missing: {error}. Put it back, or start a new run"
            ) from error
        self._ranks.first(lambda: self._checkpoints.drop(step))
        self._take_over(state)
        self._tell_of_undone("lease_lost")
        _log.error("step %d was undone, so that no group is trained twice; going on after step %d", step, step - 1)

    def _take_over(self, state: TrainingState) -> None:
        progress, settings = state.progress, self._settings
        if (progress.run, progress.table) != (settings.run, settings.table):
            raise TrainingConflictError(
                f"{settings.run_dir} holds run {progress.run!r}, table {progress.table!r}, not run {settings.run!r}, "
                f"table {settings.table!r}; give each run its own run_dir"
            )
        state.restore(model=self._model, optimizer=self._optimizer, generator=self._generator)
        self._ranks.first(lambda: self._step_log.cut(progress.log_lengths))
        self._alarms.restart(self._step_log.read(TRAIN_LOG))
        self._progress = progress

    def _tell_where_it_goes_on(self) -> None:
        newest = deque(self._step_log.read(TRAIN_LOG), maxlen=1)
        for watcher in self._watchers:
            watcher.resumed(self._progress.step, newest[0] if newest else None)

    def _tell_of_undone(self, reason: Undoing) -> None:
        for watcher in self._watchers:
            watcher.undone(reason)

    def _save(self, progress: Progress) -> None:
        state = TrainingState.capture(
            progress, model=self._model, optimizer=self._optimizer, generator=self._generator, ranks=self._ranks
        )
        self._ranks.first(lambda: self._checkpoints.save(state))
        self._progress = progress

    def _on_progress(self) -> None:
        self._calls.check_stop()
        self._calls.keep_lease(self._progress.step + 1)


def _enter(stack: ExitStack, opened: AbstractContextManager[object]) -> None:
    stack.enter_context(opened)


def _step_conflict(step: int, error: StepConflictError) -> TrainingConflictError:
    return TrainingConflictError(
        f"step {step} was committed before with another lease: another trainer takes batches from this table, or the "
        f"run folder is an old copy. Give each trainer its own run, or use the newest run folder. ({error})"
    )
