# Everything a fresh machine needs is python3 (3.11 to 3.13, with venv and pip) and git.
#   make run    the default search, end to end          make test    lint, types and the whole suite
#   make setup  only the environment                    make bench   the benchmarks, ratios measured side by side
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test lint bench clean

setup: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"python 3.11 to 3.13 is needed, but $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12 $@")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: setup
	$(BIN)/python hello_nas.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

test: setup lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

bench: setup
	$(BIN)/python experiments/benchmarks/cost_model.py
	$(BIN)/python experiments/benchmarks/trial_overhead.py
	$(BIN)/python experiments/benchmarks/trial_vs_ultralytics.py
	$(BIN)/python experiments/benchmarks/sandwich.py
	$(BIN)/python experiments/benchmarks/progressive.py
	$(BIN)/python experiments/benchmarks/slices.py
	$(BIN)/python experiments/benchmarks/faster_rcnn.py
	$(BIN)/python experiments/benchmarks/slice_evaluation.py
	$(BIN)/python experiments/benchmarks/morphism.py --children 4 --parent 4 --long 8
	$(BIN)/python experiments/benchmarks/threads.py
	rm -rf runs/bench_rank
	$(BIN)/python hello_nas.py run experiments/yolov5_supernet.yaml space=models/yolov5p_nas.yaml train.epochs=40 train.hyp=data/hyps/default.yaml name=bench_rank --steps supernet,rank

clean:
	rm -rf .venv
