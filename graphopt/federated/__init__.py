"""Federated training: clients train a graph on data that stays with them, a server joins them.

What a client does in a round, `SessionClient` and `OnDeviceClient`, and what the server does with
what comes back, `FederatedServer`, with arrays by name; what carries them from one to the other is
up to the user. `graphopt.federated.flower` is for Flower, which alone needs that package.
"""

from graphopt.federated.client import Client, Trained
from graphopt.federated.on_device import OnDeviceClient
from graphopt.federated.server import FederatedServer
from graphopt.federated.session import SessionClient
from graphopt.federated.updates import ClientUpdate, weighted_mean

__all__ = [
    "Client",
    "ClientUpdate",
    "FederatedServer",
    "OnDeviceClient",
    "SessionClient",
    "Trained",
    "weighted_mean",
]
