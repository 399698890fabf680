#!/usr/bin/env bash
# Runs the stages as commands that communicate through files and exit codes.
#
#   pipeline.sh train    runs a range test and trains with its result
#   pipeline.sh check    checks later whether that learning rate still fits the task
#
# RESULTS is the folder for the JSON files; TASK holds the options that describe the task. If that names
# modules of your own, list them in LRRT_TRUST: what a run names is used only where it is trusted.
set -euo pipefail

RESULTS=${RESULTS:-results}
read -r -a task <<< "${TASK:---dataset digits --model cnn --batch-size 64}"

# value FILE KEY: prints a value from the result of a stage.
value() {
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"
}

train() {
    mkdir -p "$RESULTS"
    lrrt-stage lrrt "${task[@]}" --output-json "$RESULTS/lrrt.json"
    # Pass the run ID, because `latest` may be somebody else's run by now.
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
            echo "the learning rate no longer fits: training again"
            train
            ;;
        *) return $status ;; # 2: unusable input, 130: interrupted; the learning rate was not checked
    esac
}

case ${1:-} in
    train | check) "$1" ;;
    *)
        echo "usage: pipeline.sh train|check" >&2
        exit 2
        ;;
esac
