import argparse
import math

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hpcdml


class Rings(Dataset):
    """Points on three noisy rings; which ring is it?"""

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, n)
        angle = rng.uniform(0, 2 * math.pi, n)
        radius = 1 + self.labels + rng.normal(0, 0.15, n)
        self.points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"point": self.points[i], "label": int(self.labels[i])}


def build_model(width):
    trunk = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.ModuleDict({"trunk": trunk, "head": nn.Linear(width, 3)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--max-lr", type=float, default=0.02)
    parser.add_argument("--clip", type=float, default=1.0)
    args = parser.parse_args()

    device = hpcdml.device()
    train_loader = DataLoader(Rings(4000, 0), batch_size=args.batch_size, shuffle=True, drop_last=True)
    valid_loader = DataLoader(Rings(1000, 1), batch_size=500)

    model = build_model(64).to(device)
    groups = [
        {"params": model["trunk"].parameters(), "weight_decay": 1e-4, "lr": args.max_lr},
        {"params": model["head"].parameters(), "weight_decay": 0.0, "lr": args.max_lr / 2},
    ]
    optimizer = torch.optim.AdamW(groups)
    session = hpcdml.Session(model, optimizer, policy="losp", output="runs/scheduled").start()
    train_loader = session.batches(train_loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[args.max_lr, args.max_lr / 2],
        total_steps=args.epochs * (len(train_loader) // args.accumulate),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

    for epoch in session.epochs(args.epochs):
        model.train()
        for step, batch in enumerate(train_loader):
            points, labels = batch["point"].to(device), batch["label"].to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model["head"](model["trunk"](points))
                loss = criterion(logits, labels) / args.accumulate
            scaler.scale(loss).backward()
            if (step + 1) % args.accumulate == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()

    model.eval()
    correct = total = 0
    with torch.no_grad():
        for batch in valid_loader:
            logits = model["head"](model["trunk"](batch["point"].to(device)))
            correct += (logits.argmax(1).cpu() == batch["label"]).sum().item()
            total += len(batch["label"])
    print(f"validation accuracy: {correct / total:.4f}")


if __name__ == "__main__":
    main()
