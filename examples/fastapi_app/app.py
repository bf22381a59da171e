"""An application that enqueues tasks and tells how they went: `uvicorn app:app`."""

from typing import Any
from uuid import UUID

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from tasks import send_email

import tasklib

app = FastAPI()


class Email(BaseModel):
    """What is posted."""

    to: str
    subject: str


class TaskStatus(BaseModel):
    """What clients may know of a task."""

    id: UUID
    state: str
    is_terminal: bool
    result: Any = None
    error: str | None = None


@app.post("/send-email", status_code=202)
async def post_email(email: Email) -> dict[str, UUID]:
    """Enqueue; the answer does not wait for the mail."""
    return {"task_id": await send_email.adelay(to=email.to, subject=email.subject)}


@app.get("/task/{task_id}")
async def get_task(task_id: UUID) -> TaskStatus:
    """Tell how a task went; its traceback is nobody's business out there."""
    task = await tasklib.aget_task(task_id)
    if task is None:
        raise HTTPException(404, "no such task")
    value = task.result["value"] if isinstance(task.result, dict) else None
    return TaskStatus(
        id=task.id,
        state=task.state,
        is_terminal=task.is_terminal,
        result=value,
        error=task.error.splitlines()[-1] if task.error else None,
    )
