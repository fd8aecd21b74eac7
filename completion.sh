# Completes the commands of this checkout in bash and zsh: options, nets, configs, datasets, run folders.
# Read it once per shell, from ~/.bashrc or ~/.zshrc:    . /PATH/TO/THE/CHECKOUT/completion.sh
# Written by `python -m tests.golden.completion`: do not edit.

if [ -n "${ZSH_VERSION:-}" ]; then
    autoload -U +X compinit bashcompinit
    (( $+functions[compdef] )) || compinit -u
    bashcompinit
fi

_resnets_modules='pipeline.curves pipeline.ensemble pipeline.evaluate pipeline.experiment pipeline.export pipeline.mistakes pipeline.predict pipeline.report pipeline.responses pipeline.submit pipeline.tracking pipeline.train pipeline.tune'
_resnets_keys='--arch --augment.area --augment.colour --augment.crop --augment.erase.area --augment.erase.probability --augment.erase.ratio --augment.flip --augment.kind --augment.pad --augment.rand-augment.deviation --augment.rand-augment.magnitude --augment.rand-augment.operations --augment.rand-augment.probability --augment.ratio --augment.short-side --augment.stages --batch --batch-scale --bn-group --checkpoint.every --checkpoint.keep-best --checkpoint.keep-every --checkpoint.keep-last --compile --compile-by --cuda-graph --cudnn-benchmark --data --deterministic --device --ema-decay --evaluation.crop --evaluation.every --evaluation.short-side --freeze-bn --gradient-compression --init --init-exclude --init-preprocessing --init-sha256 --init-weights --iterations --label-smoothing --loader.decode-ahead --loader.decode-on --loader.fancy-upsampling --loader.hw-decoder-load --loader.in-memory-mb --loader.on-decode-error --loader.read-ahead --loader.read-threads --loader.ready --loader.stage-to --loader.threads --loss --mixing.cutmix --mixing.mixup --mixing.switch --name --on-nonfinite --optimizer.body-lr-factor --optimizer.caffe-momentum --optimizer.decay-norm-and-bias --optimizer.kind --optimizer.lamb-betas --optimizer.lamb-clip-norm --optimizer.lamb-eps --optimizer.lr --optimizer.momentum --optimizer.weight-decay --precision --profile --recompute-bn-images --reduction --runs --schedule.drops --schedule.factor --schedule.kind --schedule.patience --schedule.start-lr --schedule.start-until-error --schedule.steps --schedule.threshold --schedule.warmup-iterations --seed --shortcut --shuffle-block --stride --subtract --target-threshold --threads --timeout-seconds --tracking.close-seconds --tracking.costs.co2-g-per-kwh --tracking.costs.currency --tracking.costs.price-per-gpu-hour --tracking.costs.price-per-kwh --tracking.experiment --tracking.log-every --tracking.mlflow --tracking.system-every --tracking.uri --lr --max-epochs --model --momentum --num-epochs --num-train-epochs --wd --weight-decay'

