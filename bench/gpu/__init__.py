"""Checks this project on one NVIDIA GPU, in stages by value; one that fails or runs out of time does not stop the next.

    python -m bench.gpu --out build/gpu                                  every stage, on this machine
    python -m bench.gpu --out OUT --stages step,ranks --budget 330       some of them, in at most 330 s
    python -m bench.gpu --out build/gpu --dry-run                        on a CPU, tiny sizes: whether the check itself holds
    python -m bench.gpu --report A/results.jsonl B/results.jsonl         the tables of several calls together,
                                                                         and OUT/rates.yaml for the plan of launch/slurm.py

OUT/results.jsonl gets a line at every measurement, so that a stage that is stopped keeps what it had. OUT/log.txt has all
output, OUT/summary.txt a line for each measurement, OUT/table.md tables for docs/performance.md. Files of an earlier call in
OUT are replaced. The exit code is 1 where a part failed.

A machine without network needs no installation: start it in the repository's root, with the packages that are not there in a
folder of PYTHONPATH. Stages step, compiling and deep need torch, torchvision, numpy and rich alone, ranks also PyYAML; the
others also DALI, webdataset, jsonargparse and pydantic (`environment` names what is missing). The 140 sample images are read
from ../shared/data/imagenet-samples.tar, or from what --images names. CONTRIBUTING.md (On a GPU) has two calls that fit into
900 s of such a machine.

    check.py     what a stage knows, and its parts         runner.py   stages as child processes with limits
    child.py     the process of one stage                  registry.py the stages, their limits and order
    stages/      a file for each stage                     report.py   summary and tables; claims.py the table of claims
    rates.py     what the plan reads
    folders.py   the datasets that stages need             nets.py     ways to train, and how they are timed
"""
