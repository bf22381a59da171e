"""An order and its task in one transaction: `python orders.py`, then `tasklib worker orders`."""

import os
from uuid import UUID

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import tasklib

URL = os.environ["TASKLIB_DATABASE_URL"]
engine = create_engine(URL.replace("postgresql://", "postgresql+psycopg://", 1))


class Base(DeclarativeBase):
    """The tables of this application."""


class Order(Base):
    """What was bought."""

    __tablename__ = "customer_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    receipt_sent: Mapped[bool] = mapped_column(default=False)


@tasklib.task
def send_receipt(order_id: int) -> str:
    """Send a receipt; the order is surely there, because it was committed with this task."""
    with Session(engine) as session, session.begin():
        order = session.get_one(Order, order_id)
        order.receipt_sent = True
        return order.email


def buy(email: str) -> UUID:
    """Store an order, and enqueue its receipt."""
    with Session(engine) as session, session.begin():
        order = Order(email=email)
        session.add(order)
        session.flush()  # the database gives the order its id
        task_id = send_receipt.options(connection=session).delay(order.id)
        if "@" not in email:
            raise ValueError(f"{email!r} is no address: neither order nor task is stored")
    return task_id


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    print("enqueued", buy("ada@example.org"))
    try:
        buy("nobody")
    except ValueError as error:
        print(error)