_resnets_options() { # $1: command
    case "$1" in
        'pipeline.curves') echo "--help --json --out --title --until" ;;
        'pipeline.ensemble') echo "--by --help --json --name --no-tracking --protocol --runs --search --split --weights" ;;
        'pipeline.evaluate') echo "--again --arch --crop --data --device --help --interpolation --json --mean --precision --preprocessing --protocol --scores --short-side --shortcut --split --std --stride --threads --weights --weights-file --weights-key" ;;
        'pipeline.experiment') echo "--data --dry-run --help --json --launcher --list --only --procs --runs --scale" ;;
        'pipeline.export') echo "--alias --data --format --help --json --out --register --weights" ;;
        'pipeline.mistakes') echo "--data --help --json --out --pictures --protocol --runs --split --weights" ;;
        'pipeline.predict') echo "--csv --data --device --help --json --top --weights" ;;
        'pipeline.report') echo "--experiments --help --json --no-tracking --out --records --runs" ;;
        'pipeline.responses') echo "--data --device --help --json --split --threads --weights" ;;
        'pipeline.submit') echo "--data --ground-truth --help --json --lines --out --protocol --runs --split --weights" ;;
        'pipeline.tracking open') echo "--help --no-browser --port" ;;
        'pipeline.tracking sync') echo "--help --json --seconds --uri" ;;
        'pipeline.tracking export') echo "--format --help --json --out" ;;
        'pipeline.tracking') echo 'open sync export --help' ;;
        'pipeline.train') echo "--config --epochs --help --help-all --json --print-config --scale-batch $_resnets_keys" ;;
        'pipeline.tune') echo "--batch --config --device --help --json --ranks --seconds" ;;
        'launch/local.py') echo "--config --epochs --evaluate --help --help-all --json --print-config --procs --scale-batch --site $_resnets_keys" ;;
        'launch/ray_train.py') echo "--address --config --cpus-per-worker --epochs --evaluate --help --help-all --json --max-failures --print-config --scale-batch --site --workers $_resnets_keys" ;;
        'launch/slurm.py') echo "--account --assume-shared --begin --cluster --comment --config --constraint --contiguous --cpus-per-gpu --cpus-per-task --deadline --dependency --device-name --distribution --dry-run --epochs --evaluate --exclude --exclusive --gpu-bind --gpu-freq --gpus-per-node --gpus-per-task --gres --help --help-all --hint --hold --images-per-second --json --licenses --mail-type --mail-user --mem-gb --mem-per-cpu --mem-per-gpu --network-gbits --nice --nodelist --nodes --ntasks-per-node --partition --prefer --print-config --priority --qos --rates --requeue-limit --reservation --sbatch --scale-batch --signal-delay --site --switches --tasks-per-node --threads-per-core --time --tmp --wckey $_resnets_keys" ;;
        'launch/slurm_command.py') echo "--account --after --assume-shared --begin --comment --constraint --contiguous --cpus-per-gpu --cpus-per-task --deadline --dependency --device-name --distribution --exclude --exclusive --folder --gpu-bind --gpu-freq --gpus-per-node --gpus-per-task --gres --help --hint --hold --images-per-second --json --licenses --mail-type --mail-user --mem-gb --mem-per-cpu --mem-per-gpu --name --network-gbits --nice --nodelist --nodes --ntasks-per-node --partition --prefer --priority --qos --rates --requeue-limit --reservation --sbatch --signal-delay --site --switches --tasks-per-node --threads-per-core --time --tmp --wckey" ;;
        'launch/status.py') echo "--follow --help --json --runs" ;;
        'data_prep/digits.py') echo "--help --json" ;;
        'data_prep/shard_cifar10.py') echo "--help --hold-out --json --name --samples-per-shard --seed --skip-corrupt --workers" ;;
        'data_prep/shard_imagenet.py') echo "--help --hold-out --json --max-short-side --name --samples-per-shard --seed --skip-corrupt --statistics-images --statistics-short-side --statistics-size --workers" ;;
        'data_prep/verify.py') echo "--fast --help --json --workers" ;;
    esac
}

