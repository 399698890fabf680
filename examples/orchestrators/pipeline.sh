#!/usr/bin/env bash
# The stages as commands, with files and exit codes between them.
#
#   pipeline.sh train    a range test, and a training with what it found
#   pipeline.sh check    later: does that learning rate still fit the task?
#
# RESULTS is the folder of the JSON files, TASK holds the options that describe the task.
set -euo pipefail

RESULTS=${RESULTS:-results}
read -r -a task <<< "${TASK:---dataset digits --model cnn --batch-size 64}"

# value FILE KEY: a value of a stage's result.
value() {
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"
}

train() {
    mkdir -p "$RESULTS"
    lrrt-stage lrrt "${task[@]}" --output-json "$RESULTS/lrrt.json"
    # By its id: `latest` may by now be the run of somebody else.
    lrrt-stage train --lrrt-run-id "$(value "$RESULTS/lrrt.json" run_id)" \
        --epochs "${EPOCHS:-20}" --output-json "$RESULTS/train.json"
    echo "trained up to $(value "$RESULTS/train.json" trained_lr_max)," \
        "accuracy $(value "$RESULTS/train.json" val_accuracy)"
}

check() {
    local status=0
    lrrt-stage check --baseline "$(value "$RESULTS/train.json" run_id)" \
        --output-json "$RESULTS/check.json" || status=$?
    case $status in
        0) echo "the learning rate still fits" ;;
        3)
            echo "it no longer fits: training again"
            train
            ;;
        *) return $status ;; # 2: unusable input, 130: interrupted; neither says anything of the rate
    esac
}

case ${1:-} in
    train | check) "$1" ;;
    *)
        echo "usage: pipeline.sh train|check" >&2
        exit 2
        ;;
esac
