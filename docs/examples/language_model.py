"""The top curvature of a transformer along training with the Trainer, logged with its loss."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import catapult_ext as cx
from catapult_ext.probes.integrations.transformers import trainer_callback

torch.manual_seed(0)
config = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2)
config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
model = GPT2LMHeadModel(config)
start = torch.randint(32, (64, 1))
tokens = (start + torch.arange(16) * (1 + start % 3)) % 32
rows = [{"input_ids": row, "labels": row} for row in tokens]
batch = {"input_ids": tokens[:16], "labels": tokens[:16]}
tracker = cx.CurvatureTracker(model, None, batch, quantity="hessian", every=4)
settings = TrainingArguments("lm", max_steps=24, learning_rate=3e-3, use_cpu=True, logging_steps=4)
trainer = Trainer(model, settings, train_dataset=rows, callbacks=[trainer_callback(tracker)])
trainer.train()
name = "curvature/lambda_1"
print([row[name] for row in trainer.state.log_history if name in row])
tracker.plot("language_model.png")