_resnets_switch() { # $1: command, $2: option; prints something where it takes no value
    case "$1 $2" in
        'pipeline.curves --help'|'pipeline.curves --json'|'pipeline.curves -h') echo yes ;;
        'pipeline.ensemble --help'|'pipeline.ensemble --json'|'pipeline.ensemble --no-tracking'|'pipeline.ensemble -h') echo yes ;;
        'pipeline.evaluate --again'|'pipeline.evaluate --help'|'pipeline.evaluate --json'|'pipeline.evaluate -h') echo yes ;;
        'pipeline.experiment --dry-run'|'pipeline.experiment --help'|'pipeline.experiment --json'|'pipeline.experiment --list'|'pipeline.experiment -h') echo yes ;;
        'pipeline.export --help'|'pipeline.export --json'|'pipeline.export -h') echo yes ;;
        'pipeline.mistakes --help'|'pipeline.mistakes --json'|'pipeline.mistakes -h') echo yes ;;
        'pipeline.predict --help'|'pipeline.predict --json'|'pipeline.predict -h') echo yes ;;
        'pipeline.report --help'|'pipeline.report --json'|'pipeline.report --no-tracking'|'pipeline.report -h') echo yes ;;
        'pipeline.responses --help'|'pipeline.responses --json'|'pipeline.responses -h') echo yes ;;
        'pipeline.submit --help'|'pipeline.submit --json'|'pipeline.submit -h') echo yes ;;
        'pipeline.tracking open --help'|'pipeline.tracking open --no-browser'|'pipeline.tracking open -h') echo yes ;;
        'pipeline.tracking sync --help'|'pipeline.tracking sync --json'|'pipeline.tracking sync -h') echo yes ;;
        'pipeline.tracking export --help'|'pipeline.tracking export --json'|'pipeline.tracking export -h') echo yes ;;
        'pipeline.train --augment.stages.help'|'pipeline.train --help'|'pipeline.train --help-all'|'pipeline.train --json'|'pipeline.train --print-config'|'pipeline.train -h') echo yes ;;
        'pipeline.tune --help'|'pipeline.tune --json'|'pipeline.tune -h') echo yes ;;
        'launch/local.py --augment.stages.help'|'launch/local.py --help'|'launch/local.py --help-all'|'launch/local.py --json'|'launch/local.py --print-config'|'launch/local.py -h') echo yes ;;
        'launch/ray_train.py --augment.stages.help'|'launch/ray_train.py --help'|'launch/ray_train.py --help-all'|'launch/ray_train.py --json'|'launch/ray_train.py --print-config'|'launch/ray_train.py -h') echo yes ;;
        'launch/slurm.py --assume-shared'|'launch/slurm.py --augment.stages.help'|'launch/slurm.py --dry-run'|'launch/slurm.py --help'|'launch/slurm.py --help-all'|'launch/slurm.py --json'|'launch/slurm.py --print-config'|'launch/slurm.py -h') echo yes ;;
        'launch/slurm_command.py --assume-shared'|'launch/slurm_command.py --help'|'launch/slurm_command.py --json'|'launch/slurm_command.py -h') echo yes ;;
        'launch/status.py --follow'|'launch/status.py --help'|'launch/status.py --json'|'launch/status.py -h') echo yes ;;
        'data_prep/digits.py --help'|'data_prep/digits.py --json'|'data_prep/digits.py -h') echo yes ;;
        'data_prep/shard_cifar10.py --help'|'data_prep/shard_cifar10.py --json'|'data_prep/shard_cifar10.py --skip-corrupt'|'data_prep/shard_cifar10.py -h') echo yes ;;
        'data_prep/shard_imagenet.py --help'|'data_prep/shard_imagenet.py --json'|'data_prep/shard_imagenet.py --skip-corrupt'|'data_prep/shard_imagenet.py -h') echo yes ;;
        'data_prep/verify.py --fast'|'data_prep/verify.py --help'|'data_prep/verify.py --json'|'data_prep/verify.py -h') echo yes ;;
    esac
}

