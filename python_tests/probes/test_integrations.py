"""Trackers in real Lightning and Transformers loops, where these are installed."""

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes.integrations import (
    edge_lightning_callback,
    edge_trainer_callback,
    lightning_callback,
    trainer_callback,
)

DATA = cx.data.digits(train=32)


def network():
    return cx.models.fully_connected(64, 10, width=16, depth=2)


def matches_a_fresh_solve(tracker, model):
    row = tracker.probes[-1]
    exact = cx.eigsh(cx.GGN(model, "half_mse", DATA.train), tol=1e-6).eigenvalues[0].item()
    assert row["values"][0] == pytest.approx(exact, abs=row["errors"][0] + 2e-6 * exact)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return (self.net(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.02)

    module = Module()
    tracker = cx.CurvatureTracker(module.net, "half_mse", DATA.train, every=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*DATA.train), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        default_root_dir=tmp_path,
        callbacks=[lightning_callback(tracker)],
    )
    trainer.fit(module, loader)
    assert [row["step"] for row in tracker.probes] == [0, 2, 4]  # 8 batches, two a step
    assert tracker.probes[-1]["eta"] == 0.02
    logged = trainer.callback_metrics["curvature/lambda_1"].item()
    assert logged == pytest.approx(tracker.probes[-1]["values"][0])
    matches_a_fresh_solve(tracker, module.net)


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            logits = self.net(x)
            loss = (logits - labels).square().sum() / (2 * len(x))
            return {"loss": loss, "logits": logits}

    model = Net()
    rows = [{"x": x, "labels": y} for x, y in zip(*DATA.train, strict=True)]
    tracker = cx.CurvatureTracker(model.net, "half_mse", DATA.train, every=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=0.01,
        lr_scheduler_type="constant",
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, callbacks=[trainer_callback(tracker)]
    )
    trainer.train()
    assert [row["step"] for row in tracker.probes] == [
        1,
        3,
        5,
    ]  # AdamW has a metric after its first step
    assert tracker.probes[-1]["eta"] == 0.01
    history = [h for h in trainer.state.log_history if "curvature/lambda_1" in h]
    assert [h["step"] for h in history] == [1, 3, 5]
    row, optimizer = tracker.probes[-1], trainer.optimizer
    plain = cx.GGN(model.net, "half_mse", DATA.train)
    seen = cx.Preconditioned(plain, getattr(optimizer, "optimizer", optimizer), model.net)
    exact = cx.eigsh(seen, tol=1e-6).eigenvalues[0].item()
    assert row["values"][0] == pytest.approx(exact, abs=row["errors"][0] + 2e-6 * exact)
    assert row["threshold"] == pytest.approx(38.0)


@pytest.mark.parametrize("make", [lightning_callback, trainer_callback])
def test_refused(make):
    with pytest.raises(TypeError, match="must be a CurvatureTracker"):
        make(None)


def test_trainer_needs_a_fixed_probe_set():
    with pytest.raises(ValueError, match="fixed probe set"):
        trainer_callback(cx.CurvatureTracker(network(), "half_mse"))


@pytest.mark.filterwarnings("ignore")
def test_edge_in_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return (self.net(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

        def configure_optimizers(self):
            return OPTIMIZERS.setdefault(self, torch.optim.SGD(self.parameters(), lr=0.02))

    OPTIMIZERS = {}
    module = Module()
    meter = cx.EdgeMeter(module.net, module.configure_optimizers(), curvature_every=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*DATA.train), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.1,
        default_root_dir=tmp_path,
        callbacks=[edge_lightning_callback(meter)],
    )
    trainer.fit(module, loader)
    assert [row["flags"] for row in meter.rows] == [[]] * 4
    assert trainer.callback_metrics["edge/zeta"].item() == pytest.approx(meter.rows[-1]["zeta"])
    row = meter.rows[-2]
    assert row["zeta"] == pytest.approx(row["chi"] * row["varsigma"] / row["tau"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_edge_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            logits = self.net(x)
            loss = (logits - labels).square().sum() / (2 * len(x))
            return {"loss": loss, "logits": logits}

    model = Net()
    rows = [{"x": x, "labels": y} for x, y in zip(*DATA.train, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meter = cx.EdgeMeter(model, optimizer, every=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.05,
        lr_scheduler_type="constant",
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[edge_trainer_callback(meter)],
    )
    trainer.train()
    assert [(row["step"], row["flags"]) for row in meter.rows] == [(0, []), (2, [])]
    history = [h for h in trainer.state.log_history if "edge/zeta" in h]
    assert [h["step"] for h in history] == [1, 3]
    assert history[-1]["edge/zeta"] == meter.rows[-1]["zeta"]
    # clipped steps are so short that the loss falls as the gradient says; with the clipped gradient
    # in place of the loss's own zeta would be far below zero
    assert abs(meter.rows[0]["zeta"]) < 0.1


@pytest.mark.parametrize("make", [edge_lightning_callback, edge_trainer_callback])
def test_edge_refused(make):
    with pytest.raises(TypeError, match="meter must be an EdgeMeter"):
        make(None)
