"""A strategy for PyTorch Lightning: ``Trainer(strategy=hpcdml.lightning.Strategy(policy="losp"))``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpcdml.errors import UsageError
from hpcdml.launcher import launcher_rank
from hpcdml.session import Session
from hpcdml.session import device as own_device
from hpcdml.session.batches import count
from hpcdml.session.options import CHECKPOINT_NAMES

try:
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.trainer.states import TrainerFn
except ImportError as error:
    raise ImportError('hpcdml.lightning needs PyTorch Lightning: pip install "hpcdml[lightning]"') from error


class Strategy(SingleDeviceStrategy):
    """Trains a ``LightningModule`` of one optimizer as an ``hpcdml.Session`` does a loop of one's own.

    Started by ``python`` the trainer trains as on a single device. Under ``mpirun -n N`` rank 0's ``fit`` serves, and
    trains nothing; the ``fit`` of every other rank trains on its part of the training data. All of them return when the
    run has ended, with the final global parameters in the model, which ``validate``, ``test`` and ``predict`` then use
    on every rank alike. Within ``fit`` every worker validates its own local model, on all of the validation data. The
    first worker is the one that logs, shows progress and writes checkpoints (``trainer.is_global_zero``). These hold
    its local model: save the final one by ``trainer.save_checkpoint`` after ``fit``. Nothing is reduced over ranks.

    Args:
        evaluate, options: as for ``hpcdml.Session``, but for those about checkpoints and signals, which are Lightning's
            business; ``device`` is this process's device, by default as ``hpcdml.device()`` picks it.

    Raises:
        UsageError: at ``fit``, if the module has not exactly one optimizer, or an option is wrong.
    """

    strategy_name = "hpcdml"

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(device=own_device() if device is None else device)
        if own := [name for name in options if name in CHECKPOINT_NAMES]:
            raise UsageError(f"Strategy({own[0]}=...): Lightning saves checkpoints and heeds signals itself")
        self.evaluate = evaluate
        self.options = {**options, "signals": "none"}
        self._session: Session | None = None
        self._epochs: int | None = None
        if launcher_rank() is not None:
            world = importlib.import_module("hpcdml.mpi.world").join_world()
            # Lightning's rank 0 is the first worker, and the server its last.
            self.global_rank = (world.rank - 1) % world.size
        rank_zero_only.rank = self.global_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this process logs and writes checkpoints."""
        return bool(self.global_rank == 0)

    def setup(self, trainer: Any) -> None:
        """Set up as on a single device; for ``fit`` the session then begins. Every rank calls it."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        module = self.lightning_module
        if len(self.optimizers) != 1:
            raise UsageError(f"{type(module).__name__}: has {len(self.optimizers)} optimizers; must have one")
        self._session = Session(module, self.optimizers[0], evaluate=self.evaluate, **self.options).__enter__()

    def process_dataloader(self, dataloader: Any) -> Any:
        """This worker's part of the training data; other data whole. On rank 0: serve, and return then."""
        trainer, session = self.lightning_module.trainer, self._session
        if session is None or not trainer.training:
            return dataloader
        batches = session.batches(dataloader)
        batches.taker.opened(batches.epoch_samples)
        if session.stopped:
            # The server has served: there is nothing to train.
            self._epochs, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, 0
        return batches.loader

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Count the samples of a minibatch."""
        if self._session is not None:
            self._session.drawn(count(batch))

    def backward(self, closure_loss: torch.Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Any:
        """Record the loss, then go on as on a single device."""
        if self._session is not None:
            self._session.loss(closure_loss * self.lightning_module.trainer.accumulate_grad_batches)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Take the step, within which the session does its part; and stop where the server says so."""
        result = super().optimizer_step(optimizer, closure, *args, **kwargs)
        if self._session is not None and self._session.stopped:
            self.lightning_module.trainer.should_stop = True
        return result

    def on_train_end(self) -> None:
        """The loop is over: take the final parameters."""
        self._finish()

    def on_exception(self, exception: BaseException) -> None:
        """End all ranks, and say why."""
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(type(exception), exception, exception.__traceback__)

    def teardown(self) -> None:
        """Leave the session, if ``fit`` has not, and the device."""
        self._finish()
        super().teardown()

    def _finish(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.finish()
        if self._epochs is not None:
            self.lightning_module.trainer.fit_loop.max_epochs, self._epochs = self._epochs, None
