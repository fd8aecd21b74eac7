"""The meter: how busy a run's machines are, and the energy that the run takes. Docs: docs/tracking.md.

A process on each machine samples beside the run and writes a file in system/ of the run folder (contract 5: files first).
MLflow's "System metrics" and every figure of energy, CO2 and cost derive from these files.

records.py   the files in system/           sampler.py   the process that writes one
host.py      CPU, memory, disk, network     process.py   starts and ends that process beside a rank
nvidia.py    GPUs, by NVML                  joules.py    energy from counters that go round, and from power
rapl.py      the CPUs' energy counters      usage.py     a run's energy, CO2 and cost, from its files
costs.py     the config section `tracking.costs`
"""
