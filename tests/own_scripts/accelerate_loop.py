"""A loop of the user's own under Accelerate, which knows its batch from the loader."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from small_data import Samples, llama, padded

plugin = DeepSpeedPlugin(zero_stage=1, gradient_accumulation_steps=4, gradient_clipping=1.0)
accelerator = Accelerator(deepspeed_plugin=plugin)
model = llama()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = torch.utils.data.DataLoader(Samples(), batch_size=2, shuffle=True, collate_fn=padded)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
