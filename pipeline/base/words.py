"""What the field's own words mean here: torchvision's references, timm, Lightning, Hugging Face and SLURM have other options.

ALIASES are words with exactly the meaning and the values of an option here: typing them is typing that option. All other
words get an answer in place of an error that suggests what is merely spelt alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass

# Of a config's key, or of --epochs. Not --batch-size: that is one GPU's share elsewhere, and --batch is the whole mini-batch.
ALIASES = {
    "--lr": "--optimizer.lr",
    "--momentum": "--optimizer.momentum",
    "--wd": "--optimizer.weight_decay",
    "--weight-decay": "--optimizer.weight_decay",
    "--weight_decay": "--optimizer.weight_decay",
    "--model": "--arch",
    "--max-epochs": "--epochs",
    "--num-epochs": "--epochs",
    "--num-train-epochs": "--epochs",
}

# Values of an option that other tools have, and what they are here.
_HALF = "16-bit arithmetic is --precision bf16 here, with float32 weights"
VALUES = {
    "--precision": {
        **dict.fromkeys(("16", "fp16", "float16", "half", "16-mixed", "bf16-mixed", "bfloat16", "bf16-true"), _HALF),
        **dict.fromkeys(("32", "fp32", "32-true", "tf32", "float"), "32-bit arithmetic is --precision float32 here"),
    },
    "--device": dict.fromkeys(
        ("gpu", "cuda:0", "0", "cuda:1", "1"), "a GPU is --device cuda here; CUDA_VISIBLE_DEVICES chooses which"
    ),
    "--loss": {
        **dict.fromkeys(
            ("bce", "bce-loss", "bceloss", "bcewithlogits", "bcewithlogitsloss", "binary_cross_entropy", "sigmoid"),
            "it is --loss binary-cross-entropy here",
        ),
        **dict.fromkeys(
            ("ce", "cross_entropy", "crossentropy", "crossentropyloss", "softmax", "nll"),
            "it is --loss cross-entropy here",
        ),
    },
}

# Sections of the config, given as options, that mean something else elsewhere.
SECTIONS = {"checkpoint": "to start from its weights, give --init PATH"}

_NET = r"(?P<net>resnet(?:18|34|50|101|152))"
_OF_TORCHVISION = (  # ResNet50_Weights.IMAGENET1K_V2, and without torchvision's prefix: resnet50, resnet50/IMAGENET1K_V2
    re.compile(rf"(?:torchvision\.models\.)?{_NET}_weights(?:\.(?P<version>\w+))?", re.IGNORECASE),
    re.compile(rf"(?:torchvision[./])?{_NET}(?:/(?P<version>\w+))?", re.IGNORECASE),
)
_OF_A_HUB = re.compile(r"(?:timm:|timm/|hf[-_]hub:|hf:|huggingface:|https?:)", re.IGNORECASE)


def weights_meaning(name: str, preprocessing: str) -> str | None:
    """What is to be said of weights that `name` names as other tools do; None where nothing is known of it.

    preprocessing: the option that says how the origin of a file of weights prepares its images.
    """
    if ours := _of_torchvision(name):
        return f"torchvision's weights have the name {ours} here"
    if _OF_A_HUB.match(name):
        return f"nothing is fetched from there: download the file (.safetensors, .pth), and give it with {preprocessing} timm"
    return None


@dataclass(frozen=True)
class Meaning:
    """What `words` mean in a command that has the options `needs`.

    text: the rest of a sentence that begins with the word; `{value}` stands for the word behind it, or for `value`. Or a
    function of that word ("" where there was none).
    """

    words: str
    needs: str
    text: str | Callable[[str], str]
    value: str = "N"


def meaning(word: str, value: str, options: Container[str]) -> str | None:
    """A sentence on what `word` means in a command that has these options; None where nothing is known of it.

    word: as typed, such as --lr or -j. value: the word behind it, or behind its `=`; "" where there is none.
    """
    name = word if re.fullmatch("-[A-Za-z]", word) else word.lower().replace("_", "-")
    for one in MEANINGS:
        if name in one.words.split() and all(need in options for need in one.needs.split()):
            text = one.text(value) if callable(one.text) else one.text.replace("{value}", value or one.value)
            return f"{word} {text}"
    return None


def value_meaning(option: str, value: str) -> str | None:
    """A sentence on a value that an option does not take, but other tools do; None where nothing is known of it."""
    return VALUES.get(option, {}).get(value.lower())


def _of_torchvision(name: str) -> str | None:
    """Weights in torchvision's own words as they are named here: torchvision:resnet50/IMAGENET1K_V2; None for other names."""
    for pattern in _OF_TORCHVISION:
        if found := pattern.fullmatch(name):
            version = (found["version"] or "DEFAULT").upper()
            return f"torchvision:{found['net'].lower()}{'' if version == 'DEFAULT' else f'/{version}'}"
    return None