_resnets_values() { # $1: command, $2: option, or `word` for its words
    case "$1 $2" in
        'pipeline.curves word') echo 'runs' ;;
        'pipeline.ensemble --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.ensemble --by') echo 'top-1 top-5' ;;
        'pipeline.ensemble word') echo 'runs' ;;
        'pipeline.evaluate --data') echo 'datasets' ;;
        'pipeline.evaluate --precision') echo 'float32 bf16' ;;
        'pipeline.evaluate --device') echo 'auto cpu cuda' ;;
        'pipeline.evaluate --preprocessing') echo 'torchvision timm pycls fb caffe ours' ;;
        'pipeline.evaluate --interpolation') echo 'bilinear bicubic' ;;
        'pipeline.evaluate --stride') echo 'paper v1.5' ;;
        'pipeline.evaluate --shortcut') echo 'A B C' ;;
        'pipeline.evaluate word') echo 'runs' ;;
        'pipeline.experiment --launcher') echo 'local slurm ray' ;;
        'pipeline.experiment --data') echo 'datasets' ;;
        'pipeline.experiment word') echo 'experiments' ;;
        'pipeline.export --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.export --data') echo 'datasets' ;;
        'pipeline.export word') echo 'runs' ;;
        'pipeline.mistakes --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.mistakes --data') echo 'datasets' ;;
        'pipeline.mistakes word') echo 'runs' ;;
        'pipeline.predict --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.predict --data') echo 'datasets' ;;
        'pipeline.predict --device') echo 'auto cpu cuda' ;;
        'pipeline.predict word') echo 'runs' ;;
        'pipeline.responses --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.responses --data') echo 'datasets' ;;
        'pipeline.responses --device') echo 'auto cpu cuda' ;;
        'pipeline.responses word') echo 'runs' ;;
        'pipeline.submit --weights') echo 'final recomputed-bn ema' ;;
        'pipeline.submit --data') echo 'datasets' ;;
        'pipeline.submit word') echo 'runs' ;;
        'pipeline.tracking sync word') echo 'runs' ;;
        'pipeline.tracking export --format') echo 'csv tensorboard' ;;
        'pipeline.tracking export word') echo 'runs' ;;
        'pipeline.tracking word') echo 'open sync export' ;;
        'pipeline.train --config') echo 'configs' ;;
        'pipeline.tune --config') echo 'configs' ;;
        'pipeline.tune --device') echo 'auto cpu cuda' ;;
        'pipeline.tune word') echo 'datasets' ;;
        'launch/local.py --config') echo 'configs' ;;
        'launch/local.py --site') echo 'configs' ;;
        'launch/local.py --evaluate') echo 'runs' ;;
        'launch/ray_train.py --config') echo 'configs' ;;
        'launch/ray_train.py --site') echo 'configs' ;;
        'launch/ray_train.py --evaluate') echo 'runs' ;;
        'launch/slurm.py --config') echo 'configs' ;;
        'launch/slurm.py --cluster') echo 'slurm local debug' ;;
        'launch/slurm.py --site') echo 'configs' ;;
        'launch/slurm.py --evaluate') echo 'runs' ;;
        'launch/slurm_command.py --site') echo 'configs' ;;
        'launch/status.py word') echo 'runs' ;;
        'data_prep/verify.py word') echo 'datasets' ;;
        *' --arch') echo 'resnet18 resnet34 resnet50 resnet101 resnet152 resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet1202 plain18 plain34 plain8 plain14 plain20 plain32 plain44 plain56 plain110 plain1202' ;;
        *' --model') echo 'resnet18 resnet34 resnet50 resnet101 resnet152 resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet1202 plain18 plain34 plain8 plain14 plain20 plain32 plain44 plain56 plain110 plain1202' ;;
        *' --data') echo 'datasets' ;;
        *' --init') echo 'runs' ;;
        *' --init_preprocessing') echo 'torchvision timm pycls fb caffe ours' ;;
        *' --init-preprocessing') echo 'torchvision timm pycls fb caffe ours' ;;
        *' --freeze_bn') echo 'true false' ;;
        *' --freeze-bn') echo 'true false' ;;
        *' --shortcut') echo 'default A B C' ;;
        *' --stride') echo 'paper v1.5' ;;
        *' --bn_group') echo 'rank' ;;
        *' --bn-group') echo 'rank' ;;
        *' --reduction') echo 'auto tree allreduce' ;;
        *' --gradient_compression') echo 'none bf16' ;;
        *' --gradient-compression') echo 'none bf16' ;;
        *' --subtract') echo 'mean-image mean-colour' ;;
        *' --loss') echo 'cross-entropy binary-cross-entropy' ;;
        *' --on_nonfinite') echo 'stop skip' ;;
        *' --on-nonfinite') echo 'stop skip' ;;
        *' --precision') echo 'float32 bf16' ;;
        *' --compile') echo 'true false' ;;
        *' --compile_by') echo 'stages net' ;;
        *' --compile-by') echo 'stages net' ;;
        *' --deterministic') echo 'true false' ;;
        *' --cudnn_benchmark') echo 'true false' ;;
        *' --cudnn-benchmark') echo 'true false' ;;
        *' --cuda_graph') echo 'true false' ;;
        *' --cuda-graph') echo 'true false' ;;
        *' --device') echo 'auto cpu cuda' ;;
        *' --augment.kind') echo 'scale-crop pad-crop area-crop none' ;;
        *' --augment.flip') echo 'true false' ;;
        *' --optimizer.kind') echo 'sgd lamb' ;;
        *' --optimizer.decay_norm_and_bias') echo 'true false' ;;
        *' --optimizer.decay-norm-and-bias') echo 'true false' ;;
        *' --optimizer.caffe_momentum') echo 'true false' ;;
        *' --optimizer.caffe-momentum') echo 'true false' ;;
        *' --schedule.kind') echo 'plateau steps cosine' ;;
        *' --checkpoint.keep_best') echo 'true false' ;;
        *' --checkpoint.keep-best') echo 'true false' ;;
        *' --loader.on_decode_error') echo 'stop substitute' ;;
        *' --loader.on-decode-error') echo 'stop substitute' ;;
        *' --loader.decode_on') echo 'auto gpu gpu-whole cpu' ;;
        *' --loader.decode-on') echo 'auto gpu gpu-whole cpu' ;;
        *' --loader.fancy_upsampling') echo 'true false' ;;
        *' --loader.fancy-upsampling') echo 'true false' ;;
        *' --tracking.mlflow') echo 'true false' ;;
    esac
}

