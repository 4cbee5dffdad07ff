"""The loop on a network small enough to check by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hello_nas
from utils.errors import UserError
from utils.training.optimize import Ema, Flat, Schedule, build_optimizer, weight_groups
from utils.training.precision import choose_precision, make_fabric
from utils.training.settings import TrainSettings
from utils.training.train import TrainingFailed, train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Toy(nn.Module):
    """Predicts the mean brightness of an image; `noisy` draws from torch's generator as dropout does."""

    def __init__(self, norm: bool = True, noisy: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.2 if noisy else 0.0)
        self.head = nn.Linear(4, 1)

    def loss(self, batch: dict) -> dict[str, Tensor]:
        x = self.bn(self.conv(batch["img"])).relu().mean((2, 3))
        error = self.head(self.dropout(x)).squeeze(1) - batch["img"].mean((1, 2, 3))
        return {"fit": error.square().mean(), "size": 1e-3 * self.head.weight.square().sum()}


class Images(Dataset):
    """`n` random images in an order and with a brightness that depend on (seed, epoch) only."""

    def __init__(self, n: int = 12, labels: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels, self.epoch = labels, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch))
        return {"img": self.images[order[i]], "cls": torch.zeros(1 if self.labels else 0, 1)}


def loader(batch: int = 4, **options) -> DataLoader:
    def collate(samples: list[dict]) -> dict:
        return {
            "img": torch.stack([s["img"] for s in samples]),
            "cls": torch.cat([s["cls"] for s in samples]),
        }

    return DataLoader(Images(**options), batch_size=batch, collate_fn=collate)


def settings(**changes) -> TrainSettings:
    return TrainSettings(**{"epochs": 3, "batch": 4, "checkpoint_seconds": 0, **changes})


def weights(net: nn.Module) -> Tensor:
    return torch.cat([v.flatten().double() for v in net.state_dict().values()])


# ---------------------------------------------------------------- schedule


def test_linear_schedule_by_hand():
    plan = Schedule(settings(epochs=11, lr=1.0, lr_final=0.1, warmup_epochs=2, warmup_bias_lr=0.5), 1)
    assert (plan.steps, plan.warmup) == (11, 2)
    # 1 - 0.9 * n / 10, times n / 2 in the first two steps
    assert [plan.lr(n) for n in range(4)] == pytest.approx([0.0, 0.91 / 2, 0.82, 0.73])
    assert [plan.lr(n, bias=True) for n in range(3)] == pytest.approx([0.5, 0.5 + (0.91 - 0.5) / 2, 0.82])
    assert plan.lr(10) == 0.1


def test_cosine_schedule_by_hand():
    plan = Schedule(settings(epochs=5, lr=2.0, lr_final=0.0, warmup_epochs=0, schedule="cosine"), 1)
    half = math.sqrt(0.5)
    assert [plan.lr(n) for n in range(5)] == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_last_step_runs_at_exactly_lr_times_lr_final(kind, epochs):
    s = settings(epochs=epochs, lr=0.006, lr_final=0.01, schedule=kind)
    plan = Schedule(s, steps_per_epoch=13)
    assert plan.lr(plan.steps - 1) == 0.006 * 0.01
    assert plan.lr(plan.steps - 1, bias=True) == 0.006 * 0.01


def test_warm_up_leaves_half_of_a_short_run():
    assert Schedule(settings(epochs=1, warmup_epochs=3), 10).warmup == 5


def test_a_floor_makes_the_ending_constant():
    plan = Schedule(settings(epochs=11, lr=2.0, lr_final=0.0, lr_floor=0.25, warmup_epochs=0), 1)
    assert [plan.lr(n) for n in (0, 5, 7, 8, 10)] == pytest.approx([2.0, 1.0, 0.6, 0.5, 0.5])


def test_last_row_tells_the_last_rate():
    rows = train(Toy(), loader(), settings=settings(lr=0.02, lr_final=0.25)).curve
    assert rows[-1]["lr"] == 0.005


# ---------------------------------------------------------------- optimizer and average