def _start(value: str) -> str:
    if ours := _of_torchvision(value):
        return f"is --init here: --init {ours}"
    return "is --init here: --init runs/NAME, --init torchvision:NET, or --init FILE with --init-preprocessing"


def _schedule(value: str) -> str:
    kinds = {"cos": "cosine", "step": "steps", "multistep": "steps", "plateau": "plateau", "reduce": "plateau"}
    kind = next((kind for start, kind in kinds.items() if value.lower().startswith(start)), None)
    return f"is --schedule.kind here: --schedule.kind {kind or 'plateau|steps|cosine'}"


def _memory(value: str) -> str:
    """SLURM's memory (a number of MB, or with K, M, G, T) in GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", value.strip(), re.IGNORECASE)
    if not found:
        return "is --mem-gb here, a number of GB of each node"
    size = float(found[1]) * {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}[found[2].upper() or "M"]
    return f"is --mem-gb here, in GB: --mem-gb {size:g}"


# The options by which a command is known.
TRAINING, LAUNCHER = "--iterations", "--evaluate"
LOCAL, SLURM, RAY = "--procs", "--partition", "--max-failures"
SLURM_TRAINING = f"{SLURM} {TRAINING}"
EVALUATION, PREPARATION, PREDICTION = "--weights-file", "--samples-per-shard", "--top"

_RANKS = "--gpus --devices --num-gpus --ngpus --n-gpu --world-size --nproc --nproc-per-node --num-processes"
_NODES = "--num-nodes --nnodes --num-machines"
_BY_ITSELF = (
    "--dist-url --dist-backend --rank --local-rank --distributed --ddp --strategy --multiprocessing-distributed"
)
_BATCH = "--batch-size -b --train-batch-size --per-device-train-batch-size --per-device-batch-size"
_THREADS = "--workers -j --num-workers --dataloader-num-workers --data-workers"
_AMP = "--amp --fp16 --bf16 --half --mixed-precision --native-amp --apex-amp --amp-dtype"
_DATA = "--data-path --data-dir --dataset --train-dir --root --train-data"

MEANINGS: tuple[Meaning, ...] = (
    # SLURM's own words first: in launch/slurm.py, which takes others, they mean what they mean to sbatch.
    Meaning("--gpus -G", SLURM, "counts a whole job's GPUs: here give --nodes N and --gpus-per-node N, whose product it is"),
    Meaning("--mem", SLURM, _memory),
    Meaning("--ntasks -n", SLURM, "follows here from --nodes times --gpus-per-node (or --tasks-per-node)"),
    Meaning("--job-name -J", TRAINING, "is --name here, of run and job: --name {value}", "NAME"),
    Meaning("--signal", SLURM, "is --signal-delay here, the seconds that a job gets for saving"),
    Meaning("--requeue --no-requeue", SLURM, "is not needed: a job requeues itself; --requeue-limit ends that after crashes"),
    Meaning("--output -o --error -e", SLURM_TRAINING, "is not needed: logs go into slurm/ of the run folder"),
    Meaning("--test-only", SLURM_TRAINING, "is --dry-run here; to test a trained net, give --evaluate RUN"),
    Meaning("--array -a", SLURM_TRAINING, "has no equal here: submit each run by its own command (another --seed, --arch)"),
    # Where to compute.
    Meaning(_RANKS, LOCAL, "is --procs here, one process per GPU: --procs {value}"),
    Meaning(_RANKS, SLURM, "is --nodes times --gpus-per-node here, one rank per GPU"),
    Meaning(_RANKS, RAY, "is --workers here, one per GPU: --workers {value}"),
    Meaning(_RANKS, TRAINING, "belongs to a launcher: python launch/local.py --procs {value}, or torchrun"),
    Meaning(_RANKS, EVALUATION, "belongs to a launcher: python launch/local.py --procs {value} --evaluate RUN"),
    Meaning(_NODES, SLURM, "is --nodes here: --nodes {value}"),
    Meaning(_NODES, TRAINING, "belongs to SLURM's launcher: python launch/slurm.py --nodes {value}"),
    Meaning(_BY_ITSELF, TRAINING, "is not needed: launchers start the ranks and connect them"),
    Meaning("--gpu --gpu-id --gpu-ids --device-ids", TRAINING, "is CUDA_VISIBLE_DEVICES={value} before the command"),
    Meaning("--accelerator --use-gpu --cuda", TRAINING, "is --device here: --device cuda, cpu, or auto"),
    Meaning("--cpu --no-cuda --use-cpu", TRAINING, "is --device here: --device cpu"),
    # How long, and in which pieces.
    Meaning("--max-steps --steps --num-steps --max-iters --max-iter", TRAINING, "is --iterations here: --iterations {value}"),
    Meaning("--min-epochs --start-epoch", TRAINING, "has no equal here: a run has its --iterations, and continues by itself"),
    Meaning(
        _BATCH, TRAINING,
        "is one GPU's share elsewhere; --batch counts the images of the whole mini-batch, over all ranks: {value} on each of R "
        "GPUs are --batch {value} x R",
    ),
    Meaning(
        "--accum --grad-accum-steps --gradient-accumulation-steps --accumulate-grad-batches --iter-size", TRAINING,
        "is not needed: --batch is the whole mini-batch, and a rank computes its part in pieces of --bn-group images",
    ),
    Meaning("--fast-dev-run --smoke --limit-train-batches", TRAINING, "is a short run here: --iterations 50 --name smoke"),
    Meaning(
        "--resume --auto-resume --resume-from-checkpoint --ckpt-path --ckpt --load --no-resume", TRAINING,
        "is not needed: a run continues by itself when its command is given again, with the same --runs and --name; "
        "--init RUN --name OTHER starts another run from its weights",
    ),
    Meaning(
        "--pretrained --weights --initial-checkpoint --finetune --fine-tune --init-from --checkpoint-path --load-weights "
        "--model-name-or-path --load-from --pretrained-weights", TRAINING, _start,
    ),
    Meaning(
        "--freeze --freeze-backbone --freeze-layers --linear-probe --freeze-encoder", TRAINING,
        "is --optimizer.body-lr-factor 0 here, with --freeze-bn true where batch normalization is to stand still too",
    ),
    Meaning(
        "--unfreeze-epoch --unfreeze-epochs --unfreeze-at --freeze-epochs", TRAINING,
        "has no equal here: --optimizer.body-lr-factor, which is 0 for a frozen body, holds for a whole run; another run goes "
        "on from its weights with --init RUN",
    ),
    Meaning("--freeze-norm --frozen-bn --freeze-batchnorm --freeze-bn-stats", TRAINING, "is --freeze-bn true here"),
    Meaning(
        "--layer-decay --backbone-lr --lr-backbone --backbone-lr-mult --lr-mult", TRAINING,
        "is --optimizer.body-lr-factor here: all layers but the classifier learn at that multiple of --optimizer.lr",
    ),
    # What is trained, and how.
    Meaning("--early-stopping --early-stop --early-stopping-patience", TRAINING,
            "has no equal here: a run has its --iterations, and its last weights are its result"),
    Meaning("--class-weights --class-weight --weighted-sampler --balanced --pos-weight", TRAINING,
            "has no equal here: every image counts the same, and every class as often as it has images"),
    Meaning("-a --net --network --backbone", TRAINING, "is --arch here: --arch {value}", "resnet50"),
    Meaning("--opt --optim", TRAINING, "is --optimizer.kind here: sgd, with --optimizer.momentum, or lamb"),
    Meaning("--nesterov", TRAINING, "has no equal here: the momentum is the paper's, --optimizer.momentum"),
    Meaning("--learning-rate --base-lr --blr", TRAINING, "is --optimizer.lr here: --optimizer.lr {value}", "0.1"),
    Meaning("--lr-scheduler --sched --scheduler --lr-scheduler-type --lr-policy", TRAINING, _schedule),
    Meaning(
        "--lr-step-size --lr-steps --decay-epochs --decay-milestones --milestones", TRAINING,
        "is --schedule.steps here, a list in iterations: --schedule.kind steps --schedule.steps [32000,48000]",
    ),
    Meaning("--lr-gamma --gamma --decay-rate", TRAINING, "is --schedule.factor here: --schedule.factor {value}", "0.1"),
    Meaning("--patience --patience-epochs", TRAINING, "is --schedule.patience here, in evaluations"),
    Meaning("--warmup-steps", TRAINING, "is --schedule.warmup-iterations here: --schedule.warmup-iterations {value}"),
    Meaning(
        "--lr-warmup-epochs --warmup-epochs --warmup --warmup-ratio", TRAINING,
        "is counted in iterations here, by --schedule.warmup-iterations: one epoch is the number of images divided by --batch",
    ),
    Meaning("--min-lr --lr-min --warmup-lr", TRAINING, "has no equal here: --schedule.kind cosine falls to zero"),
    Meaning("--norm-weight-decay --bias-weight-decay", TRAINING, "is --optimizer.decay-norm-and-bias here: false for none"),
    Meaning("--clip-grad --clip-grad-norm --gradient-clip-val --max-grad-norm", TRAINING,
            "is --optimizer.lamb-clip-norm here, for LAMB alone: SGD clips no gradients; --on-nonfinite says what a NaN does"),
    Meaning("--smoothing", TRAINING, "is --label-smoothing here: --label-smoothing {value}", "0.1"),
    Meaning("--model-ema --ema --use-ema", TRAINING, "is --ema-decay here: --ema-decay 0.9998"),
    Meaning("--model-ema-decay", TRAINING, "is --ema-decay here: --ema-decay {value}", "0.9998"),
    Meaning("--sync-bn --sync-batchnorm --dist-bn", TRAINING,
            "is --bn-group here, the images that share statistics, on however many devices; as many as --batch are all"),
    Meaning(
        "--ra-sampler --aug-repeats --color-jitter --drop-path --dropout", TRAINING,
        "has no equal here: images are varied by what --augment.kind and the other keys of augment and mixing say",
    ),
    Meaning("--mixup --mixup-alpha", TRAINING, "is --mixing.mixup here: --mixing.mixup {value}", "0.1"),
    Meaning("--cutmix --cutmix-alpha", TRAINING, "is --mixing.cutmix here: --mixing.cutmix {value}", "1.0"),
    Meaning("--mixup-switch-prob", TRAINING, "is --mixing.switch here, the share of cutmix: --mixing.switch {value}", "0.5"),
    Meaning("--bce-loss", TRAINING, "is --loss here: --loss binary-cross-entropy"),
    Meaning("--bce-target-thresh", TRAINING,
            "is --target-threshold here, beside --loss binary-cross-entropy: --target-threshold {value}", "0.2"),
    Meaning("--auto-augment --aa", TRAINING,
            "is --augment.rand-augment.operations here, with .magnitude, .deviation and .probability beside it: "
            "--augment.rand-augment.operations 2 for RandAugment, the one policy there is"),
    Meaning("--ra-magnitude", TRAINING,
            "is --augment.rand-augment.magnitude here, 0..10: --augment.rand-augment.magnitude {value}", "6"),
    Meaning("--random-erase --reprob", TRAINING,
            "is --augment.erase.probability here: --augment.erase.probability {value}", "0.25"),
    Meaning("--scale", TRAINING,
            "is --augment.area here, of the random crops of --augment.kind area-crop: --augment.area '[0.08,1.0]'"),
    Meaning("--ratio", TRAINING,
            "is --augment.ratio here, of the random crops of --augment.kind area-crop: --augment.ratio '[0.75,1.33]'"),
    Meaning("--train-crop-size --img-size --input-size --crop-size --image-size --imgsz", TRAINING,
            "is --augment.crop here: --augment.crop {value}"),
    Meaning("--val-crop-size", TRAINING, "is --evaluation.crop here: --evaluation.crop {value}"),
    Meaning("--val-resize-size", TRAINING, "is --evaluation.short-side here: --evaluation.short-side {value}"),
    Meaning("--num-classes --classes", TRAINING, "is not needed: the dataset that --data names says how many classes it has"),
    # How fast.
    Meaning(_THREADS, TRAINING,
            "is --loader.threads here, threads that decode for each rank: --loader.threads {value}; left out, one per core"),
    Meaning("--pin-mem --pin-memory --prefetch-factor --persistent-workers --channels-last --opt-level", TRAINING,
            "is not needed: the loader does so by itself, and the layout is channels-last; see python -m pipeline.tune"),
    Meaning(_AMP, TRAINING, "is --precision here: --precision bf16, which configs/imagenet.yaml sets"),
    Meaning("--torchcompile --torch-compile --torchscript --jit", TRAINING, "is --compile here: --compile true"),
    Meaning("--use-deterministic-algorithms", TRAINING, "is --deterministic here: --deterministic true, for GPUs"),
    Meaning("--benchmark --cudnn", TRAINING, "is --cudnn-benchmark here: --cudnn-benchmark true"),
    Meaning("--cache-dataset --cache", TRAINING, "is --loader.stage-to here, a folder on a local disk for copies of shards"),
    Meaning("--profiler --trace", TRAINING, "is --profile here, how many updates to trace: --profile 20"),
    # What goes where.
    Meaning(
        "--val-split --hold-out --val-fraction --val-size --validation-split", TRAINING,
        "belongs to the dataset: python data_prep/shard_imagenet.py SOURCE --hold-out {value} makes its val", "0.1",
    ),
    Meaning(_DATA, TRAINING, "is --data here, the dataset folder that python data_prep/shard_imagenet.py makes"),
    Meaning("--output-dir --output --out-dir --save-dir --default-root-dir --work-dir --logdir --log-dir --checkpoint-dir",
            TRAINING, "is --runs here, the folder that holds the run folders: --runs {value}", "runs"),
    Meaning("--exp-name --experiment --run-name --experiment-name", TRAINING,
            "is --name here, of the run; the MLflow experiment is --tracking.experiment"),
    Meaning("--print-freq -p --log-interval --log-every --logging-steps --log-every-n-steps", TRAINING,
            "is --tracking.log-every here, in iterations: --tracking.log-every {value}"),
    Meaning("--test-only --eval --eval-only --validate -e", LAUNCHER,
            "is --evaluate here: --evaluate RUN, behind the launcher's options"),
    Meaning("--test-only --eval --eval-only --validate -e --evaluate", TRAINING,
            "is a command of its own here: python -m pipeline.evaluate RUN"),
    Meaning("--eval-freq --eval-interval --val-interval --eval-steps --val-check-interval --check-val-every-n-epoch", TRAINING,
            "is --evaluation.every here, in iterations"),
    Meaning("--save-every --save-freq --save-steps --checkpoint-every --recovery-interval", TRAINING,
            "is --checkpoint.every here, in iterations"),
    Meaning("--checkpoint-hist --save-total-limit --keep-checkpoints", TRAINING,
            "is --checkpoint.keep-last here: --checkpoint.keep-last {value}"),
    Meaning("--log-wandb --wandb --tensorboard --logger --report-to --csv", TRAINING,
            "is not needed: each run writes metrics.jsonl and goes to MLflow; python -m pipeline.tracking export makes "
            "TensorBoard or CSV files of it; --tracking.mlflow false leaves MLflow out"),
    Meaning("--random-seed", TRAINING, "is --seed here: --seed {value}"),
    # python -m pipeline.evaluate
    Meaning("--checkpoint --resume --ckpt --ckpt-path --model-path --run", EVALUATION,
            "is not needed: name the run folder or the checkpoint itself, as in python -m pipeline.evaluate RUN"),
    Meaning("--model -a", EVALUATION, "is --arch here, and goes with --weights FILE: --arch {value}", "resnet50"),
    Meaning("--pretrained", EVALUATION,
            "is --weights here: torchvision:{value}, or a FILE with --arch and --preprocessing", "resnet50"),
    Meaning(_BATCH, EVALUATION, "is not needed: scores do not depend on it"),
    Meaning(_THREADS, EVALUATION, "is --threads here: --threads {value}"),
    Meaning(_AMP, EVALUATION, "is --precision here: --precision bf16"),
    Meaning(_DATA, EVALUATION, "is --data here, the dataset folder"),
    Meaning("--val-split", EVALUATION, "is --split here: --split {value}", "val"),
    Meaning("--tencrop --ten-crop --tta", EVALUATION, "is --protocol here: --protocol ten-crop"),
    Meaning("--img-size --input-size --crop-size --image-size", EVALUATION, "is --crop here: --crop {value}"),
    # python -m pipeline.predict
    Meaning("--tta --ten-crop --tencrop --protocol", PREDICTION,
            "has no equal here: a picture's centre crop is seen; python -m pipeline.evaluate takes more crops, of datasets"),
    Meaning("--topk --top-k -k", PREDICTION, "is --top here: --top {value}", "5"),
    Meaning("--output --out -o --results-file", PREDICTION, "is --csv here: --csv {value}", "answers.csv"),
    Meaning("--recursive -r", PREDICTION, "is not needed: of a folder, all pictures below it are taken"),
    # data_prep/
    Meaning("--recursive -r", PREPARATION, "is not needed: pictures below class folders are read, however deep"),
    Meaning("--val --val-split --val-fraction --val-size --validation-split --test-size --test-split", PREPARATION,
            "is --hold-out here, a share of every class or a number of images: --hold-out {value}", "0.1"),
    Meaning("-j --num-workers --processes --nproc --threads", PREPARATION, "is --workers here: --workers {value}"),
    Meaning("--shard-size --maxcount --max-count --shards --num-shards", PREPARATION,
            "is --samples-per-shard here, the images of a shard: --samples-per-shard 1000"),
    Meaning("--output --output-dir --out -o --dest", PREPARATION, "is not needed: the folder to make is the second word"),
    Meaning("--source --input --input-dir --data-dir --data-path --root", PREPARATION,
            "is not needed: the folder with the images is the first word"),
    Meaning("--resize --size --max-size --short-side", "--max-short-side", "is --max-short-side here, in pixels"),
)  # fmt: skip