_resnets_found() { # $1: what is looked for, below the working directory
    local file
    case "$1" in
        configs) for file in configs/*.yaml; do [ -f "$file" ] && echo "$file"; done ;;
        experiments) for file in configs/experiments/*.yaml; do
            [ -f "$file" ] && file="${file##*/}" && echo "${file%.yaml}"; done ;;
        datasets) for file in data/*/manifest.json demo/*/manifest.json; do [ -f "$file" ] && echo "${file%/*}"; done ;;
        runs) for file in runs/*/config.yaml demo/runs/*/config.yaml; do [ -f "$file" ] && echo "${file%/*}"; done ;;
        *) echo "$1" ;;
    esac
}

_resnets_command() { # prints the command that the words before the cursor start, as the tables above name it
    local at=0 word next name=""
    while [ "$at" -lt "$COMP_CWORD" ]; do
        word="${COMP_WORDS[$at]}"
        at=$((at + 1))
        next="${COMP_WORDS[$at]}"
        if [ -n "$name" ]; then
            case "$name $word" in
                *' --evaluate') name=pipeline.evaluate ;;
                'pipeline.tracking '[a-z]*) [ -n "$(_resnets_options "$name $word")" ] && name="$name $word" ;;
            esac
            continue
        fi
        case "$word" in
            -m) [ "$at" -lt "$COMP_CWORD" ] && name="$next" ;;
            */*.py) name="${word%/*}" && name="${name##*/}/${word##*/}" ;;
        esac
        [ -n "$(_resnets_options "$name")" ] || name=""
    done
    echo "$name"
}

_resnets() {
    [ -n "${ZSH_VERSION:-}" ] && emulate -L ksh
    local current="${COMP_WORDS[$COMP_CWORD]}" before="${COMP_WORDS[$((COMP_CWORD - 1))]}" stem="" command words word
    COMPREPLY=()
    [ "$current" = "=" ] && current=""
    [ "$before" = "=" ] && before="${COMP_WORDS[$((COMP_CWORD - 2))]}"
    case "$current" in # zsh leaves --option=value in one word
        --*=*) before="${current%%=*}" && stem="$before=" && current="${current#*=}" ;;
    esac
    if [ "$before" = -m ]; then
        words="$_resnets_modules"
    else
        command="$(_resnets_command)"
        [ -n "$command" ] || return 0
        words="$(_resnets_values "$command" "$before")"
        [ "$before" = --evaluate ] && words=runs
        case "$current" in
            -*) [ -n "$words" ] || words="$(_resnets_options "$command")" ;;
            *) case "$before" in
                -*) [ -n "$words" ] || [ -n "$(_resnets_switch "$command" "$before")" ] || return 0 ;;
            esac
            [ -n "$words" ] || words="$(_resnets_values "$command" word)" ;;
        esac
        words="$(for word in $words; do _resnets_found "$word"; done)"
    fi
    for word in $words; do
        case "$word" in
            "$current"*) COMPREPLY+=("$stem$word") ;;
        esac
    done
}

complete -o default -o bashdefault -F _resnets python python3 .venv/bin/python torchrun launch/local.py launch/ray_train.py launch/slurm.py launch/slurm_command.py launch/status.py data_prep/digits.py data_prep/shard_cifar10.py data_prep/shard_imagenet.py data_prep/verify.py ./launch/local.py ./launch/ray_train.py ./launch/slurm.py ./launch/slurm_command.py ./launch/status.py ./data_prep/digits.py ./data_prep/shard_cifar10.py ./data_prep/shard_imagenet.py ./data_prep/verify.py
