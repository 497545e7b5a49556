"""Numbers of every probe reach the loggers that people use, with default settings of trainers."""

import csv
import sys
import types

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
WANTED = ("lambda_1", "error_1", "eta_lambda_over_threshold", "overhead")


def network():
    return cx.models.fully_connected(64, 10, width=16, depth=2)


class Run:
    """What a W&B run offers."""

    def __init__(self):
        self.logged = []

    def log(self, data, step=None, commit=None):
        self.logged.append((data, step))


class MLflow:
    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


class Writer:
    """What TensorBoard's SummaryWriter offers."""

    def __init__(self):
        self.logged = []

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.logged.append(({tag: scalar_value}, global_step))


class Function:
    def __init__(self):
        self.logged = []

    def __call__(self, numbers, step):
        self.logged.append((numbers, step))


def track(log, steps=6, **options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    defaults = {"optimizer": optimizer, "every": 2, "full_batch": True, "log": log}
    with cx.CurvatureTracker(model, "half_mse", DATA.train, **(defaults | options)) as tracker:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(DATA.x_train) - DATA.y_train).square().sum() / 64
            loss.backward()
            optimizer.step()
            tracker.step(loss)
    return tracker


@pytest.mark.parametrize("kind", [Run, MLflow, Writer, Function])
def test_a_tracker_logs_every_probe(kind):
    target = kind()
    tracker = track(target, k=2)
    found = {}
    for numbers, step in target.logged:
        found.setdefault(step, {}).update(numbers)
    assert list(found) == [row["step"] for row in tracker.probes] == [0, 2, 4, 6]
    for row in tracker.probes:
        numbers = found[row["step"]]
        assert numbers["curvature/lambda_1"] == row["values"][0]
        assert numbers["curvature/lambda_2"] == row["values"][1]
        assert numbers["curvature/error_1"] == row["errors"][0]
        ratio = numbers["curvature/eta_lambda_over_threshold"]
        assert ratio == pytest.approx(0.02 * row["values"][0] / 2)
        assert "curvature/overhead" in numbers
    zetas = [step.get("zeta") for step in tracker.steps_seen]
    # the step before a probe has its zeta from the next loss only
    assert [found[t].get("curvature/zeta") for t in (0, 2, 4, 6)] == [None, *zetas[:5:2]]


def test_several_targets_at_once():
    run, seen = Run(), []
    track([run, lambda numbers, step: seen.append(step)])
    assert [step for _, step in run.logged] == seen == [0, 2, 4, 6]


def test_a_meter_logs_every_row():
    model, run = network(), Run()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with cx.EdgeMeter(model, optimizer, full_batch=True, every=2, log=run) as meter:
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(DATA.x_train) - DATA.y_train).square().sum() / 64
            loss.backward()
            optimizer.step()
            meter.step(loss)
    assert run.logged == [({"edge/zeta": row["zeta"]}, row["step"]) for row in meter.rows[:2]]


def test_a_logger_that_fails_ends_no_training():
    def broken(numbers, step):
        raise OSError("no network")

    with pytest.warns(RuntimeWarning, match=r"the logger fails \(OSError: no network\)") as seen:
        tracker = track(broken)
    assert len(seen) == 1
    assert len(tracker.probes) == 4


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_named(name, monkeypatch):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    needs = rf"CurvatureTracker: log='{name}' needs {name}: pip install {name}"
    with pytest.raises(RuntimeError, match=needs):
        track(name)


def test_a_package_that_is_named_is_imported(monkeypatch):
    run = Run()
    module = types.ModuleType("trackio")
    module.log = run.log
    monkeypatch.setitem(sys.modules, "trackio", module)
    track("trackio")
    assert [step for _, step in run.logged] == [0, 2, 4, 6]


@pytest.mark.parametrize("target", [3, "mlflow", [Run(), 3]])
def test_what_is_no_logger_is_refused(target):
    with pytest.raises((TypeError, ValueError), match="log must be a function of"):
        track(target)


