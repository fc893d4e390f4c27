"""A cluster on one machine: hosts with names and links of a set rate, for tests and benchmarks of real MPI jobs.

Each host is a network namespace with a hostname of its own; a switch joins them. Open MPI uses TCP between them, as it
would between machines. The hosts share this machine's cores, memory and files. Needs Linux, root and iproute2.
"""

from hpcdml.emulation.cluster import Cluster
from hpcdml.emulation.jobs import FULL_DUPLEX, JobHangs
from hpcdml.emulation.network import HostState
from hpcdml.emulation.rates import parse_rate
from hpcdml.emulation.tools import check_machine

__all__ = ["FULL_DUPLEX", "Cluster", "HostState", "JobHangs", "check_machine", "parse_rate"]
