"""How good is the kernel of a network without training it? Regression on the digits, accuracy."""

import catapult_ext as cx

data = cx.data.digits(8, train=400, test=200)
model = cx.models.fully_connected(64, 10, width=256, depth=2)
kernel = cx.NTK(model, data.x_train).dense(outputs="trace") / 10
across = cx.NTK(model, data.x_test, data.x_train).dense(outputs="trace") / 10
ridge = 1e-3 * kernel.diagonal().mean().item()
factor = cx.cholesky(kernel, shift=ridge)
guess = across @ factor.solve(data.y_train).x
accuracy = (guess.argmax(1) == data.y_test.argmax(1)).double().mean()
print(f"accuracy on {len(guess)} test images: {accuracy:.1%}")
print(cx.leave_one_out(factor, data.y_train))
top = cx.eigsh(kernel, k=20)
top.plot("kernel_spectrum.png")
