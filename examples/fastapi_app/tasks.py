"""Tasks of the application: `tasklib worker tasks`."""

import asyncio

import tasklib


@tasklib.task(max_retries=5, timeout_seconds=30)
async def send_email(to: str, subject: str) -> str:
    """Pretend to talk to a mail server."""
    await asyncio.sleep(0.01)
    return f"sent to {to}: {subject}"
