"""The tasks of the example worker in compose.yaml."""

from tasklib import task


@task(name="greet")
def greet(name: str) -> str:
    """Answer with a greeting, to be seen as the task's result."""
    return f"Hello, {name}"