def scalars(folder):
    """All scalars in TensorBoard's event files: {tag: [(step, value)]}."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(module, reason="tensorboard is not installed")
    found = {}
    for path in folder.rglob("events.out.tfevents*"):
        read = events.EventAccumulator(str(path))
        read.Reload()
        for tag in read.Tags()["scalars"]:
            found.setdefault(tag, []).extend((e.step, e.value) for e in read.Scalars(tag))
    return found


@pytest.mark.filterwarnings("ignore")
def test_event_files_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        tracker = track(writer)
    found = scalars(tmp_path)
    assert [step for step, _ in found["curvature/lambda_1"]] == [0, 2, 4, 6]
    assert found["curvature/lambda_1"][2][1] == pytest.approx(tracker.probes[2]["values"][0])
    assert {f"curvature/{name}" for name in (*WANTED, "zeta")} == set(found)


@pytest.mark.filterwarnings("ignore")
def test_trainer_of_transformers_reports_every_probe(tmp_path, monkeypatch):
    """Default settings: it logs every 500 steps, and a run of 6 steps never."""
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            logits = self.net(x)
            return {"loss": (logits - labels).square().mean(), "logits": logits}

    model, heard = Net(), []

    class Listener(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append((state.global_step, logs))

    rows = [{"x": x, "labels": y} for x, y in zip(*DATA.train, strict=True)]
    tracker = cx.CurvatureTracker(model.net, "mse", DATA.train, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meter = cx.EdgeMeter(model, optimizer)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        report_to=["tensorboard"],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[trainer_callback(tracker), edge_trainer_callback(meter), Listener()],
    )
    trainer.train()
    probed = [row["step"] for row in tracker.probes]
    assert probed == [0, 2, 4, 6]
    history = [h for h in trainer.state.log_history if "curvature/lambda_1" in h]
    assert [h["step"] for h in history] == probed
    assert [step for step, logs in heard if "curvature/lambda_1" in logs] == probed
    found = scalars(tmp_path / "events")
    for name in WANTED:
        assert [step for step, _ in found[f"train/curvature/{name}"]] == probed, name
    values = [value for _, value in found["train/curvature/lambda_1"]]
    assert values == pytest.approx([row["values"][0] for row in tracker.probes])
    assert [step for step, _ in found["train/edge/zeta"]] == [1, 2, 3, 4, 5, 6]
    assert "train/train_loss" in found or "train/loss" in found  # the Trainer's own are there too


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_own_log_is_not_lost(tmp_path):
    """Both are due at the same step; a handler's on_log says that nothing is due any more."""
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            return {"loss": (self.net(x) - labels).square().mean()}

    model = Net()
    rows = [{"x": x, "labels": y} for x, y in zip(*DATA.train, strict=True)]
    tracker = cx.CurvatureTracker(model.net, "mse", DATA.train, every=1)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    callbacks = [trainer_callback(tracker)]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    assert [h["step"] for h in trainer.state.log_history if "loss" in h] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore")
def test_loggers_of_lightning_have_every_probe(tmp_path):
    """Default settings: log_every_n_steps is 50, and a run of 8 steps logs nothing by itself."""
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.02)

        def training_step(self, batch, _):
            return (self.net(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

        def configure_optimizers(self):
            return self.optimizer

    def fit(epochs, module, tracker, meter, path=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=CSVLogger(tmp_path, name="", version=f"run{epochs}"),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[lightning_callback(tracker), edge_lightning_callback(meter)],
        )
        trainer.fit(module, loader, ckpt_path=path)
        return trainer

    def parts():
        torch.manual_seed(0)
        module = Module()
        tracker = cx.CurvatureTracker(module.net, "half_mse", DATA.train, every=2)
        return module, tracker, cx.EdgeMeter(module.net, module.optimizer)

    data = torch.utils.data.TensorDataset(*DATA.train)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    module, tracker, meter = parts()
    trainer = fit(2, module, tracker, meter)
    probed = [row["step"] for row in tracker.probes]
    assert probed == [0, 2, 4, 6, 8]
    with open(tmp_path / "run2" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in WANTED:
        found = [int(row["step"]) for row in rows if row[f"curvature/{name}"]]
        assert found == probed, name
    zetas = [float(row["edge/zeta"]) for row in rows if row["edge/zeta"]]
    assert zetas == pytest.approx([row["zeta"] for row in meter.rows])

    # the trainer's checkpoint holds both states: four more epochs go on from it
    checkpoint = tmp_path / "state.ckpt"
    trainer.save_checkpoint(checkpoint)
    others = parts()
    fit(3, *others, path=checkpoint)
    assert [row["step"] for row in others[1].probes] == [*probed, 10, 12]
    assert [row["zeta"] for row in others[2].rows[:8]] == [row["zeta"] for row in meter.rows]
    assert len(others[2].rows) == 12
