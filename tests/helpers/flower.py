"""Flower in one process: what its simulation does, without its processes."""

import random

import numpy as np
from flwr import app

try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # older ones need none
    TaskIdentity = None


class OneProcess:
    """A grid whose nodes are contexts of this process; a strategy asks no more of it.

    It has what was sent to be trained last, and the replies.
    """

    def __init__(self, client_app, nodes, failing=()):
        if TaskIdentity is not None:
            TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self._app, self._failing = client_app, failing
        self.contexts = {
            node: app.Context(1, node, {"partition-id": node}, app.RecordDict(), {})
            for node in range(nodes)
        }
        self.sent, self.replies = [], []

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):  # noqa: ARG002 - Flower's
        sent = list(messages)
        replies = [self._reply(message, message.metadata.dst_node_id) for message in sent]
        if any(message.metadata.message_type == "train" for message in sent):
            self.sent, self.replies = sent, replies
        return replies

    def _reply(self, message, node):
        if node in self._failing:
            return app.Message(app.Error(code=0, reason="out of battery"), reply_to=message)
        return self._app(message, self.contexts[node])


def seeded(function, *arguments, **settings):
    """With nodes sampled always alike: Flower takes Python's own random numbers."""
    before = random.getstate()
    random.seed(0)
    try:
        return function(*arguments, **settings)
    finally:
        random.setstate(before)


def replaced(app_, node, values=None, examples=None):
    """The same, but that a node replies with other values, or another number of examples."""

    def reply(message, context):
        made = app_(message, context)
        if context.node_id == node and "arrays" in made.content:
            arrays = {n: array.numpy() for n, array in made.content["arrays"].items()}
            made.content["arrays"] = app.ArrayRecord(
                {n: app.Array(np.asarray(a)) for n, a in {**arrays, **(values or {})}.items()}
            )
            if examples is not None:
                made.content["metrics"]["num-examples"] = examples
        return made

    return reply
