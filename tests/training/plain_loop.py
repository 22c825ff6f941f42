from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import xtoken_align
from xtoken_align.losses import XTokenLoss

student = AutoModelForCausalLM.from_pretrained("student")
teacher = AutoModelForCausalLM.from_pretrained("teacher").eval()

loss_fn = XTokenLoss(xtoken_align.get_or_build(student="student", teacher="teacher"))
collate = xtoken_align.SpanCollator(student="student", teacher="teacher", max_student_tokens=64, max_teacher_tokens=64)
rows = [{"text": line} for line in Path("corpus.txt").read_text().splitlines()]
loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
loss_fn.follow(optimizer)  # for scale="dynamic"


def logits(model, batch, side):
    return model(batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits


for batch in loader:
    with torch.no_grad():
        wanted = logits(teacher, batch, "teacher")
    out = loss_fn(logits(student, batch, "student"), wanted, batch["spans"], labels=batch["labels"])
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
