"""Runs submissions as jobs of a Slurm cluster."""

from rampd_slurm.worker import SlurmAllocation, SlurmConfig, SlurmWorker

__all__ = ["SlurmAllocation", "SlurmConfig", "SlurmWorker"]
