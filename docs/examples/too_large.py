"""Is my learning rate too large? A ConvNet with batch norm and dropout, Adam, a DataLoader."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import catapult_ext as cx

torch.manual_seed(0)
data = cx.data.digits(8, train=256, flatten=False)
loader = DataLoader(TensorDataset(*data.train), batch_size=64)
features = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1)]
model = nn.Sequential(*features, nn.Linear(288, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
window = cx.learning_rate_window(
    model, "cross_entropy", loader, optimizer, burn_in=10, dropout="fixed"
)
print(window.advice())
window.plot("too_large.png")
