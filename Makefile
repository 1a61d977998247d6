# Everything sets itself up in .venv; a Python 3.11 or newer with pip is all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := ops models pipeline cluster jobs

# The demo's scenes are far from the training's, which start at seed 1000.
DEMO := demo-out
DEMO_MODELS := fcn32s18 fcn8s18 smp18
DEMO_SCENES := --count 4 --first-seed 0
TRAINING_SCENES := --count 320 --first-seed 1000

.PHONY: setup demo test test-slow lint bench parity train-shipped clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Held-out scenes through three networks over local Ray workers, scored, as pictures and a page.
demo: setup
	$(BIN)/fullres scenes --out $(DEMO)/scenes $(DEMO_SCENES)
	for model in $(DEMO_MODELS); do \
	  rm -rf $(DEMO)/$$model; \
	  $(BIN)/fullres predict $(DEMO)/scenes/images --model $$model --out $(DEMO)/$$model || exit 1; \
	  $(BIN)/fullres evaluate $(DEMO)/$$model $(DEMO)/scenes/labels --dataset scenes \
	    --json $(DEMO)/$$model-scores.json > $(DEMO)/$$model-scores.txt || exit 1; \
	done
	$(BIN)/fullres report --images $(DEMO)/scenes/images --labels $(DEMO)/scenes/labels --dataset scenes \
	  --pred FCN32s-18=$(DEMO)/fcn32s18 --pred FCN8s-18=$(DEMO)/fcn8s18 --pred SMP-18=$(DEMO)/smp18 \
	  --out $(DEMO)

# Two processes, a file of tests at a time, in the order of the rooms: those that start clusters come first.
# torch takes one thread, or they would be in each other's way; Ray's workers, which it starts with little
# priority, wait no longer than the tests themselves.
ALONE := OMP_NUM_THREADS=1 RAY_worker_niceness=0
TWO := -n 2 --dist loadfile --no-loadscope-reorder
test: setup
	$(ALONE) $(BIN)/python -m pytest $(TWO)

test-slow: setup
	$(ALONE) $(BIN)/python -m pytest -m slow $(TWO)

# mypy and the import linter cannot follow folders installed under other names: they get a tree of links.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .typing/fullres
	for room in $(ROOMS); do ln -sfn ../../$$room .typing/fullres/$$room; done
	for file in __init__.py api.py py.typed; do ln -sfn ../../fullres/$$file .typing/fullres/$$file; done
	MYPYPATH=.typing $(BIN)/mypy -p fullres
	cd .typing && ../$(BIN)/lint-imports --config ../pyproject.toml

bench: setup
	$(BIN)/fullres bench smp

# Networks of mmsegmentation beside the project's own, from the same checkpoints, its sliding windows and its
# metric: minutes. It has an environment of its own; a wheel of mmcv-lite after 2.1 does not go with it.
PEER := .peer
parity: setup
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 mmsegmentation==1.2.2 \
	  mmcv-lite==2.1.0 mmengine ftfy regex
	$(BIN)/python -m tests.peers.evaluation $(PEER)/bin/python
	$(BIN)/python -m tests.peers.sliding $(PEER)/bin/python
	$(BIN)/python -m tests.peers.parity $(PEER)/bin/python

# The weights in models/shipped from nothing: hours on a CPU. Those for photographs need CamVid in runs/camvid.
train-shipped: setup
	$(BIN)/fullres scenes --out runs/scenes/train $(TRAINING_SCENES)
	mkdir -p models/shipped/scenes models/shipped/camvid
	for model in $(DEMO_MODELS); do \
	  $(BIN)/fullres train configs/scenes/$$model.toml || exit 1; \
	  cp runs/$$model/weights.safetensors models/shipped/scenes/$$model.safetensors || exit 1; \
	done
	if test -d runs/camvid/train; then \
	  $(BIN)/fullres train configs/camvid/shipped-smp18.toml --drop-head && \
	  cp runs/camvid-shipped-smp18/weights.safetensors models/shipped/camvid/smp18.safetensors; \
	else echo "no CamVid in runs/camvid: the weights for photographs are not trained"; fi

clean:
	rm -rf $(VENV) $(PEER) .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(DEMO) build *.egg-info
