"""A discrete-event simulator with a virtual clock that drives the very state machines that a real run drives."""

from hpcdml.simulation.cluster import Cluster, Network, Report

__all__ = ["Cluster", "Network", "Report"]
