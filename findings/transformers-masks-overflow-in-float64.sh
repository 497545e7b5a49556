#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: two text models cannot run in float64.
#
# They build an additive attention mask in float32 from the smallest number of the scores' dtype.  In
# float64 that number does not fit: CANINE's mask becomes 0 * -inf = NaN, so that every logit is NaN
# without an error, while XGLM raises "value cannot be converted to type float without overflow".
# Both run in float32.  Whoever checks derivatives in float64 meets this.
# Seen: canine float32 finite, float64 all NaN; xglm float32 finite, float64 RuntimeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' 'transformers==5.24.0' numpy
"$folder/venv/bin/python" - <<'PY'
import torch
import transformers as tf

tf.logging.set_verbosity_error()
small = dict(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    d_model=8, num_layers=2, attention_heads=2, ffn_dim=12, max_position_embeddings=16,
    attn_implementation="eager",
)
ids = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(0))
calls = {
    "canine": (tf.CanineForSequenceClassification, tf.CanineConfig, lambda m: m(input_ids=ids).logits),
    "xglm": (tf.XGLMForCausalLM, tf.XGLMConfig, lambda m: m(input_ids=ids).logits),
}
seen = {}
for name, (model, config, call) in calls.items():
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        net = model(config(**small)).eval().to(dtype)
        assert all(p.isfinite().all() for p in net.parameters())
        try:
            with torch.no_grad():
                out = call(net)
            seen[name, dtype] = "finite" if out.isfinite().all() else (
                "all NaN" if out.isnan().all() else "some not finite")
        except RuntimeError as error:
            seen[name, dtype] = str(error)
        print(name, dtype, seen[name, dtype])
overflow = "value cannot be converted to type float without overflow"
assert seen == {
    ("canine", torch.float32): "finite", ("canine", torch.float64): "all NaN",
    ("xglm", torch.float32): "finite", ("xglm", torch.float64): overflow,
}, seen
PY
echo "as described"
