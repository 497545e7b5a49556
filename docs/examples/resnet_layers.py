"""Where is a ResNet curved? Its top 20 eigenvalues, their density, and every layer's share."""

import torch

import catapult_ext as cx

torch.manual_seed(0)
data = cx.data.digits(8, train=32, flatten=False)
model = cx.models.resnet(8, 10, width=0.25, in_channels=1)
for _ in range(20):
    model(data.x_train)  # running statistics
model.eval()
hessian = cx.Hessian(model, "cross_entropy", data.train)
values, vectors = cx.eigsh(hessian, k=20, tol=3e-2)
top = hessian.by_name(vectors[:, 0])  # tensors of the parameters' shapes
print(values, max(top, key=lambda name: top[name].norm()))
cx.spectral_density(hessian, steps=20, samples=2).plot("resnet_density.png")
layers = cx.by_layer(model, "cross_entropy", data.train, k=2)
print(layers)
layers.plot("resnet_layers.png")
torch.save(layers, "layers.pt")