def test_only_weights_with_two_dimensions_decay():
    net = Toy()
    ids = {name: [id(t) for t in group] for name, group in weight_groups(net).items()}
    assert ids == {
        "decayed": [id(net.conv.weight), id(net.head.weight)],
        "others": [id(net.bn.weight)],
        "biases": [id(net.conv.bias), id(net.bn.bias), id(net.head.bias)],
        "buffers": [id(net.bn.running_mean), id(net.bn.running_var)],
    }
    net.inherited = {"conv.bias", "conv.weight"}  # it has nothing to unlearn
    found = {name: [id(t) for t in group] for name, group in weight_groups(net).items()}
    assert found == ids | {
        "others": [id(net.conv.bias), id(net.bn.weight)],
        "biases": [id(net.bn.bias), id(net.head.bias)],
    }
    net.inherited = frozenset()
    net.head.weight.no_decay = True
    assert id(net.head.weight) in map(id, weight_groups(net)["others"])
    del net.head.weight.no_decay
    groups = build_optimizer(Flat(net), settings(weight_decay=0.1)).param_groups
    assert [(g["weight_decay"], g["bias"], g["params"][0].numel()) for g in groups] == [
        (0.1, False, 4 * 27 + 4),
        (0.0, False, 4),
        (0.0, True, 4 + 4 + 1),
    ]


def test_frozen_weights_are_left_out():
    net = Toy()
    net.conv.requires_grad_(False)
    before = net.conv.weight.clone()
    train(net, loader(), settings=settings(optimizer="SGD"))
    assert torch.equal(net.conv.weight, before)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_flat_weights_take_the_steps_that_single_ones_would(optimizer):
    plain, net = (Toy().to(memory_format=torch.channels_last) for _ in range(2))  # type: ignore[call-overload]
    flat = Flat(net)
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)
    s = settings(optimizer=optimizer, weight_decay=0.1)
    single = [{"params": p, "weight_decay": 0.1 * (p.dim() > 1)} for p in plain.parameters()]
    stock = (
        torch.optim.AdamW(single, s.lr)
        if optimizer == "AdamW"
        else torch.optim.SGD(single, s.lr, momentum=0.9, nesterov=True)
    )
    for step in (stock, build_optimizer(flat, s)):
        for batch in loader():
            loss = (plain if step is stock else net).loss({"img": batch["img"].float() / 255})
            (loss["fit"] + loss["size"]).backward()
            step.step()
            step.zero_grad(set_to_none=step is stock)
    torch.testing.assert_close(weights(net), weights(plain), rtol=1e-5, atol=1e-7)
    flat.release()
    assert net.conv.weight.untyped_storage().nbytes() == 4 * net.conv.weight.numel()


def test_ema_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = Ema(net, Flat(net), decay=0.5, tau=2.0)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0]):
        nn.init.constant_(net.weight, value)
        ema.update(step)
        d = 0.5 * (1 - math.exp(-(step + 1) / 2))
        expected = d * expected + (1 - d) * value
        assert ema.detector.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_ema_averages_the_statistics_and_copies_the_counter():
    net = nn.BatchNorm2d(2)
    ema = Ema(net, Flat(net), decay=0.5, tau=1e-9)
    net(torch.ones(4, 2, 3, 3) * 10)  # running_mean 0 -> 1
    ema.update(0)
    assert ema.detector.state_dict()["running_mean"].tolist() == [0.5, 0.5]
    assert ema.detector.state_dict()["num_batches_tracked"] == 1


def test_ema_averages_each_weight_with_itself_whatever_it_is_marked():
    """Marks stay behind when a parameter is copied, and groups are in the order of marks."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[0].weight.no_decay = True
    ema = Ema(net, Flat(net), decay=0.0, tau=1.0)
    nn.init.constant_(net[0].weight, 1.0)
    nn.init.constant_(net[1].weight, 2.0)
    ema.update(0)
    assert [p.unique().tolist() for p in ema.detector.parameters()] == [[1.0], [2.0]]


def test_result_holds_the_average_not_the_last_weights():
    net = Toy()
    result = train(net, loader(), settings=settings(ema_tau=5.0))
    assert not torch.equal(weights(net), weights(result.detector))
    assert not result.detector.training and net.training


def test_without_decay_the_average_is_the_weights():
    net = Toy()
    result = train(net, loader(), settings=settings(ema_decay=0.0))
    assert torch.equal(weights(net), weights(result.detector))


# ---------------------------------------------------------------- the loop


def test_it_learns_and_logs():
    seen: list[dict[str, float]] = []
    result = train(
        Toy(),
        loader(n=24),
        settings=settings(epochs=10, val_every=4, clip=0, lr=0.02),
        evaluate=lambda net, last: {"map50_95": 0.123456789, "map50_95/a": 0.5, "last": last},
        on_epoch=seen.append,
    )
    assert result.curve == seen and result.steps == 10 * 6
    assert [row["epoch"] for row in seen] == list(range(1, 11))
    assert seen[-1]["loss/fit"] < seen[0]["loss/fit"] / 10
    assert all(row["loss"] == pytest.approx(row["loss/fit"] + row["loss/size"]) for row in seen)
    assert [row["epoch"] for row in seen if "map50_95" in row] == [4, 8, 10]
    assert [row["last"] for row in seen if "last" in row] == [False, False, True]
    assert seen[-1]["map50_95"] == 0.123456789 and "map50_95/a" not in seen[-1]
    assert result.metrics == {"map50_95": 0.123456789, "map50_95/a": 0.5, "last": True}
    assert [row["seconds"] for row in seen] == sorted(row["seconds"] for row in seen)


def test_same_seed_same_weights():
    a, b = (train(Toy(noisy=True), loader(), settings=settings(), seed=s).detector for s in (3, 3))
    c = train(Toy(noisy=True), loader(), settings=settings(), seed=4).detector
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_accumulated_small_batches_equal_one_large(optimizer):
    """12 images: 4 batches of 3, two at a time, against 2 of 6. Without batch norm, which sees the batch."""
    options = {"optimizer": optimizer, "lr": 0.01, "warmup_epochs": 0, "clip": 0.1}
    small, large = Toy(norm=False), Toy(norm=False)
    a = train(small, loader(batch=3), settings=settings(accumulate=2, **options))
    b = train(large, loader(batch=6), settings=settings(**options))
    assert a.steps == b.steps == 6
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-6)


def test_a_shorter_last_window_is_a_mean_over_what_it_has():
    """Three batches in windows of two: the last step of an epoch is over one batch, not half of one."""
    net, by_hand = Toy(norm=False), Toy(norm=False)
    s = settings(
        epochs=1, optimizer="SGD", lr=0.1, lr_final=1.0, momentum=0, weight_decay=0, warmup_epochs=0, clip=0
    )
    result = train(net, loader(batch=4), settings=s.model_copy(update={"accumulate": 2}))
    assert result.steps == 2
    batches = [b["img"].float() / 255 for b in loader(batch=4)]
    for window in (batches[:2], batches[2:]):
        grads = [
            torch.autograd.grad([*by_hand.loss({"img": x}).values()], list(by_hand.parameters()))
            for x in window
        ]
        with torch.no_grad():
            for parameter, *parts in zip(by_hand.parameters(), *grads, strict=True):
                parameter -= 0.1 * sum(parts) / len(parts)
    torch.testing.assert_close(weights(net), weights(by_hand))


def test_bf16_trains_and_keeps_the_boxes_exact():
    class Spy(Toy):
        def loss(self, batch: dict) -> dict[str, Tensor]:
            assert batch["img"].dtype == torch.float32 and self.conv(batch["img"]).dtype == torch.bfloat16
            return super().loss(batch)

    net = Spy()
    train(net, loader(), settings=settings(precision="bf16"))
    assert net.conv.weight.dtype == torch.float32


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("batches", range(1, 51))
def test_an_epoch_may_have_any_number_of_batches(batches, accumulate):
    """The losses are looked at every 16 batches, and what is left of them at the end: which may be none."""
    data = loader(batch=1, n=batches)
    result = train(
        Toy(norm=False), data, settings=settings(epochs=1, accumulate=accumulate, lr=1e-9, warmup_epochs=0)
    )
    assert result.steps == math.ceil(batches / accumulate)
    net = Toy(norm=False)
    with torch.no_grad():
        losses = [net.loss({"img": batch["img"].float() / 255})["fit"].item() for batch in data]
    for row in result.curve:
        assert row["loss/fit"] == pytest.approx(sum(losses) / batches, rel=1e-4)


@pytest.mark.parametrize("batches", [16, 33])
def test_a_bad_loss_is_found_wherever_in_the_epoch_it_is(batches):
    class Bad(Toy):
        calls = bad = 0

        def loss(self, batch: dict) -> dict[str, Tensor]:
            self.calls += 1
            losses = super().loss(batch)
            return {**losses, "fit": losses["fit"] * math.nan} if self.calls == self.bad else losses

    for bad in {1, 16, min(17, batches), batches}:
        net = Bad(norm=False)
        net.bad = bad
        with pytest.raises(TrainingFailed, match=f"loss became nan at epoch 1, step {bad};"):
            train(net, loader(batch=1, n=batches), settings=settings(epochs=2))


def test_trials_supernets_retraining_and_rank_share_this_loop():
    """Nobody else steps an optimizer: not even in a comment, but for the docstring that shows how."""
    files = [p for room in ("utils", "models", "experiments") for p in (hello_nas.ROOT / room).rglob("*.py")]
    ours = [p for p in files if not {"benchmarks", "examples"} & set(p.parts)]
    stepping = {p.name for p in ours if "optimizer.step()" in p.read_text()}
    assert stepping == {"train.py", "sandwich.py"}


# ---------------------------------------------------------------- checkpoint and resume


class Killed(Exception):
    pass


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path):
    options: dict[str, Any] = {
        "settings": settings(epochs=5),
        "seed": 7,
        "evaluate": lambda net, last: {"m": weights(net).sum().item()},
    }
    whole_net = Toy(noisy=True)
    whole = train(whole_net, loader(), **options)

    def kill(row: dict) -> None:
        if row["epoch"] == 3:
            raise Killed

    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        train(Toy(noisy=True), loader(), checkpoint=file, on_epoch=kill, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    net = Toy(noisy=True)
    seen: list[dict[str, float]] = []
    rest = train(net, loader(), checkpoint=file, on_epoch=seen.append, **options)

    assert [row["epoch"] for row in seen] == [4, 5]
    assert torch.equal(weights(net), weights(whole_net))
    assert torch.equal(weights(rest.detector), weights(whole.detector))
    assert rest.steps == whole.steps and rest.metrics == whole.metrics
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.curve] for r in (rest, whole)
    ]
    assert without_time[0] == without_time[1]
    assert rest.curve[-1]["seconds"] > rest.curve[0]["seconds"]


def test_checkpoint_of_another_training_is_refused(tmp_path: Path):
    file = tmp_path / "checkpoint.pt"
    train(Toy(), loader(), settings=settings(lr=0.01), checkpoint=file)
    with pytest.raises(UserError, match="lr was 0.01, now it is 0.02"):
        train(Toy(), loader(), settings=settings(lr=0.02), checkpoint=file)


def test_a_torn_checkpoint_is_a_user_error(tmp_path: Path):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="checkpoint.pt"):
        train(Toy(), loader(), settings=settings(), checkpoint=file)


def test_nothing_is_written_without_a_checkpoint(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Toy(), loader(), settings=settings(epochs=1))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_no_number_fails_with_its_place(value, word):
    class Bad(Toy):
        calls = 0

        def loss(self, batch: dict) -> dict[str, Tensor]:
            self.calls += 1
            losses = super().loss(batch)
            return {**losses, "fit": losses["fit"] * value} if self.calls == 5 else losses

    with pytest.raises(TrainingFailed, match=f"loss became {word} at epoch 2, step 2;"):
        train(Bad(), loader(), settings=settings())


def test_no_labels_at_all_fail():
    with pytest.raises(TrainingFailed, match="not one label"):
        train(Toy(), loader(labels=False), settings=settings())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_try(error):
    class Huge(Toy):
        def loss(self, batch: dict) -> dict[str, Tensor]:
            raise error

    with pytest.raises(TrainingFailed, match="out of memory with train.batch=4; try train.batch=2"):
        train(Huge(), loader(), settings=settings())


def test_other_errors_pass():
    class Broken(Toy):
        def loss(self, batch: dict) -> dict[str, Tensor]:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(Broken(), loader(), settings=settings())


def test_fp16_on_cpu_is_a_user_error():
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        make_fabric(torch.device("cpu"), "fp16")


def test_auto_takes_bf16_where_it_pays(monkeypatch):
    """2 million parameters at 64 px, or as much work by a larger image; never without the hardware."""
    net, cpu = nn.Linear(1000, 999), torch.device("cpu")  # 1.0 M
    monkeypatch.setattr("utils.training.precision.has_bf16", lambda device: True)
    assert [choose_precision("auto", cpu, net, size) for size in (64, 90, 96)] == ["fp32", "fp32", "bf16"]
    assert choose_precision("fp32", cpu, net, 640) == "fp32"
    monkeypatch.setattr("utils.training.precision.has_bf16", lambda device: False)
    assert choose_precision("auto", cpu, net, 640) == "fp32"
    assert choose_precision("bf16", cpu, net, 64) == "bf16"


def test_settings_are_strict():
    for wrong in ({"epochs": 0}, {"lr": -1}, {"optimizer": "Adamw"}, {"epoch": 3}, {"lr": math.nan}):
        with pytest.raises(ValueError):
            TrainSettings(**wrong)


# ---------------------------------------------------------------- several devices


def _train_on(fabric, file: str) -> None:
    net = Toy(norm=False)
    s = settings(epochs=2, optimizer="SGD", lr=0.1, warmup_epochs=0, batch=3)
    train(net, loader(batch=3), settings=s, fabric=fabric)
    if fabric.is_global_zero:
        torch.save(copy.deepcopy(net).state_dict(), file)


@pytest.mark.slow
def test_two_devices_equal_one_with_twice_the_batch(tmp_path: Path):
    file = tmp_path / "weights.pt"
    fabric = make_fabric(torch.device("cpu"), "fp32", devices=2, strategy="ddp_spawn")
    fabric.launch(_train_on, str(file))  # type: ignore[arg-type]
    one = Toy(norm=False)
    train(
        one, loader(batch=6), settings=settings(epochs=2, optimizer="SGD", lr=0.1, warmup_epochs=0, batch=6)
    )
    two = Toy(norm=False)
    two.load_state_dict(torch.load(file))
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-6)


# Parts ------------------------------------------------------------------------------------------------------


class Parted(Toy):
    """Its convolution and norm are the backbone."""

    def parameter_parts(self) -> dict[str, list[nn.Parameter]]:
        body = [*self.conv.parameters(), *self.bn.parameters()]
        return {"backbone": body, "head": [*self.head.parameters()]}


def test_a_frozen_part_is_what_it_was_and_the_rest_learns():
    toy = Parted()
    before = copy.deepcopy(toy.state_dict())
    settings = TrainSettings(epochs=2, batch=4, freeze=["backbone"])
    after = train(toy, DataLoader(Images(), 4), settings=settings, progress=False).detector.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (not name.startswith("head")), name


def test_the_backbone_may_have_a_learning_rate_of_its_own():
    toy = Parted()
    settings = TrainSettings(lr=0.01, backbone_lr=0.001, warmup_epochs=0, lr_final=1.0)
    parts = frozenset(n for n, _ in toy.named_parameters() if not n.startswith("head"))
    flat = Flat(toy, parts)
    assert {k: len(v) for k, v in flat.groups.items()} == {
        **{"decayed": 1, "others": 0, "biases": 1},  # the head
        **{"decayed apart": 1, "others apart": 1, "biases apart": 2},
        "buffers": 2,
    }
    optimizer = build_optimizer(flat, settings)
    assert Schedule(settings, 10).apply(optimizer, 5) == 0.01
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01] * 2 + [0.001] * 3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0, 5e-4, 0, 0]
    moved = {}
    for lr in (0.006, 1e-9):
        toy = Parted()
        before = copy.deepcopy(toy.state_dict())
        settings = TrainSettings(epochs=1, batch=4, backbone_lr=lr, ema_decay=0.0)
        after = train(toy, DataLoader(Images(), 4), settings=settings, progress=False).detector.state_dict()
        moved[lr] = {k: (after[k] - v).abs().max().item() for k, v in before.items() if v.is_floating_point()}
    assert moved[1e-9]["conv.weight"] < 1e-7 < moved[0.006]["conv.weight"]
    assert min(moved[1e-9]["head.weight"], moved[0.006]["head.weight"]) > 1e-4


def test_parts_that_are_not_there_are_one_line():
    loader = DataLoader(Images(), 4)
    with pytest.raises(ValueError, match="unknown part 'bckbone'; did you mean 'backbone'"):
        TrainSettings(freeze=["bckbone"])
    with pytest.raises(UserError, match="unknown part of Parted 'neck'; .*backbone.*head"):
        train(Parted(), loader, settings=TrainSettings(freeze=["neck"]), progress=False)
    with pytest.raises(UserError, match="is all of Parted: nothing would learn"):
        train(Parted(), loader, settings=TrainSettings(freeze=["backbone", "head"]), progress=False)
    with pytest.raises(UserError, match="unknown part of Toy 'backbone'"):
        train(Toy(), loader, settings=TrainSettings(backbone_lr=0.1), progress=False)


def test_settings_that_are_not_used_are_not_written_down():
    """A checkpoint, and a run folder, of before they were there go on."""
    assert {"freeze", "backbone_lr"}.isdisjoint(TrainSettings().model_dump())
    said = TrainSettings(freeze=["neck"], backbone_lr=0.1).model_dump()
    assert (said["freeze"], said["backbone_lr"]) == (["neck"], 0.1)
    assert TrainSettings.model_validate(said).freeze == ["neck"]
